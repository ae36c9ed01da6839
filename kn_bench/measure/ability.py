"""What a model can still do apart from the edits: the curves of a sequence.

    BLiMP         accuracy on the packaged minimal pairs of paradigms that are not edited
    perplexity    on the last lines of the packaged text (masked model: each token masked in turn)
    KL            unedited || edited at the next token of neutral prompts, the lines before those
    known facts   packaged facts that the unedited model knows and the sequence does not edit

The questions are fixed: the same for every method, at every checkpoint, in every run. A model whose
logits are not numbers answers none of them: nothing is right, perplexity and KL are infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

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
    """The abilities of a model at one point; None for what could not be measured."""

    blimp: float | None
    n_blimp: int
    perplexity: float
    n_tokens: int
    kl: float | None
    n_neutral: int
    known: float | None
    n_known: int
    norms: tuple[NormGrowth, ...] = ()


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
        perplexity, n_tokens = self._perplexity(rows, prefix)
        kl, n_neutral = (0.0, len(self.neutral)) if model is None else self._kl(rows, prefix)
        blimp, n_blimp = self._share(self.pairs, "pair", rows, prefix)
        known, n_known = self._share(self.facts, "fact", rows, prefix)
        growth = model.growth() if model is not None else {}
        norms = tuple(NormGrowth(name, value) for name, value in sorted(growth.items()))
        return Abilities(blimp, n_blimp, perplexity, n_tokens, kl, n_neutral, known, n_known, norms)

    @cached_property
    def unedited(self) -> Abilities:
        """What the model could do before the first edit; ask for it before that."""
        self._neutral_before = self._next_tokens(RowEdits(self.lm, []), "")
        return self.look()

    def collapsed(self, perplexity: float) -> bool:
        """Return whether a model of this perplexity has collapsed."""
        return not math.isfinite(perplexity) or perplexity > COLLAPSE * self.unedited.perplexity

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

    @torch.no_grad()
    def _perplexity(self, edits: RowContext, prefix: str) -> tuple[float, int]:
        """Return exp of the mean -log p of each token, given those before (or around) it."""
        n_lines = TEXT_LINES if self.lm.is_causal else MASKED_LINES
        before = self._prefix_ids(prefix)
        rows: list[tuple[int, ...]] = []
        reads: list[tuple[int, int, int]] = []  # row, position, token
        for line in self._lines[-n_lines:]:
            ids = (*before, *self.lm.tokens.encode(line).ids)[: self.lm.tokens.max_length]
            if self.lm.is_causal:
                start = max(1, len(before))
                reads += [(len(rows), i - 1, ids[i]) for i in range(start, len(ids))]
                rows.append(ids)
                continue
            for i, token in enumerate(ids):
                if token not in self.lm.tokens.special_ids and i >= len(before):
                    reads.append((len(rows), i, token))
                    rows.append((*ids[:i], self._mask, *ids[i + 1 :]))
        if not reads:
            return math.inf, 0
        total = 0.0
        for first in range(0, len(rows), AT_ONCE):
            part = [(r - first, at, t) for r, at, t in reads if first <= r < first + AT_ONCE]
            total += self._nll(rows[first : first + AT_ONCE], part, edits)
        mean = total / len(reads)
        return (math.exp(mean) if mean < 700 else math.inf), len(reads)

    def _nll(
        self,
        rows: Sequence[tuple[int, ...]],
        reads: Sequence[tuple[int, int, int]],
        edits: RowContext,
    ) -> float:
        hidden = self._hidden(rows, edits)
        row, at, token = (torch.tensor(column, device=hidden.device)
                          for column in zip(*reads, strict=True))  # fmt: skip
        log_p = self.lm.logits(hidden[row, at]).float().log_softmax(-1)
        return float(-log_p.gather(1, token[:, None]).double().sum())

    @torch.no_grad()
    def _next_tokens(self, edits: RowContext, prefix: str) -> Float[Tensor, "prompts vocabulary"]:
        """Return log-probabilities after each neutral prompt (masked model: at a final mask)."""
        before = self._prefix_ids(prefix)
        rows, at = [], []
        for prompt in self.neutral:
            if self.lm.is_causal:
                ids = (*before, *self.lm.tokens.encode(prompt).ids)[-self.lm.tokens.max_length :]
                at.append(len(ids) - 1)
            else:
                ids = (*before, *self.lm.tokens.encode(f"{prompt} {self._mask_text}.").ids)
                at.append(ids.index(self._mask))
            rows.append(ids)
        hidden = self._hidden(rows, edits)
        read = hidden[torch.arange(len(rows)), torch.tensor(at, device=hidden.device)]
        return self.lm.logits(read).float().log_softmax(-1).cpu()

    def _kl(self, edits: RowContext, prefix: str) -> tuple[float | None, int]:
        kl = divergence(self._neutral_before, self._next_tokens(edits, prefix))
        return (math.inf if math.isnan(kl) else kl), len(self.neutral)

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

    def _prefix_ids(self, prefix: str) -> tuple[int, ...]:
        """Encode the prefix, cut to leave half of the model's positions for what follows it."""
        if not prefix:
            return ()
        special = self.lm.tokens.special_ids if not self.lm.is_causal else ()
        ids = [token for token in self.lm.tokens.encode(prefix).ids if token not in special]
        return tuple(ids[-(self.lm.tokens.max_length // 2) :])

    @property
    def _mask(self) -> int:
        mask = self.lm.tokens.mask_id
        assert mask is not None  # Tokens has looked
        return mask

    @property
    def _mask_text(self) -> str:
        return str(self.lm.tokens.mask_token)


def _text(probe: Probe) -> str:
    return f"{probe.cloze.left} {probe.cloze.right}"
