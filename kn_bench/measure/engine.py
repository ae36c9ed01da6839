"""The engine: a method and a unit of cases in, measurements out.

    cases -> fitted -> method.edit(requests) -> edits -> questions before and after -> measurements

The unedited model is asked once for each prompt, whatever the number of methods; edits that touch
no weight go through the model together.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kn_bench.cases.case import Case, Exclusion, Task
from kn_bench.editing.applying import IN_PLACE, RowEdits, in_place
from kn_bench.editing.edit import (
    Edit,
    LookupEdit,
    Method,
    NoEdit,
    NotApplicable,
    PromptEdit,
    describe,
    norm,
)
from kn_bench.editing.equal_size import controls_of
from kn_bench.editing.faults import is_fault, reason_of, text_of, told
from kn_bench.editing.surroundings import Surroundings
from kn_bench.editing.validation import plain_notes
from kn_bench.measure.answers import ALL, PAIRS, Asker, Question
from kn_bench.measure.asked import Asked, content_of, measurement_of
from kn_bench.measure.cache import AnswerCache
from kn_bench.measure.calling import Caller
from kn_bench.measure.drawing import without_edited_neighbours
from kn_bench.measure.encoding import EncodedCase, EncodedProbe, encode_cases
from kn_bench.measure.lookup import looked_up
from kn_bench.measure.measurement import CaseResult, EditRecord, UnitResult, control_name
from kn_bench.measure.writing import Writer
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.rows import UNEDITED


@dataclass(frozen=True)
class _Edited:
    """One case with the edit that the method made for it."""

    encoded: EncodedCase
    edit: Edit
    record: EditRecord


class Engine:
    """Measures methods on one model.

    Args:
        model: the model; its parameters are hashed at once, to be held to that hash.
        cache: folder for the unedited model's answers, by content; None keeps them in memory.
        memory: bytes that the model's work may take, see :mod:`kn_bench.model.batching`; None
            leaves them as they are.
        seed: kept for methods' own use; the engine draws nothing.

    Attributes:
        asker: puts questions to the model as it stands.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        cache: Path | None = None,
        memory: int | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.seed = seed
        self._hash = model.verified_hash
        self._surroundings = Surroundings(model)
        key = f"{model.content_hash}-{model.behaviour_hash}-{model.device.type}"
        self._cache = AnswerCache(cache, key) if cache else None
        self.asker = Asker(model)
        if memory is not None:
            model.batcher.memory = memory

    # -- measuring a method ----------------------------------------------------------------

    @property
    def room(self) -> int:
        """Number of probes whose float32 answers, before and after, fit into memory at once."""
        return self.model.batcher.answer_bytes // (2 * 4 * self.model.vocabulary)

    def measure(
        self,
        method_name: str,
        method: Method,
        cases: Sequence[Case],
        *,
        control: bool = False,
        writer: Writer | None = None,
        whole: bool = False,
    ) -> UnitResult:
        """Edit every case by ``method``, and ask all its probes before and after the edit.

        Errors of a method are not raised: the results of the cases at which it fails carry the
        error, in one sentence each, and the model is left as it was.

        With ``control`` an edit of equal size is asked the same, see
        :mod:`kn_bench.editing.equal_size`; with ``writer`` the models also write freely, see
        :mod:`kn_bench.measure.writing`. With ``whole`` the cases are all that are measured: where
        one edit serves several, locality is not asked about what it changes for another of them.
        """
        started = time.perf_counter()
        results: dict[str, CaseResult] = {}
        encoded = self.encode(cases, results)
        edited, failed = self._edit(method_name, method, encoded)
        results.update(failed)
        if whole:
            edited = _without_edited_neighbours(edited)
        middle = time.perf_counter()
        self._measure_all(method_name, edited, results)
        if control:
            self._measure_controls(method_name, edited, results)
        if writer is not None:
            self._write(writer, method_name, edited, results)
        order = {case.id: results[case.id] for case in cases}
        ended = time.perf_counter()
        return UnitResult(self.model.name, method_name, order, middle - started, ended - middle)

    def encode(self, cases: Sequence[Case], results: dict[str, CaseResult]) -> list[EncodedCase]:
        """Encode the cases; those that cannot be encoded go into ``results``."""
        tokens = self.model.tokens
        by_key = {_encoded_key(case): case for case in cases}
        outcomes: dict[Any, EncodedCase | Exclusion] = self.model.memo.get_many(
            by_key, lambda missing: encode_cases([by_key[key] for key in missing], tokens)
        )
        encoded = []
        for key, case in by_key.items():
            outcome = outcomes[key]
            if isinstance(outcome, Exclusion):
                results[case.id] = CaseResult(case.id, None, (), (outcome,))
            else:
                encoded.append(outcome)
        return encoded

    # -- editing ---------------------------------------------------------------------------

    def _edit(
        self, name: str, method: Method, encoded: Sequence[EncodedCase]
    ) -> tuple[list[_Edited], dict[str, CaseResult]]:
        """Return the method's validated edits, and by case what it refused or failed at."""
        if not encoded:
            return [], {}
        caller = Caller(name, method, self.model, self.seed, self.put_back)
        edited: list[_Edited] = []
        failed: dict[str, CaseResult] = {}
        for each, made in zip(encoded, caller.made([c.case for c in encoded]), strict=True):
            case, excluded, edit = each.case.id, each.exclusions, made.outcome
            if isinstance(edit, NotApplicable):
                failed[case] = CaseResult(case, None, (), excluded, not_applicable=reason_of(edit))
            elif isinstance(edit, str):
                failed[case] = CaseResult(case, None, (), excluded, error=edit)
            else:
                notes = plain_notes(edit.notes)
                record = EditRecord(made.seconds, describe(edit), norm(edit), notes)
                edited.append(_Edited(each, edit, record))
        return edited, failed

    def put_back(self) -> tuple[str, ...]:
        """Restore the model and the process; return what a method had changed.

        Raises:
            RuntimeError: if the weights cannot be read again.
            AnswersDifferError: if something was changed that cannot be put back.
        """
        left = self._surroundings.put_back()
        if self.model.parameter_hash() != self._hash:
            self.model.restore()
            if not any(what.startswith("the model's parameters") for what in left):
                left = ("the model's parameters", *left)
        self._surroundings.check_answers()
        return left

    # -- measuring -------------------------------------------------------------------------

    def _measure_all(
        self,
        name: str,
        edited: Sequence[_Edited],
        results: dict[str, CaseResult],
        *,
        brief: Collection[Task] = PAIRS,
    ) -> None:
        rowwise = [trial for trial in edited if not isinstance(trial.edit, IN_PLACE)]
        for portion in self._portions(rowwise):
            edits = RowEdits(self.model, [trial.edit for trial in portion])
            self._measure(name, portion, edits, results, brief)
        same: dict[int, list[_Edited]] = {}
        for trial in edited:
            if isinstance(trial.edit, IN_PLACE):
                # one object may serve many requests: a checkpoint is put in place once
                same.setdefault(id(trial.edit), []).append(trial)
        for group in same.values():
            for portion in self._portions(group):
                self._measure_in_place(name, portion, results, brief)

    def _measure_controls(
        self, name: str, edited: Sequence[_Edited], results: dict[str, CaseResult]
    ) -> None:
        """Ask the same probes under an edit of equal size, as far as verdicts need it."""
        requests = [trial.encoded.case.request for trial in edited]
        drawn = controls_of([trial.edit for trial in edited], requests, self.model.d_mlp)
        pairs = zip(edited, drawn, strict=True)
        controls = [replace(trial, edit=edit) for trial, edit in pairs if edit is not None]
        given: dict[str, CaseResult] = {}
        self._measure_all(control_name(name), controls, given, brief=ALL)
        for case, result in given.items():
            results[case] = replace(results[case], control=replace(result, edit=None))

    def _write(
        self, writer: Writer, name: str, edited: Sequence[_Edited], results: dict[str, CaseResult]
    ) -> None:
        """Have the models write freely about the cases that were measured."""
        for trial in edited:
            case = trial.encoded.case
            if results[case.id].error:
                continue
            try:
                written = writer.written(self.model, case, trial.edit)
                results[case.id] = replace(results[case.id], written=written)
            except BaseException as problem:  # a wrapper's own code, or what it broke
                if not is_fault(problem):
                    raise
                error = f"{name} failed while writing: {told(problem)}"
                results[case.id] = replace(results[case.id], error=error)
            self.put_back()

    def _portions(self, edited: Sequence[_Edited]) -> Iterator[list[_Edited]]:
        """Yield groups of cases whose log-probabilities fit into memory together."""
        portion: list[_Edited] = []
        probes = 0
        for trial in edited:
            if portion and probes + len(trial.encoded.probes) > self.room:
                yield portion
                portion, probes = [], 0
            portion.append(trial)
            probes += len(trial.encoded.probes)
        if portion:
            yield portion

    def _measure(
        self,
        name: str,
        edited: Sequence[_Edited],
        edits: RowEdits,
        results: dict[str, CaseResult],
        brief: Collection[Task],
    ) -> None:
        before = self.before([probe for trial in edited for probe in trial.encoded.probes])
        prefixed = _prefixed(edited, self.model)
        questions, owners = [], []
        for index, trial in enumerate(edited):
            if isinstance(trial.edit, NoEdit | LookupEdit):
                continue
            for probe in trial.encoded.probes:
                asked = prefixed[index].get(probe.probe.id, probe) if index in prefixed else probe
                if isinstance(asked, EncodedProbe):
                    questions.append(Question(asked, index))
                    owners.append((index, probe.probe.id))
        answers = self.asker.ask(questions, edits, brief=brief)
        after: list[dict[str, Asked]] = [{} for _ in edited]
        for (index, probe_id), answer in zip(owners, answers, strict=True):
            after[index][probe_id] = Asked(*answer)
        for index, trial in enumerate(edited):
            case = trial.encoded.case.id
            results[case] = self._result(name, trial, before, after[index], prefixed.get(index, {}))

    def _measure_in_place(
        self,
        name: str,
        group: Sequence[_Edited],
        results: dict[str, CaseResult],
        brief: Collection[Task],
    ) -> None:
        """Apply one edit in place, and ask the probes of all cases that share it."""
        probes = [probe for trial in group for probe in trial.encoded.probes]
        before = self.before(probes)
        try:
            with in_place(self.model, group[0].edit):
                questions = [Question(probe, 0) for probe in probes]
                answers = self.asker.ask(questions, UNEDITED, brief=brief)
            error = ""
        except ValueError as problem:
            error = f"{name}: {text_of(problem)}"
        except BaseException as problem:  # a wrapper's own code, or what it broke
            if not is_fault(problem):
                raise
            error = f"{name} failed under its edit: {told(problem)}"
        left = self.put_back()
        if left and not error:
            error = f"{name} left {_and(left)} changed after its edit was taken back"
        if error:
            for trial in group:
                case, excluded = trial.encoded.case.id, trial.encoded.exclusions
                results[case] = CaseResult(case, trial.record, (), excluded, error=error)
            return
        coming = iter(answers)
        for trial in group:
            after = {probe.probe.id: Asked(*next(coming)) for probe in trial.encoded.probes}
            results[trial.encoded.case.id] = self._result(name, trial, before, after, {})

    def _result(
        self,
        name: str,
        trial: _Edited,
        before: Mapping[Any, Asked],
        after: Mapping[str, Asked],
        prefixed: Mapping[str, EncodedProbe | Exclusion],
    ) -> CaseResult:
        rows, excluded = [], list(trial.encoded.exclusions)
        for probe in trial.encoded.probes:
            first = before[content_of(probe)]
            if isinstance(trial.edit, LookupEdit):
                second: Asked | None = Asked(
                    *looked_up(trial.edit, probe, first.answer, first.log_probs)
                )
            else:
                second = first if isinstance(trial.edit, NoEdit) else after.get(probe.probe.id)
            if second is None:
                outcome = prefixed[probe.probe.id]
                assert isinstance(outcome, Exclusion)
                excluded.append(outcome)
            else:
                rows.append(
                    measurement_of(self.model.name, name, trial.encoded.case, probe, first, second)
                )
        return CaseResult(trial.encoded.case.id, trial.record, tuple(rows), tuple(excluded))

    def before(self, probes: Sequence[EncodedProbe]) -> dict[Any, Asked]:
        """Return the unedited model's answers, by content; each distinct probe is asked once."""
        by_key = {("answer", *content_of(probe)): probe for probe in probes}

        def ask(missing: list[Any]) -> list[Asked]:
            questions = [Question(by_key[key], 0) for key in missing]
            return [Asked(*a) for a in self.asker.ask(questions, UNEDITED, self._cache)]

        answers = self.model.memo.get_many(by_key, ask)
        return {key[1:]: answer for key, answer in answers.items()}


def _encoded_key(case: Case) -> tuple[Any, ...]:
    """Return what an encoded case depends on: cases of one id may have other probes."""
    return ("encoded", case.id, case.request, case.probes)


def _without_edited_neighbours(edited: Sequence[_Edited]) -> list[_Edited]:
    """Exclude locality probes about subjects that the same edit changes for another case."""
    served: dict[int, list[EncodedCase]] = {}
    for trial in edited:
        # what changes nothing changes nothing for another case
        serving = trial if isinstance(trial.edit, NoEdit | LookupEdit) else trial.edit
        served.setdefault(id(serving), []).append(trial.encoded)
    spared = {
        each.case.id: each
        for encoded in served.values()
        for each in without_edited_neighbours(encoded, [one.case for one in encoded])
    }
    return [replace(trial, encoded=spared[trial.encoded.case.id]) for trial in edited]


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _prefixed(
    edited: Sequence[_Edited], model: LanguageModel
) -> dict[int, dict[str, EncodedProbe | Exclusion]]:
    """Encode the probes of prompt edits again, behind the prefix; by trial and probe id."""
    by_trial: dict[int, dict[str, EncodedProbe | Exclusion]] = {}
    for index, trial in enumerate(edited):
        if not isinstance(trial.edit, PromptEdit):
            continue
        (again,) = encode_cases([trial.encoded.case], model.tokens, prefix=trial.edit.prefix)
        probes = trial.encoded.probes
        if isinstance(again, Exclusion):
            by_trial[index] = {
                p.probe.id: Exclusion(again.case, again.reason, p.probe.id, again.detail)
                for p in probes
            }
            continue
        refitted: dict[str, EncodedProbe | Exclusion] = {p.probe.id: p for p in again.probes}
        refitted.update({e.probe: e for e in again.exclusions if e.probe is not None})
        by_trial[index] = {p.probe.id: refitted[p.probe.id] for p in probes}
    return by_trial
