"""What an editing method may offer, and how it takes part in a protocol.

    edit(requests) -> [Edit]                            each request on its own
    edit_together(requests) -> Edit                     one edit for all of a step
    begin() -> State
    edit_together(requests, state) -> (Edit, State)     the same, with something carried along

In a sequence the model that a method is bound to holds the edits of all steps before: keys, values
and gradients are read on the model as it stands. What published code takes from the unedited model
(context templates, C) is memoised by ``model.original_hash`` and computed under
``model.unedited()``; everything else by ``model.content_hash``, which changes with every step.

A state is a value of one sequence, never of the method or the process: the same method object
serves many sequences, and a killed sequence goes on from the state that was stored last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from kn_bench.cases.case import Case, EditRequest
from kn_bench.editing.edit import Edit, NotApplicable
from kn_bench.editing.faults import well_formed

State = Mapping[str, Tensor]
"""What a method carries from step to step: tensors by name, numbers as tensors without dimensions.

``{"sigma.4": ...}`` for a sum of K K^T at layer 4. Names and shapes may change from step to step.
A state is stored as a safetensors file, so its tensors are dense, hold values (not on the device
meta), and are of a dtype that such a file can hold, as all real ones are; complex128 is none.
"""

RESERVED = "__metadata__"
"""The name that a safetensors file keeps for itself."""

Kind = Literal["apart", "together", "carried"]
"""How a method makes the edit of a step; see :func:`kind_of`."""


@runtime_checkable
class BatchMethod(Protocol):
    """A method with one edit for many requests: MEMIT, EMMET, fine-tuning."""

    def edit_together(self, requests: Sequence[EditRequest], /) -> Edit:
        """Return one edit for all ``requests``; the model is untouched.

        A method that is not defined for some requests may offer ``refusals(requests)``, a
        NotApplicable or None for each: they are then left out beforehand. Without it a step that
        is refused is halved until the requests are found for which it is.

        Raises:
            NotApplicable: when the method is not defined for the model or one of the requests.
        """
        ...


@runtime_checkable
class CarryingMethod(Protocol):
    """A method that carries a state through a sequence: AlphaEdit, MEMIT-seq, UltraEdit, GRACE."""

    def begin(self) -> State:
        """Return the state before the first step; ``{}`` where there is nothing yet."""
        ...

    def edit_together(self, requests: Sequence[EditRequest], state: State, /) -> tuple[Edit, State]:
        """Return the edit of one step, and the state for the next; ``state`` is untouched.

        The edit is what this step adds to the model as it stands, not all that came before. An
        edit that cannot be added to others (a :class:`~kn_bench.editing.edit.WrapperEdit` with
        ``whole=True``) holds all steps so far and takes the place of the one before.

        Raises:
            NotApplicable: when the method is not defined for the model or one of the requests.
        """
        ...


Refusals = dict[int, NotApplicable]
"""Index of a request -> why a method is not defined for it."""


class Step(NamedTuple):
    """What a method made of one step: its edits, and what is carried to the next."""

    edits: tuple[Edit, ...]
    state: State


def kind_of(method: object) -> Kind:
    """Return how ``method`` makes the edit of a step: the most capable way that it offers.

    Raises:
        TypeError: for an object that offers none of the three, or a half of the third.
    """
    if hasattr(method, "begin"):
        if not hasattr(method, "edit_together"):
            raise TypeError(
                f"{type(method).__name__} has begin() but no edit_together(requests, state)"
            )
        return "carried"
    if hasattr(method, "edit_together"):
        return "together"
    if hasattr(method, "edit") or hasattr(method, "edit_cases"):
        return "apart"
    raise TypeError(
        f"{type(method).__name__}: expected edit(requests), edit_together(requests), or begin() "
        "with edit_together(requests, state)"
    )


def begin(method: object) -> State:
    """Return the state before the first step of a sequence; empty where none is carried."""
    return _state(method.begin(), "begin()") if isinstance(method, CarryingMethod) else {}


def _state(given: object, source: str) -> dict[str, Tensor]:
    """Return what a method carries as a state.

    Raises:
        TypeError: for what is none; one sentence that names the key.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{source} returned a {type(given).__name__} as its state: expected a mapping of names "
            "to tensors; return {} where there is nothing to carry"
        )
    for name, value in given.items():
        if not isinstance(name, str):
            raise TypeError(f"{source} returned a state with the key {name!r}: expected a text")
        if name == RESERVED or well_formed(name) != name:
            raise TypeError(
                f"{source} returned a state with the key {name!r}, which a safetensors file cannot "
                "hold: give it another name"
            )
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{source} returned a state whose {name!r} is a {type(value).__name__}: expected a "
                "tensor; make a number one by torch.tensor"
            )
        if obstacle := _obstacle(value):
            raise TypeError(
                f"{source} returned a state whose {name!r} is {obstacle}: expected a dense tensor "
                "with values, of a dtype that a safetensors file can hold"
            )
    return dict(given)


def _obstacle(tensor: Tensor) -> str:
    """Return what keeps ``tensor`` from being stored; "" if nothing does."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a tensor of the layout {tensor.layout}"
    if tensor.is_meta:
        return "a tensor on the device meta"
    return "" if _can_be_stored(tensor.dtype) else f"a tensor of {tensor.dtype}"


def _can_be_stored(dtype: torch.dtype) -> bool:
    try:
        safetensors.load(safetensors.save({"": torch.empty(0, dtype=dtype)}))
    except (KeyError, ValueError, SafetensorError):
        return False
    return True


def edit_cases(method: object, cases: Sequence[Case]) -> Sequence[Edit | NotApplicable]:
    """Return one edit for each case, from the cases where ``method`` takes them, else requests."""
    by_case = getattr(method, "edit_cases", None)
    if by_case is not None:
        own = [replace(case, request=copy(case.request)) for case in cases]
        edits: Sequence[Edit | NotApplicable] = by_case(own)
        return edits
    return edit_each(method, requests_of(cases))


def requests_of(cases: Iterable[Case]) -> list[EditRequest]:
    """Return the requests for a method to keep: copies, since all methods are asked the same."""
    return [copy(case.request) for case in cases]


def edit_each(method: object, requests: Sequence[EditRequest]) -> Sequence[Edit | NotApplicable]:
    """Return one edit a request, also by a method that only edits many together."""
    edit = getattr(method, "edit", None)
    if edit is not None:
        edits: Sequence[Edit | NotApplicable] = edit(requests)
        return edits
    alone: list[Edit | NotApplicable] = []
    for request in requests:
        try:
            alone += edit_step(method, [request], begin(method)).edits
        except NotApplicable as reason:
            alone.append(reason)
    return alone


def refusals(method: object, requests: Sequence[EditRequest], state: State) -> Refusals:
    """Return why ``method`` is not defined for some of ``requests``: index -> the reason.

    Asked only after the whole step was refused, or where the method can say so beforehand.
    """
    ask = getattr(method, "refusals", None)
    if ask is not None:
        return {i: reason for i, reason in enumerate(ask(requests)) if reason is not None}
    try:
        edit_step(method, requests, state)
    except NotApplicable as reason:
        if len(requests) == 1:
            return {0: reason}
        middle = len(requests) // 2
        first = refusals(method, requests[:middle], state)
        second = refusals(method, requests[middle:], state)
        return first | {middle + i: reason for i, reason in second.items()}
    return {}


def edit_step(method: object, requests: Sequence[EditRequest], state: State) -> Step:
    """Make the edit of one step, in whichever way ``method`` offers.

    A step of one request under a method that has ``edit`` only, or of several whose edits are then
    summed, is ``edit(requests)``.

    Raises:
        NotApplicable: when the method is not defined for the model or one of the requests.
        TypeError: see :func:`kind_of`; and for a method that returns something else.
    """
    kind = kind_of(method)
    if kind == "carried":
        returned = method.edit_together(requests, state)  # type: ignore[attr-defined]
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TypeError(
                f"edit_together(requests, state) returned a {type(returned).__name__}: expected "
                "the edit and the next state"
            )
        edit, after = returned
        return Step((edit,), _state(after, "edit_together(requests, state)"))
    if kind == "together":
        return Step((method.edit_together(requests),), state)  # type: ignore[attr-defined]
    edits = method.edit(requests)  # type: ignore[attr-defined]
    for edit in edits:
        if isinstance(edit, NotApplicable):
            raise edit
    return Step(tuple(edits), state)
