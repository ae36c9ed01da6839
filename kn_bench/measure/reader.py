"""Putting the probes of many cases to a model that holds edits, beside the unedited one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from kn_bench.cases.case import Exclusion
from kn_bench.editing.composition import Composition
from kn_bench.editing.edit import LookupEdit, PromptEdit
from kn_bench.measure.answers import Question
from kn_bench.measure.asked import Asked, content_of, measurement_of
from kn_bench.measure.encoding import EncodedCase, EncodedProbe, encode_cases
from kn_bench.measure.engine import Engine
from kn_bench.measure.lookup import looked_up
from kn_bench.measure.measurement import CaseResult, Measurement
from kn_bench.measure.protocols import Occasion
from kn_bench.model.scoring import RowContext

Numbered = tuple[EncodedCase, int]
"""A case, and the number of the edit that its rows run under."""


class Reader:
    """Reads cases off one model that holds the edits of a sequence.

    Args:
        engine: of the model.
        method: its name.
        model: the edits that it holds.
    """

    def __init__(self, engine: Engine, method: str, model: Composition) -> None:
        self.engine, self.name, self.model = engine, method, model
        self.lm = engine.model

    def read(
        self, asked: Sequence[Numbered], occasion: Occasion, edits: RowContext
    ) -> dict[str, CaseResult]:
        """The cases' results without their edits' records, by case."""
        results: dict[str, CaseResult] = {}
        for portion in self._portions(asked):
            ones = [one for one, _ in portion]
            with self.model.unedited() if self.model.changed else nullcontext():
                before = self.engine.before([p for one in ones for p in one.probes])
            posed, excluded = self._posed(ones)
            after = self._after(portion, posed, before, edits)
            for one in ones:
                results[one.case.id] = self._case(one, occasion, before, after, excluded)
        return results

    def _portions(self, asked: Sequence[Numbered]) -> Iterator[list[Numbered]]:
        """Cases whose log-probabilities fit into memory together."""
        portion: list[Numbered] = []
        probes = 0
        for one, number in asked:
            if portion and probes + len(one.probes) > self.engine.room:
                yield portion
                portion, probes = [], 0
            portion.append((one, number))
            probes += len(one.probes)
        if portion:
            yield portion

    def _posed(
        self, ones: Sequence[EncodedCase]
    ) -> tuple[dict[tuple[str, str], EncodedProbe], dict[tuple[str, str], Exclusion]]:
        """Each probe as it is put: behind the prefix of a prompt edit, where it still fits."""
        edit = self.model.asked_under
        plain = {(one.case.id, p.probe.id): p for one in ones for p in one.probes}
        if not isinstance(edit, PromptEdit):
            return plain, {}
        posed: dict[tuple[str, str], EncodedProbe] = {}
        excluded: dict[tuple[str, str], Exclusion] = {}
        again = encode_cases([one.case for one in ones], self.lm.tokens, prefix=edit.prefix)
        for one, outcome in zip(ones, again, strict=True):
            case = one.case.id
            if isinstance(outcome, Exclusion):
                excluded |= {
                    (case, p.probe.id): replace(outcome, probe=p.probe.id) for p in one.probes
                }
                continue
            posed |= {(case, p.probe.id): p for p in outcome.probes}
            excluded |= {(case, e.probe): e for e in outcome.exclusions if e.probe is not None}
        return {key: posed[key] for key in plain if key in posed}, excluded

    def _after(
        self,
        portion: Sequence[Numbered],
        posed: Mapping[tuple[str, str], EncodedProbe],
        before: Mapping[Any, Asked],
        edits: RowContext,
    ) -> dict[tuple[str, str], Asked]:
        """What the edited model answers, by case and probe id."""
        if not self.model.changed:
            return {key: before[content_of(probe)] for key, probe in posed.items()}
        edit = self.model.asked_under
        if isinstance(edit, LookupEdit):
            return {
                key: Asked(*looked_up(edit, probe, *before[content_of(probe)]))
                for key, probe in posed.items()
            }
        number = {one.case.id: number for one, number in portion}
        questions = [Question(probe, number[case]) for (case, _), probe in posed.items()]
        answers = self.engine.asker.ask(questions, edits)
        return {key: Asked(*answer) for key, answer in zip(posed, answers, strict=True)}

    def _case(
        self,
        one: EncodedCase,
        occasion: Occasion,
        before: Mapping[Any, Asked],
        after: Mapping[tuple[str, str], Asked],
        excluded: Mapping[tuple[str, str], Exclusion],
    ) -> CaseResult:
        case = one.case.id
        rows: list[Measurement] = []
        left_out = list(one.exclusions)
        for probe in one.probes:
            key = case, probe.probe.id
            if key in after:
                row = measurement_of(
                    self.lm.name, self.name, one.case, probe, before[content_of(probe)], after[key]
                )
                rows.append(replace(row, occasion=occasion))
            else:
                left_out.append(excluded[key])
        return CaseResult(case, None, tuple(rows), tuple(left_out))
