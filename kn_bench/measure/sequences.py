"""Sequences and batches: many edits in one model, asked after their step and after the last one.

    for each step:   method -> edits -> stored -> added to the model
    immediate        the case's probes, on the model right after its step
    checkpoints      what the model can still do (kn_bench.measure.ability)
    retained         all cases' probes, on the model after the last step

Low-rank steps are asked in blocks: the weights are put back to the block's beginning, and every row
runs under the steps up to its own. So a step costs the same whatever came before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kn_bench.cases.case import Case, Exclusion
from kn_bench.editing.applying import RowEdits
from kn_bench.editing.composition import CannotCompose, Composition, UpToStep, summed
from kn_bench.editing.edit import (
    Edit,
    LowRankEdit,
    NoEdit,
    NotApplicable,
    WrapperEdit,
    describe,
    norm,
)
from kn_bench.editing.faults import is_fault, reason_of, text_of, told
from kn_bench.editing.method import State, begin, kind_of
from kn_bench.measure.ability import Abilities, Ability
from kn_bench.measure.answers import ALL, PAIRS
from kn_bench.measure.calling import LEAVE_ALONE
from kn_bench.measure.criteria import gives_expected
from kn_bench.measure.drawing import without_edited_neighbours
from kn_bench.measure.encoding import EncodedCase, EncodedProbe
from kn_bench.measure.engine import Engine
from kn_bench.measure.making import SequenceFailedError, StepMaker
from kn_bench.measure.measurement import (
    CONTROL,
    CaseResult,
    Checkpoint,
    EditRecord,
    UnitResult,
    control_name,
)
from kn_bench.measure.protocols import Moment, Occasion, Protocol, checkpoints
from kn_bench.measure.reader import Reader
from kn_bench.measure.sequence_controls import ControlMethod, StepEdits, beside
from kn_bench.measure.steps import EditedStep, StepStore, shared
from kn_bench.model.held import EditOutlivedError
from kn_bench.model.progress import STEP, stepwise
from kn_bench.model.rows import RowContext

BLOCK_RANK = 64
"""Low-rank steps are asked together until their updates have this rank in all."""
STOPPED = "the sequence was stopped before: the model had collapsed"


@dataclass(frozen=True)
class Plan:
    """One sequence to be run.

    Attributes:
        protocol: how many edits, in which steps.
        cases: in the order of editing; as many as the protocol has edits.
        number: which of the repetitions, from 0.
        stop_at_collapse: end the sequence at the checkpoint that finds the model collapsed.
    """

    protocol: Protocol
    cases: tuple[Case, ...]
    number: int = 0
    stop_at_collapse: bool = False

    def steps(self) -> Iterator[tuple[int, tuple[Case, ...]]]:
        """Yield the number of each step, from 1, and its cases."""
        size = self.protocol.per_step
        for step, first in enumerate(range(0, len(self.cases), size), start=1):
            yield step, self.cases[first : first + size]

    def step_of(self) -> dict[str, int]:
        """Return the step that edits each case."""
        return {case.id: step for step, cases in self.steps() for case in cases}


@dataclass
class _Block:
    """Steps that are in the model but not asked yet."""

    start: dict[str, torch.Tensor] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    cases: list[tuple[str, int]] = field(default_factory=list)
    rank: int = 0


def measure_sequence(
    engine: Engine,
    name: str,
    method: Any,
    plan: Plan,
    *,
    folder: Path | None = None,
    control: bool = False,
) -> UnitResult:
    """Edit by ``method`` step after step, and measure as the plan's protocol says.

    Errors of a method are not raised: the cases that cannot be measured carry the error, and the
    model is left as it was.

    Args:
        engine: engine of the model.
        name: name of the method.
        method: the method, bound to the engine's model, see :mod:`kn_bench.editing.method`.
        plan: what to edit, in which order.
        folder: folder in which steps are stored, and from which stored ones are loaded.
        control: measure the same sequence under random edits of equal size too, see
            :mod:`kn_bench.measure.sequence_controls`.
    """
    run = _Run(engine, name, method, plan, folder)
    result = run.result()
    return run.beside_control(result) if control else result


class _Run:
    """One sequence under way."""

    def __init__(
        self, engine: Engine, name: str, method: Any, plan: Plan, folder: Path | None
    ) -> None:
        self.engine, self.name, self.method, self.plan = engine, name, method, plan
        self.lm = engine.model
        self.is_control = name.startswith(CONTROL)
        self.store = StepStore(folder) if folder is not None else None
        self.step_edits = StepEdits(self.lm, self.store)
        self.immediate: dict[str, CaseResult] = {}
        self.retained: dict[str, CaseResult] = {}
        encoded = engine.encode(plan.cases, self.immediate)
        self.encoded = {c.case.id: c for c in without_edited_neighbours(encoded, plan.cases)}
        self.records: dict[str, EditRecord] = {}
        self.checkpoints: list[Checkpoint] = []
        self.block = _Block()
        self.ability: Ability | None = None
        self.edit_seconds = 0.0

    def result(self) -> UnitResult:
        started = time.perf_counter()
        try:
            kind_of(self.method)
            self._run()
        except NotApplicable as reason:
            self._rest(not_applicable=reason_of(reason))
        except SequenceFailedError as failure:
            self._rest(error=str(failure))
        except CannotCompose as reason:
            self._rest(not_applicable=f"{self.plan.protocol}: {reason}")
        except TypeError as failure:
            self._rest(error=f"{self.name} {self.plan.protocol}: {failure}")
        except EditOutlivedError as failure:
            self._discard(f"{self.name} {self.plan.protocol}: {failure}")
        finally:
            left = self.engine.put_back()  # the next method is not to pay for it
        if left:
            changed = " and ".join(left)
            self._discard(f"{self.name} changed {changed} during a sequence; {LEAVE_ALONE}")
        order = [case.id for case in self.plan.cases]
        retained = {case: self.retained[case] for case in order} if self._keeps else {}
        spent = time.perf_counter() - started
        return UnitResult(
            self.lm.name,
            self.name,
            {case: self.immediate[case] for case in order},
            self.edit_seconds,
            spent - self.edit_seconds,
            retained,
            tuple(self.checkpoints),
        )

    def beside_control(self, result: UnitResult) -> UnitResult:
        """Return the result of this run with that of the control of each measured case."""
        method = ControlMethod(self.lm, self.step_edits)
        other = _Run(self.engine, control_name(self.name), method, self.plan, None)
        other.encoded = {id: c for id, c in other.encoded.items() if id in self.records}
        control = other.result()
        return replace(
            result,
            results=beside(result.results, control.results),
            retained=beside(result.retained, control.retained),
            measure_seconds=result.measure_seconds + control.measure_seconds,
        )

    @property
    def _keeps(self) -> bool:
        return self.plan.protocol.name == "sequence"

    def _run(self) -> None:
        if self._keeps and not self.is_control:
            self.ability = Ability(self.engine, self.plan.cases)
            self._note(0, self.ability.unedited, [])
        stops = set(checkpoints(self.plan.protocol.steps))
        state = self._begun()
        seed = self.engine.seed
        maker = StepMaker(self.lm, self.name, self.method, self.store, self._collapsed, seed)
        with Composition(self.lm) as model:
            self.model = model
            brief = ALL if self.is_control else PAIRS
            self.reader = Reader(self.engine, self.name, model, brief=brief)
            for step, cases in stepwise(self.lm.progress, STEP, list(self.plan.steps())):
                edited_step = maker.make(step, [c for c in cases if c.id in self.encoded], state)
                self.edit_seconds = maker.seconds
                state = edited_step.state
                self._take(edited_step, step)
                if self.ability is not None and step in stops:
                    self._ask_block()
                    self._look(step)
                    if self.plan.stop_at_collapse and self.checkpoints[-1].collapsed_at:
                        break
            self._ask_block()
            if self._keeps:
                edited = [(case, 0) for case in self.records]
                self.retained |= self._readings(edited, "retained", self._as_it_stands())
        self._rest(stopped=True)

    def _begun(self) -> State:
        try:
            return begin(self.method)
        except NotApplicable:
            raise
        except BaseException as error:  # a plug-in's own code
            if not is_fault(error):
                raise
            raise SequenceFailedError(f"{self.name} failed at begin(): {told(error)}") from error

    # -- a step ----------------------------------------------------------------------------

    def _take(self, edited_step: EditedStep, step: int) -> None:
        """Add the edits of a step to the model, and measure at once what cannot wait."""
        record = edited_step.record
        for case, reason in record.refused.items():
            self.immediate[case] = self.retained[case] = self._empty(case, not_applicable=reason)
        seconds = record.seconds / max(1, len(record.edited))
        for case, edit in zip(record.edited, shared(edited_step), strict=True):
            self.records[case] = EditRecord(seconds, describe(edit), norm(edit), dict(edit.notes))
        if not edited_step.edits:
            return
        if len(edited_step.edits) > 1:  # each made by itself: the step is their sum
            edited_step = replace(edited_step, edits=(summed(edited_step.edits),))
        (edit,) = edited_step.edits
        if not self.is_control:  # its own edits are never asked for
            self.step_edits.add(step, record.edited, edit)
        waits = isinstance(edit, LowRankEdit | NoEdit) and isinstance(
            self.model.asked_under, NoEdit
        )
        if not waits:
            self._ask_block()
        if not self.block.edits:
            self.block = _Block(start=self.model.snapshot())
        try:
            self.model.add([edit])
        except CannotCompose:
            raise
        except ValueError as error:
            raise SequenceFailedError(f"{self.name}: {text_of(error)}") from error
        except BaseException as error:
            if not isinstance(edit, WrapperEdit) or not is_fault(error):
                raise
            failure = f"{self.name} failed under its edits: {told(error)}"
            raise SequenceFailedError(failure) from error
        self.block.edits.append(edit)
        self.block.cases += [(case, len(self.block.edits)) for case in record.edited]
        self.block.rank += _rank(edit)
        if not waits:
            cases = [(case, 0) for case, _ in self.block.cases]
            self.block = _Block()
            self.immediate |= self._readings(cases, "immediate", self._as_it_stands())
        elif self.block.rank >= BLOCK_RANK:
            self._ask_block()

    # -- asking ----------------------------------------------------------------------------

    def _ask_block(self) -> None:
        """Ask the immediate questions of the steps that are still waiting for them."""
        block, self.block = self.block, _Block()
        if not block.cases:
            return
        with self.model.as_of(block.start):
            edits = UpToStep(self.lm, block.edits)
            self.immediate |= self._readings(block.cases, "immediate", edits)

    def _as_it_stands(self) -> RowContext:
        return RowEdits(self.lm, [self.model.asked_under])

    def _readings(
        self, asked: Sequence[tuple[str, int]], when: Moment, edits: RowContext
    ) -> dict[str, CaseResult]:
        """Return the cases' results; each case's rows run under the edit with its number."""
        numbered = [(self.encoded[case], number) for case, number in asked]
        with self._blamed():
            results = self.reader.read(numbered, self._occasion(when), edits)
        if when == "retained":  # an edit is recorded once
            return results
        return {case: replace(r, edit=self.records[case]) for case, r in results.items()}

    def _occasion(self, when: Moment) -> Occasion:
        return Occasion(str(self.plan.protocol), self.plan.number, when)

    # -- checkpoints -----------------------------------------------------------------------

    def _look(self, step: int) -> None:
        assert self.ability is not None
        with self._blamed():
            held = self._held()
            seen = self.ability.look(self.model) if self.model.changed else self.ability.unedited
        self._note(step, seen, held)

    def _held(self) -> list[bool]:
        """Return whether each edit so far still gives the new answer to its prompt."""
        cases = [self.encoded[case_id] for case_id in self.records]
        asked = [(replace(case, probes=_reliability(case)), 0) for case in cases]
        results = self.reader.read(asked, self._occasion("retained"), self._as_it_stands())
        return [
            gives_expected(m.after, m.task)
            for result in results.values()
            for m in result.measurements
        ]

    def _note(self, step: int, seen: Abilities, held: Sequence[bool]) -> None:
        assert self.ability is not None
        collapsed = self.checkpoints[-1].collapsed_at if self.checkpoints else 0
        if step and not collapsed and self.ability.collapsed(seen):
            collapsed = step
        self.checkpoints.append(
            Checkpoint(
                step=step,
                edits=len(self.records),
                retained=sum(held) / len(held) if held else None,
                n_retained=len(held),
                blimp=seen.blimp,
                n_blimp=seen.n_blimp,
                perplexity=seen.perplexity,
                n_tokens=seen.n_tokens,
                kl=seen.kl,
                n_neutral=seen.n_neutral,
                known=seen.known,
                n_known=seen.n_known,
                norms=seen.norms,
                collapsed_at=collapsed,
            )
        )

    def _collapsed(self) -> bool:
        if self.ability is None:
            return False
        return self.ability.collapsed(self.ability.look(self.model))

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Blame the method for errors under a wrapper, which is its own code."""
        try:
            yield
        except BaseException as error:
            if not self.model.wraps or not is_fault(error):
                raise
            failure = f"{self.name} failed under its edits: {told(error)}"
            raise SequenceFailedError(failure) from error

    # -- what was not measured -------------------------------------------------------------

    def _discard(self, error: str) -> None:
        """Drop all results but the unedited model's: it was not what its edits say."""
        unfit = {c: r for c, r in self.immediate.items() if c not in self.encoded}
        self.immediate, self.retained = unfit, {}
        self.checkpoints = self.checkpoints[:1]  # taken before the method was asked for anything
        self._rest(error=error)

    def _empty(self, case: str, **why: Any) -> CaseResult:
        encoded = self.encoded.get(case)
        return CaseResult(case, None, (), encoded.exclusions if encoded else (), **why)

    def _rest(self, *, stopped: bool = False, **why: str) -> None:
        """Give every case without a result the reason why it has none."""
        for case in (case.id for case in self.plan.cases):
            if stopped:
                empty = CaseResult(case, None, (), (Exclusion(case, STOPPED),))
            else:
                empty = self._empty(case, **why)
            first = self.immediate.setdefault(case, empty)
            if case not in self.encoded:  # it does not fit: the same reason both times
                self.retained.setdefault(case, first)
            self.retained.setdefault(case, empty)


def _reliability(encoded: EncodedCase) -> tuple[EncodedProbe, ...]:
    return tuple(probe for probe in encoded.probes if probe.probe.criterion == "reliability")


def _rank(edit: Edit) -> int:
    if not isinstance(edit, LowRankEdit):
        return 1
    return max((update.u.shape[1] for update in edit.updates), default=1)
