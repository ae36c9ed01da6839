"""How a model, edited or not, answers many fitted probes: batched, every number from few passes.

    questions (probe x edit)
      └── prompt pass   distinct (prompt, edit) rows, grouped by length, vocabulary read once
            ├── first-token readings: log-probabilities, rank, argmax, KL
            ├── greedy continuation from the pass's own keys and values (causal)
            └── score pass   only for answers that go on after the first token

No row is padded: rows of a batch have equal length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kn_bench.cases.normalise import starts_with_answer
from kn_bench.editing.applying import RowEdits
from kn_bench.measure.cache import AnswerCache, Reading, Scored, content_key
from kn_bench.measure.encoding import EncodedProbe, Row
from kn_bench.measure.measurement import Answer
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

BUDGET = 8
"""Tokens of a free-running answer: never the target's length (trap 24)."""


@dataclass(frozen=True)
class Question:
    """One probe put to the model under one edit: an index into the :class:`RowEdits`."""

    probe: EncodedProbe
    edit: int


Prompt = tuple[tuple[int, ...], int, int]
"""Ids, answer position, and which edit."""


class Asker:
    """Puts questions to one model in batches of bounded size.

    Args:
        lm: the model.
        tokens: positions (rows x length) in a batch; halved when memory runs out, for good.
        budget: tokens of a free-running answer.
    """

    def __init__(self, lm: LanguageModel, *, tokens: int = 16384, budget: int = BUDGET) -> None:
        self.lm = lm
        self.tokens = tokens
        self.budget = budget

    def ask(
        self, questions: Sequence[Question], edits: RowEdits, cache: AnswerCache | None = None
    ) -> list[tuple[Answer, Float[Tensor, " vocabulary"]]]:
        """One answer a question, in order, each with the log-probabilities at its answer position.

        Equal prompts under equal edits are run once, however many probes share them. What
        ``cache`` knows is not run at all: give it for the unedited model only.
        """
        rows = dict.fromkeys(
            (q.probe.prompt_ids, q.probe.answer_position, q.edit) for q in questions
        )
        readings = self._read(list(rows), edits, cache)
        scores = self._score(_further_rows(questions), edits, cache)
        found = []
        for question in questions:
            probe = question.probe
            reading = readings[probe.prompt_ids, probe.answer_position, question.edit]
            expected, rejected = (
                _scored(row, probe, reading.log_probs, scores, question.edit)
                for row in (probe.expected, probe.rejected)
            )
            found.append((self._answer(probe, reading, expected, rejected), reading.log_probs))
        return found

    def _answer(
        self, encoded: EncodedProbe, reading: Reading, expected: Scored, rejected: Scored
    ) -> Answer:
        text = self.lm.tokens.decode(reading.generated)
        first = encoded.first_expected
        rank = int((reading.log_probs > reading.log_probs[first]).sum())
        nll = [-sum(scored.log_probs) / len(scored.log_probs) for scored in (expected, rejected)]
        probe = encoded.probe
        return Answer(
            log_prob_expected=sum(expected.log_probs),
            log_prob_rejected=sum(rejected.log_probs),
            prob=nll[0] < nll[1],
            tf_token=sum(expected.argmax) / len(expected.argmax),
            tf_all=all(expected.argmax),
            rank=rank,
            argmax=self.lm.tokens.decode((int(reading.log_probs.argmax()),)),
            generated=text,
            gives_expected=starts_with_answer(text, probe.expected, probe.aliases),
            gives_rejected=starts_with_answer(text, probe.rejected),
        )

    # -- passes ----------------------------------------------------------------------------

    def _read(
        self, rows: Sequence[Prompt], edits: RowEdits, cache: AnswerCache | None
    ) -> dict[Prompt, Reading]:
        keys = {row: content_key(row[0], row[1], self.budget) for row in rows} if cache else {}
        known = cache.readings(list(keys.values())) if cache else {}
        found = {row: known[key] for row, key in keys.items() if key in known}
        missing = [row for row in rows if row not in found]
        for batch in self._batches(missing, length=lambda row: len(row[0])):
            found.update(zip(batch, self._halving(self._read_batch, batch, edits), strict=True))
        if cache:
            cache.keep_readings((keys[row], found[row]) for row in missing)
        return found

    @torch.no_grad()
    def _read_batch(self, batch: Sequence[Prompt], edits: RowEdits) -> list[Reading]:
        lm = self.lm
        ids = lm.tensor([row[0] for row in batch])
        at = torch.tensor([row[1] for row in batch], device=lm.device)
        edit_of = torch.tensor([row[2] for row in batch], device=lm.device)
        options: dict[str, Any] = {"use_cache": True} if lm.is_causal else {}
        with edits.on(edit_of, self._answer_positions(ids, at)):
            output = lm.hidden(ids, **options)
        hidden = output.last_hidden_state[torch.arange(len(batch), device=lm.device), at]
        log_probs = lm.logits(hidden).float().log_softmax(-1)
        if lm.is_causal:
            generated = self._continue(output.past_key_values, log_probs.argmax(-1), edits, edit_of)
        else:
            generated = log_probs.argmax(-1)[:, None]
        log_probs = log_probs.cpu()
        return [
            Reading(row, tuple(ids)) for row, ids in zip(log_probs, generated.tolist(), strict=True)
        ]

    def _continue(
        self, cache: Any, first: Int[Tensor, " rows"], edits: RowEdits, edit_of: Tensor
    ) -> Int[Tensor, "rows budget"]:
        """Greedy continuation of equally long prompts; neurons stay scaled at every new token."""
        tokens = [first]
        everywhere = torch.ones(len(first), 1, dtype=torch.bool, device=first.device)
        with edits.on(edit_of, everywhere):
            for _ in range(self.budget - 1):
                output = self.lm.hidden(tokens[-1][:, None], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                tokens.append(self.lm.logits(output.last_hidden_state[:, -1]).argmax(-1))
        return torch.stack(tokens, 1)

    def _score(
        self, rows: Iterable[tuple[Row, int, int]], edits: RowEdits, cache: AnswerCache | None
    ) -> dict[tuple[Row, int], Scored]:
        distinct = list(dict.fromkeys(rows))
        keys = {
            item: content_key(item[0].ids, item[0].positions, item[0].targets)
            for item in (distinct if cache else ())
        }
        known = cache.scores(list(keys.values())) if cache else {}
        found = {(item[0], item[1]): known[key] for item, key in keys.items() if key in known}
        missing = [item for item in distinct if (item[0], item[1]) not in found]
        for batch in self._batches(missing, length=lambda item: len(item[0].ids)):
            scored = self._halving(self._score_batch, batch, edits)
            found.update({item[:2]: one for item, one in zip(batch, scored, strict=True)})
        if cache:
            cache.keep_scores((keys[item], found[item[0], item[1]]) for item in missing)
        return found

    @torch.no_grad()
    def _score_batch(self, batch: Sequence[tuple[Row, int, int]], edits: RowEdits) -> list[Scored]:
        lm = self.lm
        ids = lm.tensor([row.ids for row, _, _ in batch])
        width = max(len(row.positions) for row, _, _ in batch)
        # ragged lists of positions are filled up with their last entry, which is then not read
        positions = lm.tensor([_filled(row.positions, width) for row, _, _ in batch])
        targets = lm.tensor([_filled(row.targets, width) for row, _, _ in batch])
        edit_of = torch.tensor([edit for _, edit, _ in batch], device=lm.device)
        at = torch.tensor([answer for _, _, answer in batch], device=lm.device)
        with edits.on(edit_of, self._answer_positions(ids, at)):
            log_probs = lm.forward(ids, positions).float().log_softmax(-1)
        values = log_probs.gather(2, targets[..., None])[..., 0].tolist()
        hits = (log_probs.argmax(-1) == targets).tolist()
        return [
            Scored(tuple(value[:n]), tuple(hit[:n]))
            for (row, _, _), value, hit in zip(batch, values, hits, strict=True)
            if (n := len(row.positions))
        ]

    def _answer_positions(
        self, ids: Int[Tensor, "rows T"], at: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows T"]:
        """Where the answer is read: from the last prompt token on, or at the mask alone."""
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        return places >= at[:, None] if self.lm.is_causal else places == at[:, None]

    # -- batches ---------------------------------------------------------------------------

    def _batches(self, rows: Sequence[Any], *, length: Any) -> Iterable[list[Any]]:
        """Rows of equal length in batches of at most ``tokens`` positions."""
        groups: dict[int, list[Any]] = defaultdict(list)
        for row in rows:
            groups[length(row)].append(row)
        for size, group in sorted(groups.items()):
            step = max(1, self.tokens // size)
            for at in range(0, len(group), step):
                yield group[at : at + step]

    def _halving(self, run: Any, batch: Sequence[Any], edits: RowEdits) -> list[Any]:
        """Run a batch; on running out of memory halve it, and all later ones."""
        try:
            found: list[Any] = run(batch, edits)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            self.tokens = max(1, self.tokens // 2)
        else:
            return found
        middle = len(batch) // 2
        return self._halving(run, batch[:middle], edits) + self._halving(run, batch[middle:], edits)


def _filled(values: tuple[int, ...], width: int) -> tuple[int, ...]:
    return values + values[-1:] * (width - len(values))


def _is_first_token(row: Row, probe: EncodedProbe) -> bool:
    """Whether ``row`` asks for one token at the answer position, read in the prompt pass."""
    return row.positions == (probe.answer_position,) and (
        row.ids[: len(probe.prompt_ids)] == probe.prompt_ids
    )


def _further_rows(questions: Sequence[Question]) -> Iterable[tuple[Row, int, int]]:
    for question in questions:
        probe = question.probe
        for row in (probe.expected, probe.rejected):
            if row.further:  # masked piece by piece: each part has an answer position of its own
                yield from ((part, question.edit, part.positions[0]) for part in row.parts)
            elif not _is_first_token(row, probe):
                yield row, question.edit, probe.answer_position


def _scored(
    row: Row,
    probe: EncodedProbe,
    log_probs: Float[Tensor, " vocabulary"],
    scores: dict[tuple[Row, int], Scored],
    edit: int,
) -> Scored:
    if row.further:
        parts = [scores[part, edit] for part in row.parts]
        return Scored(
            tuple(value for part in parts for value in part.log_probs),
            tuple(hit for part in parts for hit in part.argmax),
        )
    if not _is_first_token(row, probe):
        return scores[row, edit]
    target = row.targets[0]
    value = float(log_probs[target])
    return Scored((value,), (bool(log_probs.argmax() == target),))
