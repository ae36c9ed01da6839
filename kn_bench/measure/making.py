"""Make the edits of a step with whichever interface the method has; check and store them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kn_bench.cases.case import Case
from kn_bench.editing.composition import CannotCompose
from kn_bench.editing.edit import Edit, NoEdit, NotApplicable
from kn_bench.editing.faults import is_fault, reason_of, told
from kn_bench.editing.method import State, edit_cases, edit_step, kind_of, refusals, requests_of
from kn_bench.editing.provenance import Provenance, settings_of
from kn_bench.editing.surroundings import own_random
from kn_bench.editing.validation import checked
from kn_bench.measure.steps import EditedStep, StepRecord, StepStore
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.source import dtype_name
from kn_bench.model.transfer import to_host


class SequenceFailedError(Exception):
    """A method failed at a step: the rest of the sequence cannot be measured."""


class StepMaker:
    """Makes the steps of one sequence, or loads those that are stored.

    Args:
        lm: the model with the edits of all earlier steps.
        name: name of the method.
        method: the method, bound to ``lm``.
        store: store of the sequence; None if steps are not stored.
        collapsed: returns whether the model has collapsed; a method may then fail, and the sequence
            continues without that edit.
        seed: seed of what methods sample from global generators.

    Attributes:
        seconds: time spent on editing so far.
    """

    def __init__(
        self,
        lm: LanguageModel,
        name: str,
        method: Any,
        store: StepStore | None,
        collapsed: Callable[[], bool],
        seed: int = 0,
    ) -> None:
        self.lm, self.name, self.method, self.store = lm, name, method, store
        self.collapsed = collapsed
        self.seed = seed
        self.seconds = 0.0

    def make(self, step: int, cases: Sequence[Case], state: State) -> EditedStep:
        """Load the edits of a step, or make them and store them before they are used."""
        if self.store is not None:
            stored = self.store.load(step, device=self.lm.device)
            if stored is not None:
                return stored
        started = time.perf_counter()
        content, before = self.lm.content_hash, _checksum(self.lm)
        try:
            # what a method samples depends on the step alone, not on whether it was resumed
            with own_random(self.seed + step - 1):
                edited_step = self._edited(step, cases, state)
        except SequenceFailedError as failure:
            if not self.collapsed():
                raise
            # what a method does to a model that has collapsed is part of the finding
            record = StepRecord(step, tuple(case.id for case in cases), 1, 0.0, {}, str(failure))
            edited_step = EditedStep(record, (NoEdit(notes={"failed": str(failure)}),), state)
        if _checksum(self.lm) != before:
            raise SequenceFailedError(
                f"{self.name} changed the model's parameters while editing; a method must return "
                "its edit as a value and leave the model alone"
            )
        seconds = time.perf_counter() - started
        self.seconds += seconds
        record = edited_step.record
        n_edits = len(edited_step.edits)
        record = StepRecord(step, record.edited, n_edits, seconds, record.refused, record.failed)
        edited_step = replace(edited_step, record=record)
        if self.store is not None:
            origin = Provenance(
                model=self.lm.name,
                model_hash=content,
                method=self.name,
                settings=settings_of(self.method),
                dtype=dtype_name(self.lm.dtype),
            )
            if len(cases) == 1:
                origin = origin.of(cases[0].request)
            if not self.store.save(edited_step, origin):
                self.store = None  # code is not stored, so the sequence cannot be resumed
        return edited_step

    def _edited(self, step: int, cases: Sequence[Case], state: State) -> EditedStep:
        refused: dict[str, str] = {}
        left = list(cases)
        try:
            if hasattr(self.method, "refusals"):
                left = self._without_refused(left, state, refused)
            edits, after = self._ask_method(left, state, refused)
        except NotApplicable as reason:
            if len(left) == 1:
                refused[left[0].id] = reason_of(reason)
                left, edits, after = [], (), state
            else:
                left = self._without_refused(left, state, refused)
                edits, after = self._ask_method(left, state, refused)
        except SequenceFailedError as failure:
            raise SequenceFailedError(f"{failure} at step {step}") from None
        except CannotCompose:
            raise
        except BaseException as error:  # a plug-in's own code: anything may come
            if not is_fault(error):
                raise
            raise SequenceFailedError(
                f"{self.name} failed at step {step}: {told(error)}"
            ) from error
        edited = tuple(case.id for case in left if case.id not in refused)
        return EditedStep(StepRecord(step, edited, len(edits), 0.0, refused), edits, after)

    def _ask_method(
        self, cases: Sequence[Case], state: State, refused: dict[str, str]
    ) -> tuple[tuple[Edit, ...], State]:
        if not cases:
            return (), state
        if kind_of(self.method) != "apart":
            made, state = edit_step(self.method, requests_of(cases), state)
            edits = checked(list(made), len(made), self.lm, self.name)
            for edit in edits:
                if isinstance(edit, NotApplicable):
                    raise edit
                if isinstance(edit, str):
                    raise SequenceFailedError(edit)
            return tuple(edit for edit in edits if isinstance(edit, Edit)), state
        edits = checked(edit_cases(self.method, cases), len(cases), self.lm, self.name)
        for case, edit in zip(cases, edits, strict=True):
            if isinstance(edit, NotApplicable):
                refused[case.id] = reason_of(edit)
            elif isinstance(edit, str):
                raise SequenceFailedError(edit)
        return tuple(edit for edit in edits if isinstance(edit, Edit)), state

    def _without_refused(
        self, cases: Sequence[Case], state: State, refused: dict[str, str]
    ) -> list[Case]:
        reasons = refusals(self.method, requests_of(cases), state)
        refused |= {cases[i].id: reason_of(reason) for i, reason in reasons.items()}
        return [case for i, case in enumerate(cases) if i not in reasons]


def _checksum(lm: LanguageModel) -> list[int]:
    """Sum the bits of every parameter: cheap enough for every step, unlike SHA-256."""
    sums = defaultdict(list)
    for parameter in lm.hf.parameters():
        sums[parameter.device].append(_sum(parameter))
    # each device is asked once: to wait for every sum by itself would cost more than the sums
    return [int(n) for of_device in sums.values() for n in to_host(torch.stack(of_device))[0]]


def _sum(tensor: Tensor) -> Int[Tensor, ""]:
    """Return the sum of a tensor's bytes, eight at a time, and of those left at its end."""
    plain = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if plain.storage_offset() % 8:  # a view into a file; torch requires multiples of 8 bytes
        plain = plain.clone()
    whole = len(plain) - len(plain) % 8
    # adding int32 up as int64 would convert every number first, thirty times as slow
    return plain[:whole].view(torch.int64).sum() + plain[whole:].sum()
