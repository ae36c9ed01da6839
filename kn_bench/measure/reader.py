"""Put the probes of many cases to a model with edits, and to the unedited model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from kn_bench.cases.case import Exclusion, Task
from kn_bench.editing.composition import Composition
from kn_bench.editing.edit import LookupEdit, PromptEdit
from kn_bench.measure.answers import PAIRS, Question
from kn_bench.measure.asked import Asked, content_of, measurement_of
from kn_bench.measure.encoding import EncodedCase, EncodedProbe, encode_cases
from kn_bench.measure.engine import Engine
from kn_bench.measure.lookup import looked_up
from kn_bench.measure.measurement import CaseResult, Measurement
from kn_bench.measure.protocols import Occasion
from kn_bench.model.rows import RowContext

Numbered = tuple[EncodedCase, int]
"""A case, and the number of the edit that its rows run under."""


class Reader:
    """Reads the answers to cases from a model that holds the edits of a sequence.

    Args:
        engine: engine of the model.
        method: name of the method.
        model: the edits that the model holds.
        brief: the tasks whose answers end where no verdict depends on what follows.
    """

    def __init__(
        self, engine: Engine, method: str, model: Composition, *, brief: Collection[Task] = PAIRS
    ) -> None:
        self.engine, self.name, self.model = engine, method, model
        self.brief = brief
        self.lm = engine.model

    def read(
        self, asked: Sequence[Numbered], occasion: Occasion, edits: RowContext
    ) -> dict[str, CaseResult]:
        """Return the results by case, without the records of their edits."""
        results: dict[str, CaseResult] = {}
        for portion in self._portions(asked):
            encoded = [case for case, _ in portion]
            with self.model.unedited() if self.model.changed else nullcontext():
                before = self.engine.before([p for case in encoded for p in case.probes])
            posed, excluded = self._posed(encoded)
            after = self._after(portion, posed, before, edits)
            for each in encoded:
                results[each.case.id] = self._case(each, occasion, before, after, excluded)
        return results

    def _portions(self, asked: Sequence[Numbered]) -> Iterator[list[Numbered]]:
        """Yield groups of cases whose log-probabilities fit into memory together."""
        portion: list[Numbered] = []
        probes = 0
        for encoded, number in asked:
            if portion and probes + len(encoded.probes) > self.engine.room:
                yield portion
                portion, probes = [], 0
            portion.append((encoded, number))
            probes += len(encoded.probes)
        if portion:
            yield portion

    def _posed(
        self, encoded: Sequence[EncodedCase]
    ) -> tuple[dict[tuple[str, str], EncodedProbe], dict[tuple[str, str], Exclusion]]:
        """Encode each probe behind the prefix of a prompt edit, if it still fits."""
        edit = self.model.asked_under
        plain = {(each.case.id, p.probe.id): p for each in encoded for p in each.probes}
        if not isinstance(edit, PromptEdit):
            return plain, {}
        posed: dict[tuple[str, str], EncodedProbe] = {}
        excluded: dict[tuple[str, str], Exclusion] = {}
        again = encode_cases([each.case for each in encoded], self.lm.tokens, prefix=edit.prefix)
        for each, outcome in zip(encoded, again, strict=True):
            case = each.case.id
            if isinstance(outcome, Exclusion):
                excluded |= {
                    (case, p.probe.id): replace(outcome, probe=p.probe.id) for p in each.probes
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
        """Return the edited model's answers, by case and probe id."""
        if not self.model.changed:
            return {key: before[content_of(probe)] for key, probe in posed.items()}
        edit = self.model.asked_under
        if isinstance(edit, LookupEdit):
            return {
                key: Asked(*looked_up(edit, probe, *before[content_of(probe)]))
                for key, probe in posed.items()
            }
        number = {encoded.case.id: number for encoded, number in portion}
        questions = [Question(probe, number[case]) for (case, _), probe in posed.items()]
        answers = self.engine.asker.ask(questions, edits, brief=self.brief)
        return {key: Asked(*answer) for key, answer in zip(posed, answers, strict=True)}

    def _case(
        self,
        encoded: EncodedCase,
        occasion: Occasion,
        before: Mapping[Any, Asked],
        after: Mapping[tuple[str, str], Asked],
        excluded: Mapping[tuple[str, str], Exclusion],
    ) -> CaseResult:
        case = encoded.case.id
        rows: list[Measurement] = []
        left_out = list(encoded.exclusions)
        for probe in encoded.probes:
            key = case, probe.probe.id
            if key in after:
                row = measurement_of(
                    self.lm.name,
                    self.name,
                    encoded.case,
                    probe,
                    before[content_of(probe)],
                    after[key],
                )
                rows.append(replace(row, occasion=occasion))
            else:
                left_out.append(excluded[key])
        return CaseResult(case, None, tuple(rows), tuple(left_out))
