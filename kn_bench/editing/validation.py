"""Whether what a method returned is edits of this model: one clear sentence if it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

import torch

from kn_bench.cases.case import HALF_A_CHARACTER
from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LowRankDeltas,
    LowRankEdit,
    MemoryEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    NotApplicable,
    PromptEdit,
    WrapperEdit,
    apart,
    tensors_of,
    with_notes,
)
from kn_bench.editing.faults import told, well_formed
from kn_bench.model.language_model import LanguageModel

LONGEST = 1000
"""Characters of a note that are kept."""


def checked(
    returned: Any, wanted: int, model: LanguageModel, method: str
) -> list[Edit | NotApplicable | str]:
    """Return one entry a request: the edit, why none applies, or what is wrong with it.

    The edits have plain notes, and tensors that their method does not write to any more.

    Raises:
        ValueError: when it is no list of edits, or not one a request.
    """
    if not isinstance(returned, Sequence) or isinstance(returned, str):
        raise ValueError(
            f"{method} returned a {type(returned).__name__}: expected a list with one edit a "
            "request"
        )
    if len(returned) != wanted:
        raise ValueError(
            f"{method} returned {len(returned)} edits: expected one for each of {wanted} requests"
        )
    # one object may serve many requests, and remains one
    outcomes = {id(edit): edit for edit in returned}
    for place, edit in outcomes.items():
        if not isinstance(edit, NotApplicable):
            problem, own = _own(edit, model)
            outcomes[place] = f"{method} {problem}" if problem else own
    return [outcomes[id(edit)] for edit in returned]


def _own(edit: Any, model: LanguageModel) -> tuple[str, Edit]:
    """Return what is wrong with ``edit``, and the edit as it is kept."""
    if not isinstance(edit, Edit):
        return (
            f"returned a {type(edit).__name__} in place of an edit (LowRankEdit, NeuronEdit, "
            "DenseEdit, PromptEdit, MemoryEdit or WrapperEdit)"
        ), NoEdit()
    try:
        problem = next(_complaints(edit, model), "")
        if not problem and not _too_large(edit, model):
            edit = apart(edit)
        return problem, with_notes(edit, plain_notes(edit.notes))
    except Exception as error:  # fields of any type: one malformed edit spares the others
        return f"returned a {type(edit).__name__} that cannot be read ({told(error)})", NoEdit()


def _too_large(edit: Edit, model: LanguageModel) -> bool:
    """Tell whether an edit is not to be copied: dense deltas may be as large as the model.

    A parameter of the model, or a view of one, is copied all the same.
    """
    if not isinstance(edit, DenseEdit) or isinstance(edit.deltas, LowRankDeltas):
        return False
    parameters = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    return all(d.untyped_storage().data_ptr() not in parameters for d in edit.deltas.values())


def _complaints(edit: Edit, model: LanguageModel) -> Iterator[str]:
    if isinstance(edit, PromptEdit) and not edit.prefix.strip():
        yield "returned a PromptEdit with an empty prefix"
    if isinstance(edit, PromptEdit) and edit.prefix != well_formed(edit.prefix):
        yield f"returned a PromptEdit: {HALF_A_CHARACTER}"
    if isinstance(edit, LowRankEdit):
        for up in edit.updates:
            yield from _layer(up.layer, model)
            yield from _real(f"update of layer {up.layer}", up.u, up.v)
            d_mlp, d_model = model.weight(up.layer).shape
            good = up.u.ndim == up.v.ndim == 2 and up.u.shape[1] == up.v.shape[0]
            if not good or (up.u.shape[0], up.v.shape[1]) != (d_mlp, d_model):
                yield (
                    f"returned a low-rank update of shapes {tuple(up.u.shape)} and "
                    f"{tuple(up.v.shape)}; layer {up.layer} needs ({d_mlp}, rank) and "
                    f"(rank, {d_model})"
                )
            yield from _finite(f"update of layer {up.layer}", up.u, up.v)
    if isinstance(edit, NeuronEdit):
        seen: set[tuple[int, int]] = set()
        for scale in edit.scales:
            yield from _layer(scale.layer, model)
            yield from _indices(scale)
            width = model.weight(scale.layer).shape[0]
            if (
                scale.neurons.numel()
                and not 0 <= int(scale.neurons.min()) <= int(scale.neurons.max()) < width
            ):
                yield f"scales a neuron outside 0 to {width - 1} of layer {scale.layer}"
            yield from _factor(scale)
            places = {(scale.layer, neuron) for neuron in scale.neurons.tolist()}
            if places & seen:
                yield (
                    f"scales a neuron of layer {scale.layer} by two factors: list each once, with "
                    "their product"
                )
            seen |= places
    if isinstance(edit, DenseEdit) and isinstance(edit.deltas, LowRankDeltas):
        for name, factors in edit.deltas.factors.items():
            yield from _real(f"delta of {name!r}", *factors)
    if isinstance(edit, DenseEdit):
        for name, delta in edit.deltas.items():
            if not isinstance(name, str):
                yield f"returned a delta of {name!r}: expected the name of a parameter"
            yield from _real(f"delta of {name!r}", delta)
            yield from _finite(f"delta of {name!r}", delta)
    if isinstance(edit, WrapperEdit) and not callable(edit.apply):
        yield (
            f"returned a WrapperEdit of a {type(edit.apply).__name__}: expected a function that "
            "takes the model and returns a context manager"
        )
    if isinstance(edit, MemoryEdit):
        if edit.module not in dict(model.hf.named_modules()):
            yield f"has a memory beside {edit.module!r}, which is no module of {model.name}"
        for name, tensor in tensors_of(edit).items():
            yield from _finite(f"memory whose {name} hold something", tensor)


def _layer(layer: Any, model: LanguageModel) -> Iterator[str]:
    if type(layer) is not int:
        yield f"edits layer {layer!r}: expected a whole number"
    if not 0 <= layer < model.n_layers:
        yield f"edits layer {layer}; {model.name} has layers 0 to {model.n_layers - 1}"


def _real(what: str, *tensors: Any) -> Iterator[str]:
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            yield f"returned an {what} of {kind}: expected a tensor of floating-point numbers"


def _indices(scale: NeuronScale) -> Iterator[str]:
    neurons = scale.neurons
    if (
        neurons.dtype in (torch.bool, torch.uint8)
        or neurons.is_floating_point()
        or neurons.is_complex()
    ):
        yield f"scales neurons of layer {scale.layer} given as {neurons.dtype}: expected indices"
    if neurons.ndim != 1:
        yield f"scales neurons of layer {scale.layer} in {neurons.ndim} dimensions: expected one"
    if len(set(neurons.flatten().tolist())) != neurons.numel():
        yield f"scales a neuron of layer {scale.layer} twice: list each once"


def _factor(scale: NeuronScale) -> Iterator[str]:
    factor: Any = scale.factor
    single = isinstance(factor, torch.Tensor) and factor.ndim == 0
    number = factor.item() if single else factor
    if not isinstance(number, Real):
        yield (
            f"scales neurons of layer {scale.layer} by a {type(factor).__name__}: expected one "
            "real number"
        )
    if not math.isfinite(number):
        yield f"returned a factor at layer {scale.layer} that is not finite (NaN or infinity)"


def plain_notes(notes: Any) -> dict[str, float | int | str | bool]:
    """Return a method's notes as the log can hold them: whatever else they hold becomes text.

    A note is a remark, and no reason to lose a measurement: NaN is written as "nan".
    """
    if not isinstance(notes, Mapping):
        return {"notes": _plain_note(notes)}
    return {well_formed(str(name))[:LONGEST]: _plain_note(value) for name, value in notes.items()}


def _plain_note(value: Any) -> float | int | str | bool:
    if hasattr(value, "item") and getattr(value, "size", None) != 0:
        with suppress(ValueError, RuntimeError, TypeError):  # of several elements
            value = value.item()
    if type(value) is bool or (type(value) is int and abs(value) < 2**63):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # an object of the method's own
        text = f"a {type(value).__name__}"
    return well_formed(text)[:LONGEST]


def _finite(what: str, *tensors: torch.Tensor) -> Iterator[str]:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        yield f"returned a {what} that is not finite (NaN or infinity)"
