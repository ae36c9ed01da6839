"""What a model can still do apart from the edits: the curves of a sequence.

    BLiMP         accuracy on the packaged minimal pairs of paradigms that are not edited
    perplexity    on the last lines of the packaged text (masked model: each token masked in turn)
    KL            unedited || edited at the next token of neutral prompts, the lines before those
    known facts   packaged facts that the unedited model knows and the sequence does not edit

The questions are fixed: the same for every method, at every checkpoint, in every run. A model whose
logits are not numbers answers none of them: nothing is right, perplexity and KL are infinite.

Under a prompt edit every text follows the whole prefix. A text that does not fit behind it is left
out, and what is compared with the unedited model is compared on what is left.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases import sources
from kn_bench.cases.case import Case, Probe, Task
from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LookupEdit, PromptEdit
from kn_bench.measure.answers import Asker, Question
from kn_bench.measure.asked import divergence
from kn_bench.measure.criteria import gives_rejected
from kn_bench.measure.drawing import mentions
from kn_bench.measure.encoding import EncodedProbe, Unencodable, encode_probe
from kn_bench.measure.engine import Engine
from kn_bench.measure.measurement import NormGrowth
from kn_bench.model import embedded
from kn_bench.model.prefixed import padded
from kn_bench.model.rows import RowContext

if TYPE_CHECKING:
    from kn_bench.editing.composition import Composition

A_RELATION = 8
"""Packaged cases of each relation and paradigm that are asked: 120 facts and 128 pairs in all."""
TEXT_LINES = 64
"""Lines of the text: about 1,000 tokens."""
MASKED_LINES = 12
"""Of a masked model, which runs a line once for each of its tokens."""
NEUTRAL = 48
"""Neutral prompts: the first words of further lines."""
AT_ONCE = 32
"""Lines of the text in a batch."""
COLLAPSE = 10.0
"""A model has collapsed if its perplexity exceeds this multiple of the unedited model's."""


@dataclass(frozen=True)
class Abilities:
    """The abilities of a model at one point; None for what could not be measured.

    Attributes:
        baseline: perplexity of the unedited model on the same tokens.
    """

    blimp: float | None
    n_blimp: int
    perplexity: float | None
    baseline: float | None
    n_tokens: int
    kl: float | None
    n_neutral: int
    known: float | None
    n_known: int
    norms: tuple[NormGrowth, ...] = ()


class _Token(NamedTuple):
    """A token of the text: its line, its place from the line's end, and its id."""

    line: int
    from_end: int
    id: int


class _Read(NamedTuple):
    """The row and the position at which a token of the text is predicted."""

    token: _Token
    row: tuple[int, ...]
    at: int


class Ability:
    """The questions of one sequence, asked again and again of one model.

    Args:
        engine: engine of the model, which must be as it was loaded.
        sequence: the cases that are edited, and so not asked about.
    """

    def __init__(self, engine: Engine, sequence: Sequence[Case]) -> None:
        self.lm = engine.model
        asked = sources.load("embedded", limit=A_RELATION).cases
        paradigms = {case.relation for case in sequence if case.task == "pair"}
        subjects = {case.request.subject for case in sequence if case.task == "fact"}
        pairs = [c for c in asked if c.task == "pair" and c.relation not in paradigms]
        facts = [
            c
            for c in asked
            if c.task == "fact" and not (subjects and mentions(_text(c.probes[0]), subjects))
        ]
        self.pairs = self._encoded(pairs)
        asked_facts = self._encoded(facts)
        longest = max((len(probe.rejected.targets) for probe in asked_facts), default=0)
        # of a fact the answer is read, an article before it, and where its last word ends; of a
        # pair no text at all
        self.askers = {"fact": Asker(self.lm, budget=longest + 2), "pair": Asker(self.lm, budget=1)}
        right = self._right(asked_facts, "fact", RowEdits(self.lm, []))
        self.facts = [probe for probe, is_right in zip(asked_facts, right, strict=True) if is_right]

    def _encoded(self, cases: Sequence[Case]) -> list[EncodedProbe]:
        encoded = [encode_probe(case.probes[0], self.lm.tokens) for case in cases]
        return [probe for probe in encoded if not isinstance(probe, Unencodable)]

    # -- looking ---------------------------------------------------------------------------

    def look(self, model: Composition | None = None) -> Abilities:
        """Measure all abilities of the model as it stands.

        Args:
            model: the edits it holds; None for the unedited model.
        """
        edit = model.asked_under if model is not None else None
        if isinstance(edit, LookupEdit):
            # a table changes nothing that it does not list, and none of this is listed
            return self.unedited
        prefix = edit.prefix if isinstance(edit, PromptEdit) else ""
        rows = RowEdits(self.lm, [edit] if edit is not None else [])
        perplexity, baseline, n_tokens = self._perplexity(rows, prefix)
        kl, n_neutral = (0.0, len(self.neutral)) if model is None else self._kl(rows, prefix)
        blimp, n_blimp = self._share(self.pairs, "pair", rows, prefix)
        known, n_known = self._share(self.facts, "fact", rows, prefix)
        growth = model.growth() if model is not None else {}
        norms = tuple(NormGrowth(name, value) for name, value in sorted(growth.items()))
        return Abilities(
            blimp, n_blimp, perplexity, baseline, n_tokens, kl, n_neutral, known, n_known, norms
        )

    @cached_property
    def unedited(self) -> Abilities:
        """What the model could do before the first edit; ask for it before that."""
        self._neutral_before = self._next_tokens(RowEdits(self.lm, []), self._neutral_rows(""))
        return self.look()

    @cached_property
    def _text_before(self) -> dict[_Token, float]:
        """Of the unedited model; :meth:`look` asks for it first."""
        return self._text_nll(RowEdits(self.lm, []), self._text_reads(""))

    def collapsed(self, seen: Abilities) -> bool:
        """Return whether a model of these abilities has collapsed, as far as they show."""
        if seen.perplexity is None or seen.baseline is None:
            return False
        return not math.isfinite(seen.perplexity) or seen.perplexity > COLLAPSE * seen.baseline

    def _share(
        self, probes: Sequence[EncodedProbe], task: Task, edits: RowContext, prefix: str
    ) -> tuple[float | None, int]:
        if prefix:
            again = [encode_probe(probe.probe, self.lm.tokens, prefix) for probe in probes]
            probes = [probe for probe in again if not isinstance(probe, Unencodable)]
        if not probes:
            return None, 0
        right = self._right(probes, task, edits)
        return sum(right) / len(right), len(right)

    def _right(self, probes: Sequence[EncodedProbe], task: Task, edits: RowContext) -> list[bool]:
        answers = self.askers[task].ask([Question(probe, 0) for probe in probes], edits)
        return [gives_rejected(answer, task) for answer, _ in answers]

    # -- text ------------------------------------------------------------------------------

    @cached_property
    def _lines(self) -> list[str]:
        return embedded.corpus_path().read_text("utf-8").splitlines()

    @cached_property
    def neutral(self) -> list[str]:
        """The first half of the words of some lines."""
        last = TEXT_LINES + NEUTRAL
        lines = (line.split() for line in self._lines[-last:-TEXT_LINES])
        return [" ".join(words[: max(2, len(words) // 2)]) for words in lines]

    def _perplexity(self, edits: RowContext, prefix: str) -> tuple[float | None, float | None, int]:
        """Return perplexity, the unedited model's on the same tokens, and how many those are."""
        reads = [read for read in self._text_reads(prefix) if read.token in self._text_before]
        nll = self._text_nll(edits, reads)
        if not nll:
            return None, None, 0
        before = [self._text_before[token] for token in nll]
        return _perplexity_of(nll.values()), _perplexity_of(before), len(nll)

    def _text_reads(self, prefix: str) -> Iterator[_Read]:
        """Yield where each token of the lines is predicted, behind the prefix if there is any."""
        n_lines = TEXT_LINES if self.lm.is_causal else MASKED_LINES
        for number, line in enumerate(self._lines[-n_lines:]):
            ids = self._behind(prefix, line)[: self.lm.tokens.max_length]
            for i, token in enumerate(ids):
                place = _Token(number, len(ids) - i, token)
                if self.lm.is_causal and i:
                    yield _Read(place, ids, i - 1)
                elif not self.lm.is_causal and token not in self.lm.tokens.special_ids:
                    yield _Read(place, (*ids[:i], self._mask, *ids[i + 1 :]), i)

    def _behind(self, prefix: str, text: str) -> tuple[int, ...]:
        """Return the ids of ``text`` behind ``prefix``; () where the two do not fit together."""
        ids = self.lm.tokens.encode(f"{prefix} {text}" if prefix else text).ids
        longest = self.lm.tokens.max_length
        return () if prefix and len(ids) > longest else ids

    @torch.no_grad()
    def _text_nll(self, edits: RowContext, reads: Iterable[_Read]) -> dict[_Token, float]:
        """Return -log p of each token, given those before (or around) it."""
        by_row: defaultdict[tuple[int, ...], list[_Read]] = defaultdict(list)
        for read in reads:
            by_row[read.row].append(read)
        rows = list(by_row)
        nll: dict[_Token, float] = {}
        for first in range(0, len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            asked = [(row, read) for row, ids in enumerate(part) for read in by_row[ids]]
            hidden = self._hidden(part, edits)
            at = torch.tensor([(row, read.at) for row, read in asked], device=hidden.device)
            log_p = self.lm.logits(hidden[at[:, 0], at[:, 1]]).float().log_softmax(-1)
            wanted = torch.tensor([[read.token.id] for _, read in asked], device=log_p.device)
            values = (-log_p.gather(1, wanted)[:, 0]).tolist()
            nll |= {read.token: value for (_, read), value in zip(asked, values, strict=True)}
        return nll

    def _neutral_rows(self, prefix: str) -> dict[int, tuple[int, ...]]:
        """Return the ids of the neutral prompts that fit, by number."""
        ending = "" if self.lm.is_causal else f" {self._mask_text}."
        rows = {i: self._behind(prefix, text + ending) for i, text in enumerate(self.neutral)}
        return {i: ids[-self.lm.tokens.max_length :] for i, ids in rows.items() if ids}

    @torch.no_grad()
    def _next_tokens(
        self, edits: RowContext, rows: Mapping[int, tuple[int, ...]]
    ) -> Float[Tensor, "prompts vocabulary"]:
        """Return log-probabilities after each neutral prompt (masked model: at a final mask)."""
        causal = self.lm.is_causal
        at = [len(ids) - 1 if causal else ids.index(self._mask) for ids in rows.values()]
        hidden = self._hidden([*rows.values()], edits)
        read = hidden[torch.arange(len(rows)), torch.tensor(at, device=hidden.device)]
        return self.lm.logits(read).float().log_softmax(-1).cpu()

    def _kl(self, edits: RowContext, prefix: str) -> tuple[float | None, int]:
        rows = self._neutral_rows(prefix)
        if not rows:
            return None, 0
        kl = divergence(self._neutral_before[list(rows)], self._next_tokens(edits, rows))
        return (math.inf if math.isnan(kl) else kl), len(rows)

    def _hidden(
        self, rows: Sequence[tuple[int, ...]], edits: RowContext
    ) -> Float[Tensor, "rows T d_model"]:
        """Return the last hidden states of right-padded rows; neurons are scaled everywhere."""
        ids = padded(self.lm, rows)
        stops = torch.tensor([len(row) for row in rows], device=ids.device)
        real = torch.arange(ids.shape[1], device=ids.device) < stops[:, None]
        options = {"use_cache": False} if self.lm.is_causal else {}
        with edits.on(torch.zeros(len(rows), dtype=torch.long, device=ids.device), real):
            output = self.lm.hidden(ids, real.long(), **options)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @property
    def _mask(self) -> int:
        mask = self.lm.tokens.mask_id
        assert mask is not None  # Tokens has looked
        return mask

    @property
    def _mask_text(self) -> str:
        return str(self.lm.tokens.mask_token)


def _perplexity_of(nll: Collection[float]) -> float:
    mean = sum(nll) / len(nll)
    return math.exp(mean) if mean < 700 else math.inf


def _text(probe: Probe) -> str:
    return f"{probe.cloze.left} {probe.cloze.right}"
