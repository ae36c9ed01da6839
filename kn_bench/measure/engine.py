"""The engine: a method and a unit of cases in, measurements out.

    cases -> fitted -> method.edit(requests) -> edits -> questions before and after -> measurements

The unedited model is asked once for each prompt, whatever the number of methods; edits that touch
no weight go through the model together.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from kn_bench.cases.case import Case, Exclusion
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
from kn_bench.editing.validation import checked
from kn_bench.measure.answers import Asker, Question
from kn_bench.measure.cache import AnswerCache
from kn_bench.measure.fitting import FittedCase, FittedProbe, fit_cases
from kn_bench.measure.lookup import looked_up
from kn_bench.measure.measurement import (
    Answer,
    CaseResult,
    EditRecord,
    Measurement,
    UnitResult,
)
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

POSITIONS = 16384
"""Default positions (rows x tokens) a batch; 4 layers x 128 wide: 200 MB of activations."""


class Asked(NamedTuple):
    """What the model said: the answer, and the log-probabilities it was read from."""

    answer: Answer
    log_probs: Float[Tensor, " vocabulary"]


@dataclass(frozen=True)
class _Edited:
    """One case on its way: what the method made of it."""

    fitted: FittedCase
    edit: Edit
    record: EditRecord


class Engine:
    """Measures methods on one model.

    Args:
        model: the model; its parameters are hashed at once, to be held to that hash.
        cache: folder for the unedited model's answers, by content; None keeps them in memory.
        memory: bytes that the unedited model's log-probabilities and a batch may take.
        seed: kept for methods' own use; the engine draws nothing.
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
        device = model.device.type
        self._cache = AnswerCache(cache, f"{model.content_hash}-{device}") if cache else None
        self._asker = Asker(model, tokens=_positions(model, memory))
        self._before: OrderedDict[Any, Asked] = OrderedDict()
        self._room = max(1024, (memory or 1 << 30) // 2 // (4 * model.vocabulary))
        self._fitted: dict[tuple[str, int], FittedCase | Exclusion] = {}

    # -- the one thing it does -------------------------------------------------------------

    def measure(self, method_name: str, method: Method, cases: Sequence[Case]) -> UnitResult:
        """Edit every case by ``method`` and put all its probes to the model before and after.

        Nothing that a method does wrong is raised: its cases' results carry the error, one
        sentence each, and the model is as it was.
        """
        started = time.perf_counter()
        results: dict[str, CaseResult] = {}
        fitted = self._fit(cases, results)
        edited, failed = self._edit(method_name, method, fitted)
        results.update(failed)
        middle = time.perf_counter()
        rowwise = [one for one in edited if not isinstance(one.edit, IN_PLACE)]
        for portion in self._portions(rowwise):
            edits = RowEdits(self.model, [one.edit for one in portion])
            self._measure(method_name, portion, edits, results)
        for one in edited:
            if isinstance(one.edit, IN_PLACE):
                self._measure_in_place(method_name, one, results)
        order = {case.id: results[case.id] for case in cases}
        ended = time.perf_counter()
        return UnitResult(self.model.name, method_name, order, middle - started, ended - middle)

    def _fit(self, cases: Sequence[Case], results: dict[str, CaseResult]) -> list[FittedCase]:
        new = [case for case in cases if (case.id, hash(case.request)) not in self._fitted]
        for case, outcome in zip(new, fit_cases(new, self.model.tokens), strict=True):
            self._fitted[case.id, hash(case.request)] = outcome
        fitted = []
        for case in cases:
            outcome = self._fitted[case.id, hash(case.request)]
            if isinstance(outcome, Exclusion):
                results[case.id] = CaseResult(case.id, None, (), (outcome,))
            else:
                fitted.append(outcome)
        return fitted

    # -- editing ---------------------------------------------------------------------------

    def _edit(
        self, name: str, method: Method, fitted: Sequence[FittedCase]
    ) -> tuple[list[_Edited], dict[str, CaseResult]]:
        """The method's edits, validated; what it refused or failed at, by case."""
        cases = [one.case for one in fitted]
        started = time.perf_counter()

        def all_of(**what: str) -> tuple[list[_Edited], dict[str, CaseResult]]:
            return [], {
                one.case.id: CaseResult(one.case.id, None, (), one.exclusions, **what)
                for one in fitted
            }

        if not cases:
            return [], {}
        try:
            by_case = getattr(method, "edit_cases", None)
            made = by_case(cases) if by_case else method.edit([case.request for case in cases])
        except NotApplicable as reason:
            return all_of(not_applicable=str(reason))
        except Exception as error:  # a plug-in's own code: anything may come, the run goes on
            return all_of(error=f"{name} failed while editing: {type(error).__name__}: {error}")
        if self.model.parameter_hash() != self._hash:
            self.model.restore()
            return all_of(
                error=f"{name} changed the model's parameters while editing; a method must return "
                "its edit as a value and leave the model alone"
            )
        seconds = (time.perf_counter() - started) / len(cases)
        try:
            edits = checked(made, len(cases), self.model, name)
        except ValueError as error:
            return all_of(error=str(error))
        return self._sorted_out(fitted, edits, seconds)

    def _sorted_out(
        self,
        fitted: Sequence[FittedCase],
        edits: Sequence[Edit | NotApplicable | str],
        seconds: float,
    ) -> tuple[list[_Edited], dict[str, CaseResult]]:
        edited: list[_Edited] = []
        failed: dict[str, CaseResult] = {}
        for one, edit in zip(fitted, edits, strict=True):
            case = one.case.id
            if isinstance(edit, NotApplicable):
                failed[case] = CaseResult(case, None, (), one.exclusions, not_applicable=str(edit))
            elif isinstance(edit, str):
                failed[case] = CaseResult(case, None, (), one.exclusions, error=edit)
            else:
                record = EditRecord(seconds, describe(edit), norm(edit), dict(edit.notes))
                edited.append(_Edited(one, edit, record))
        return edited, failed

    # -- measuring -------------------------------------------------------------------------

    def _portions(self, edited: Sequence[_Edited]) -> Iterator[list[_Edited]]:
        """Cases whose log-probabilities fit into memory together."""
        portion: list[_Edited] = []
        probes = 0
        for one in edited:
            if portion and probes + len(one.fitted.probes) > self._room:
                yield portion
                portion, probes = [], 0
            portion.append(one)
            probes += len(one.fitted.probes)
        if portion:
            yield portion

    def _measure(
        self,
        name: str,
        edited: Sequence[_Edited],
        edits: RowEdits,
        results: dict[str, CaseResult],
    ) -> None:
        before = self.before([probe for one in edited for probe in one.fitted.probes])
        prefixed = _prefixed(edited, self.model)
        questions, owners = [], []
        for index, one in enumerate(edited):
            if isinstance(one.edit, NoEdit | LookupEdit):
                continue
            for probe in one.fitted.probes:
                asked = prefixed[index].get(probe.probe.id, probe) if index in prefixed else probe
                if isinstance(asked, FittedProbe):
                    questions.append(Question(asked, index))
                    owners.append((index, probe.probe.id))
        answers = self._asker.ask(questions, edits)
        after: list[dict[str, Asked]] = [{} for _ in edited]
        for (index, probe_id), answer in zip(owners, answers, strict=True):
            after[index][probe_id] = Asked(*answer)
        for index, one in enumerate(edited):
            case = one.fitted.case.id
            results[case] = self._result(name, one, before, after[index], prefixed.get(index, {}))

    def _measure_in_place(self, name: str, one: _Edited, results: dict[str, CaseResult]) -> None:
        case = one.fitted.case.id
        before = self.before(one.fitted.probes)
        try:
            with in_place(self.model, one.edit):
                nothing = RowEdits(self.model, [NoEdit()])
                answers = self._asker.ask([Question(p, 0) for p in one.fitted.probes], nothing)
        except ValueError as error:
            results[case] = CaseResult(
                case, one.record, (), one.fitted.exclusions, error=f"{name}: {error}"
            )
            return
        after = {
            probe.probe.id: Asked(*answer)
            for probe, answer in zip(one.fitted.probes, answers, strict=True)
        }
        results[case] = self._result(name, one, before, after, {})

    def _result(
        self,
        name: str,
        one: _Edited,
        before: Mapping[Any, Asked],
        after: Mapping[str, Asked],
        prefixed: Mapping[str, FittedProbe | Exclusion],
    ) -> CaseResult:
        rows, excluded = [], list(one.fitted.exclusions)
        for probe in one.fitted.probes:
            first = before[_key(probe)]
            if isinstance(one.edit, LookupEdit):
                second: Asked | None = Asked(
                    *looked_up(one.edit, probe, first.answer, first.log_probs)
                )
            else:
                second = first if isinstance(one.edit, NoEdit) else after.get(probe.probe.id)
            if second is None:
                outcome = prefixed[probe.probe.id]
                assert isinstance(outcome, Exclusion)
                excluded.append(outcome)
            else:
                rows.append(
                    _measurement(self.model.name, name, one.fitted.case, probe, first, second)
                )
        return CaseResult(one.fitted.case.id, one.record, tuple(rows), tuple(excluded))

    def before(self, probes: Sequence[FittedProbe]) -> dict[Any, Asked]:
        """The unedited model's answers, by content; each distinct probe is asked once."""
        wanted = {_key(probe): probe for probe in probes}
        found = {key: self._before[key] for key in wanted if key in self._before}
        missing = [probe for key, probe in wanted.items() if key not in found]
        answers = self._asker.ask(
            [Question(probe, 0) for probe in missing],
            RowEdits(self.model, [NoEdit()]),
            self._cache,
        )
        for probe, answer in zip(missing, answers, strict=True):
            found[_key(probe)] = self._before[_key(probe)] = Asked(*answer)
        for key in wanted:
            if key in self._before:
                self._before.move_to_end(key)
        while len(self._before) > self._room:
            self._before.popitem(last=False)
        return found


def _key(fitted: FittedProbe) -> Any:
    """Everything an answer depends on besides the model."""
    probe = fitted.probe
    return (
        fitted.prompt_ids,
        fitted.answer_position,
        fitted.expected,
        fitted.rejected,
        probe.expected,
        probe.rejected,
        probe.aliases,
    )


def _prefixed(
    edited: Sequence[_Edited], model: LanguageModel
) -> dict[int, dict[str, FittedProbe | Exclusion]]:
    """Probes of prompt edits, fitted again with the prefix in front; by case and probe id."""
    found: dict[int, dict[str, FittedProbe | Exclusion]] = {}
    for index, one in enumerate(edited):
        if not isinstance(one.edit, PromptEdit):
            continue
        (again,) = fit_cases([one.fitted.case], model.tokens, prefix=one.edit.prefix)
        probes = one.fitted.probes
        if isinstance(again, Exclusion):
            found[index] = {
                p.probe.id: Exclusion(again.case, again.reason, p.probe.id, again.detail)
                for p in probes
            }
            continue
        refitted: dict[str, FittedProbe | Exclusion] = {p.probe.id: p for p in again.probes}
        refitted.update({e.probe: e for e in again.exclusions if e.probe is not None})
        found[index] = {p.probe.id: refitted[p.probe.id] for p in probes}
    return found


def _measurement(
    model: str, method: str, case: Case, fitted: FittedProbe, before: Asked, after: Asked
) -> Measurement:
    probe = fitted.probe
    kl = (before.log_probs.exp() * (before.log_probs - after.log_probs)).nansum()
    return Measurement(
        model=model,
        method=method,
        case=case.id,
        criterion=probe.criterion,
        probe=probe.id,
        kind=probe.kind,
        task=probe.task,
        relation=case.relation,
        source=case.source,
        cluster=case.cluster,
        expected=probe.expected,
        rejected=probe.rejected,
        n_expected=fitted.expected.n,
        n_rejected=fitted.rejected.n,
        before=before.answer,
        after=after.answer,
        kl=max(0.0, float(kl)),
    )


def _positions(model: LanguageModel, memory: int | None) -> int:
    """Positions a batch may have: half the budget over what one position takes, at float32."""
    if memory is None:
        return POSITIONS
    width = model.d_mlp * 3 + model.d_model * 8 + model.n_layers * model.d_model * 2
    return max(256, memory // 2 // (4 * (width + model.vocabulary // 8)))
