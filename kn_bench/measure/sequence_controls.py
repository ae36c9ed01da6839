"""The control of a sequence: at every step chance damage of the size of the method's edit.

A step's edit is the sum over its requests, so a batch of B rank-one edits has a random edit of rank
B and of the sum's norm; see :mod:`kn_bench.editing.equal_size`. The controls of a sequence pile up
as its edits do, and are asked at the same times on the same probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kn_bench.cases.case import EditRequest
from kn_bench.editing.composition import summed
from kn_bench.editing.edit import Edit, NotApplicable, apart
from kn_bench.editing.equal_size import control_of
from kn_bench.measure.measurement import CaseResult
from kn_bench.measure.steps import StepStore
from kn_bench.model.language_model import LanguageModel


class StepEdits:
    """The edits of a sequence's steps, by the least id of the cases that each edits.

    They stay on disk where they are stored: of a long sequence of fine-tunings the changes take
    many times the model's memory.
    """

    def __init__(self, lm: LanguageModel, store: StepStore | None) -> None:
        self._lm, self._store = lm, store
        self._steps: dict[str, int] = {}
        self._kept: dict[str, Edit] = {}

    def add(self, step: int, cases: Sequence[str], edit: Edit) -> None:
        """Remember the edit of a step."""
        if not cases:
            return
        self._steps[min(cases)] = step
        if self._store is None:
            # a method may write its next edit where this one lies
            self._kept[min(cases)] = apart(edit)

    def of(self, least: str) -> Edit | None:
        """Return the edit of a step; None where it is code, which is not stored."""
        if self._store is None:
            return self._kept.get(least)
        step = self._steps.get(least)
        stored = None if step is None else self._store.load(step, device=self._lm.device)
        return None if stored is None else summed(stored.edits)


class ControlMethod:
    """The method that makes the controls of a sequence.

    Args:
        lm: the model.
        edits: what they are as large as.
    """

    def __init__(self, lm: LanguageModel, edits: StepEdits) -> None:
        self._lm, self._edits = lm, edits

    def edit_together(self, requests: Sequence[EditRequest]) -> Edit:
        """Return a random edit of the size of the one that ``requests`` were given.

        Raises:
            NotApplicable: where there is no edit of equal size.
        """
        # the order of a batch changes nothing: not what is drawn either
        request = min(requests, key=lambda request: request.id)
        edit = self._edits.of(request.id)
        control = None if edit is None else control_of(edit, request, self._lm.d_mlp)
        if control is None:
            raise NotApplicable("there is no edit of equal size")
        return control


def beside(
    ours: Mapping[str, CaseResult], theirs: Mapping[str, CaseResult]
) -> dict[str, CaseResult]:
    """Return our results with the control of each case where both were measured."""
    return {
        case: replace(own, control=replace(theirs[case], edit=None))
        if own.measurements and theirs[case].measurements
        else own
        for case, own in ours.items()
    }
