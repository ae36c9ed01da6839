"""Whether what a method returned is edits of this model: one clear sentence if it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LowRankEdit,
    NeuronEdit,
    NotApplicable,
    PromptEdit,
)
from kn_bench.model.language_model import LanguageModel


def checked(
    made: Any, wanted: int, model: LanguageModel, method: str
) -> list[Edit | NotApplicable | str]:
    """A method's return value, one entry a request: the edit, why none applies, or what is wrong.

    Raises:
        ValueError: when it is no list of edits, or not one a request.
    """
    if not isinstance(made, Sequence) or isinstance(made, str):
        raise ValueError(
            f"{method} returned a {type(made).__name__}; edit(requests) must return a list with "
            "one edit a request"
        )
    if len(made) != wanted:
        raise ValueError(f"{method} returned {len(made)} edits for {wanted} requests")
    found: list[Edit | NotApplicable | str] = []
    for edit in made:
        problem = "" if isinstance(edit, NotApplicable) else _problem(edit, model)
        found.append(f"{method} {problem}" if problem else edit)
    return found


def _problem(edit: Any, model: LanguageModel) -> str:
    if not isinstance(edit, Edit):
        return (
            f"returned a {type(edit).__name__} in place of an edit (LowRankEdit, NeuronEdit, "
            "DenseEdit, PromptEdit or WrapperEdit)"
        )
    return next(_complaints(edit, model), "")


def _complaints(edit: Edit, model: LanguageModel) -> Iterator[str]:
    if isinstance(edit, PromptEdit) and not edit.prefix.strip():
        yield "returned a PromptEdit with an empty prefix"
    if isinstance(edit, LowRankEdit):
        for up in edit.updates:
            yield from _layer(up.layer, model)
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
        for scale in edit.scales:
            yield from _layer(scale.layer, model)
            width = model.weight(scale.layer).shape[0]
            if (
                scale.neurons.numel()
                and not 0 <= int(scale.neurons.min()) <= int(scale.neurons.max()) < width
            ):
                yield f"scales a neuron outside 0 to {width - 1} of layer {scale.layer}"
            yield from _finite(f"factor at layer {scale.layer}", torch.tensor(scale.factor))
    if isinstance(edit, DenseEdit):
        for name, delta in edit.deltas.items():
            yield from _finite(f"delta of {name!r}", delta)


def _layer(layer: int, model: LanguageModel) -> Iterator[str]:
    if not 0 <= layer < model.n_layers:
        yield f"edits layer {layer}; {model.name} has layers 0 to {model.n_layers - 1}"


def _finite(what: str, *tensors: torch.Tensor) -> Iterator[str]:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        yield f"returned a {what} that is not finite (NaN or infinity)"
