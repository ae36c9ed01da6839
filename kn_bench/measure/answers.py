"""How a model, edited or not, answers many encoded probes: every number from few passes.

questions (probe x edit)
  ├── prompt pass   distinct (prompt, edit) rows, the vocabulary read once
  │     ├── log-probabilities, rank, argmax of the first token
  │     └── greedy continuation
  │     └── answers that go on after the first token, from the prompt's keys and values
  └── score pass    answers that do not follow a prompt that is read: a masked model's, a family's
                    whose keys and values cannot be reused
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.case import Task
from kn_bench.cases.normalise import is_settled, starts_with_answer, words
from kn_bench.measure.cache import AnswerCache, TargetScores, content_key
from kn_bench.measure.encoded import BUDGET, AnswerRow
from kn_bench.measure.encoding import EncodedProbe
from kn_bench.measure.measurement import Answer
from kn_bench.model import scoring
from kn_bench.model.continuing import may_be_padded
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.rows import Following, Prompt, Row, RowContext, Settled
from kn_bench.model.scoring import Reading, TargetScore

PAIRS: Collection[Task] = frozenset({"pair"})
"""Whose answers are brief under an edit: pairs are judged by their preference alone."""
ALL: Collection[Task] = frozenset({"fact", "pair"})
"""Whose answers are brief under a control: nobody reads them."""


@dataclass(frozen=True)
class Question:
    """One probe put to the model under one edit, by the edit's number."""

    probe: EncodedProbe
    edit: int


Key = tuple[AnswerRow, int]
"""An answer's row, and the edit that it is scored under."""
Scores = dict[Key, TargetScores]


class Asker:
    """Puts questions to one model.

    Args:
        lm: the model.
        budget: tokens of a free-running answer.
    """

    def __init__(self, lm: LanguageModel, *, budget: int = BUDGET) -> None:
        self.lm = lm
        self.budget = budget

    def ask(
        self,
        questions: Sequence[Question],
        edits: RowContext,
        cache: AnswerCache | None = None,
        *,
        brief: Collection[Task] = (),
    ) -> list[tuple[Answer, Float[Tensor, " vocabulary"]]]:
        """Return each question's answer with the log-probabilities at its answer position.

        Equal prompts under equal edits are run once, however many probes share them. What
        ``cache`` knows is not run at all: give it for the unedited model only. Answers to probes of
        the tasks in ``brief`` end where nothing that follows would change a verdict.
        """
        prompts = dict.fromkeys(map(_prompt, questions))
        rows = dict(_further_rows(questions))
        contents = {
            (row, edit): content_key(row.ids, row.positions, row.targets)
            for row, edit in (rows if cache else ())
        }
        known = cache.scores(list(contents.values())) if cache else {}
        scores = {key: known[content] for key, content in contents.items() if content in known}
        missing = {key: first for key, first in rows.items() if key not in scores}
        settled = self._settled(questions, brief) if brief else None
        readings, followed = self._read(list(prompts), missing, edits, cache, settled)
        left = {key: first for key, first in missing.items() if key not in followed}
        fresh = followed | self._score(left, edits)
        if cache:
            cache.keep_scores((contents[key], fresh[key]) for key in missing)
        scores |= fresh
        # NumPy reads single numbers ten times as fast as torch
        columns = {prompt: reading.log_probs.numpy() for prompt, reading in readings.items()}
        answers = []
        for question in questions:
            probe, prompt = question.probe, _prompt(question)
            reading, log_probs = readings[prompt], columns[prompt]
            choice = reading.generated[0]
            expected, rejected = (
                _target_scores(row, probe, log_probs, choice, scores, question.edit)
                for row in (probe.expected, probe.rejected)
            )
            rank = int(np.count_nonzero(log_probs > log_probs[probe.first_expected]))
            answer = self._answer(probe, reading.generated, rank, expected, rejected)
            answers.append((answer, reading.log_probs))
        return answers

    def _answer(
        self,
        encoded: EncodedProbe,
        generated: tuple[int, ...],
        rank: int,
        expected: TargetScores,
        rejected: TargetScores,
    ) -> Answer:
        text = self.lm.tokens.decode(generated)
        nll = [-sum(scores.log_probs) / len(scores.log_probs) for scores in (expected, rejected)]
        probe = encoded.probe
        return Answer(
            log_prob_expected=sum(expected.log_probs),
            log_prob_rejected=sum(rejected.log_probs),
            prob=nll[0] < nll[1],
            tf_token=sum(expected.argmax) / len(expected.argmax),
            tf_all=all(expected.argmax),
            rank=rank,
            argmax=self.lm.tokens.decode(generated[:1]),
            generated=text,
            gives_expected=starts_with_answer(text, probe.expected, probe.aliases),
            gives_rejected=starts_with_answer(text, probe.rejected, probe.rejected_aliases),
        )

    def _settled(self, questions: Sequence[Question], brief: Collection[Task]) -> Settled:
        """Return what tells whether a continuation decides all that is asked of its prompt."""
        n_words: dict[Prompt, int] = defaultdict(int)
        facts: set[Prompt] = set()
        whole: set[Prompt] = set()
        for question in questions:
            probe, prompt = question.probe.probe, _prompt(question)
            if probe.task not in brief:
                whole.add(prompt)
                continue
            others = (*probe.aliases, *probe.rejected_aliases)
            forms = [words(form) for form in (probe.expected, probe.rejected, *others)]
            # an answer without words is compared with the raw text, which must then be whole
            longest = max(map(len, forms)) if all(forms) else self.budget
            n_words[prompt] = max(n_words[prompt], longest)
            if probe.task == "fact":  # pairs are judged by their preference
                facts.add(prompt)
        decode = self.lm.tokens.decode

        def settled(prompt: Prompt, generated: Sequence[int]) -> bool:
            if prompt in whole:
                return False
            text = decode(tuple(generated))
            return is_settled(text, n_words[prompt], sentence=prompt in facts)

        return settled

    def _read(
        self,
        prompts: Sequence[Prompt],
        rows: Mapping[Key, int],
        edits: RowContext,
        cache: AnswerCache | None,
        settled: Settled | None,
    ) -> tuple[dict[Prompt, Reading], Scores]:
        """Read prompts, and score those of ``rows`` that follow one of them."""
        keys = {p: content_key(p.ids, p.position, self.budget) for p in prompts} if cache else {}
        known = cache.readings(list(keys.values())) if cache else {}
        readings = {prompt: known[key] for prompt, key in keys.items() if key in known}
        after = _following(rows, set(prompts)) if may_be_padded(self.lm) else {}
        following: dict[Prompt, list[Following]] = defaultdict(list)
        for prompt, each in dict.fromkeys(after.values()):
            following[prompt].append(each)
        # a prompt is read again for what follows it: scored as a whole row it rounds differently
        missing = [p for p in prompts if p not in readings or p in following]
        fresh = scoring.read(
            self.lm,
            missing,
            edits,
            n_tokens=self.budget,
            settled=settled,
            following=following,
        )
        readings.update(zip(missing, fresh, strict=True))
        if cache:
            cache.keep_readings((keys[prompt], readings[prompt]) for prompt in missing)
        scores = {
            key: _scores_of(readings[prompt].followed[each])
            for key, (prompt, each) in after.items()
        }
        return readings, scores

    def _score(self, rows: Mapping[Key, int], edits: RowContext) -> Scores:
        """Score rows, given with the position from which neurons are scaled."""
        asked = [
            Row(row.ids, row.positions, tuple((t,) for t in row.targets), first, edit)
            for (row, edit), first in rows.items()
        ]
        scored = scoring.score(self.lm, asked, edits)
        return {
            key: _scores_of([target for (target,) in positions])
            for key, positions in zip(rows, scored, strict=True)
        }


def _prompt(question: Question) -> Prompt:
    probe = question.probe
    return Prompt(probe.prompt_ids, probe.answer_position, question.edit)


def _scores_of(targets: Sequence[TargetScore]) -> TargetScores:
    return TargetScores(
        tuple(target.log_prob for target in targets), tuple(target.argmax for target in targets)
    )


def _following(
    rows: Mapping[Key, int], prompts: Collection[Prompt]
) -> dict[Key, tuple[Prompt, Following]]:
    """Return the rows that are one of ``prompts`` and tokens after it, as these two."""
    after = {}
    for (row, edit), first in rows.items():
        prompt = Prompt(row.ids[: first + 1], first, edit)
        ids = row.ids[first + 1 : row.positions[-1] + 1]
        if ids and prompt in prompts:
            reads = tuple(position - first for position in row.positions)
            after[row, edit] = prompt, Following(ids, reads, row.targets)
    return after


def _is_first_token(row: AnswerRow, probe: EncodedProbe) -> bool:
    """Return whether ``row`` asks for one token at the answer position, read in the prompt pass."""
    return row.positions == (probe.answer_position,) and (
        row.ids[: len(probe.prompt_ids)] == probe.prompt_ids
    )


def _further_rows(questions: Sequence[Question]) -> Iterable[tuple[Key, int]]:
    """Yield the rows to score, and the position from which neurons are scaled in each."""
    for question in questions:
        probe = question.probe
        for row in (probe.expected, probe.rejected):
            if row.further:  # masked piece by piece: each part has an answer position of its own
                yield from (((part, question.edit), part.positions[0]) for part in row.parts)
            elif not _is_first_token(row, probe):
                yield (row, question.edit), probe.answer_position


def _target_scores(
    row: AnswerRow,
    probe: EncodedProbe,
    log_probs: Float[np.ndarray, " vocabulary"],
    choice: int,
    scores: dict[Key, TargetScores],
    edit: int,
) -> TargetScores:
    """Return the scores of a row; ``choice`` is the most probable token at the answer position."""
    if row.further:
        parts = [scores[part, edit] for part in row.parts]
        return TargetScores(
            tuple(value for part in parts for value in part.log_probs),
            tuple(hit for part in parts for hit in part.argmax),
        )
    if not _is_first_token(row, probe):
        return scores[row, edit]
    target = row.targets[0]
    return TargetScores((float(log_probs[target]),), (choice == target,))
