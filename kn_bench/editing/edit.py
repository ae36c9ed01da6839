"""Edits as values: what a method returns. None of them has touched a model.

    LowRankEdit   out += (key @ u) @ v     at down-projections      ROME, KN-edit, MEMIT
    NeuronEdit    neurons scaled           at the answer position   KN suppress / enhance
    DenseEdit     W += delta               any named parameters     fine-tuning
    PromptEdit    a prefix in the prompt   no weight                in-context editing
    LookupEdit    a table of answers       no weight                the oracle
    NoEdit        nothing                                           the control
    WrapperEdit   the model in a context manager of the method's own

The first two, and the prompt and lookup edits, are applied row by row inside a batch and touch no
weight. The dense edit and the wrapper are applied in place, one at a time, with a verified restore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.cases.case import Cloze, EditRequest

Notes = dict[str, float | int | str | bool]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Base of all edits. ``notes`` are recorded with the run (loss, norms, ...)."""

    notes: Notes = field(default_factory=dict)


@dataclass(frozen=True)
class NoEdit(Edit):
    """Changes nothing."""


@dataclass(frozen=True)
class LowRank:
    """W' = W + u v at one site, W taken as the map key [d_mlp] -> value [d_model]."""

    layer: int
    u: Float[Tensor, "d_mlp rank"]
    v: Float[Tensor, "rank d_model"]


@dataclass(frozen=True)
class LowRankEdit(Edit):
    """Low-rank updates of down-projections, at most one a layer."""

    updates: tuple[LowRank, ...]


@dataclass(frozen=True)
class NeuronScale:
    """Neurons of one site, multiplied by ``factor`` (0 suppresses, 2 enhances)."""

    layer: int
    neurons: Int[Tensor, " n"]
    factor: float


@dataclass(frozen=True)
class NeuronEdit(Edit):
    """Scales neurons at the answer position: the mask, or the last prompt token and all after."""

    scales: tuple[NeuronScale, ...]


@dataclass(frozen=True)
class DenseEdit(Edit):
    """Deltas by parameter name, as in ``model.named_parameters()``, in the weight's own layout."""

    deltas: Mapping[str, Tensor]


@dataclass(frozen=True)
class PromptEdit(Edit):
    """A text put in front of every prompt, followed by a space."""

    prefix: str


@dataclass(frozen=True)
class LookupEdit(Edit):
    """A table of answers: for a listed cloze the answer is certain, else the model's own.

    ``answers`` maps cloze -> answer text, or several where probes of one case ask the same cloze
    for different pairs of words (this/these and that/those): each is preferred to any word that is
    not listed.
    """

    answers: Mapping[Cloze, str | tuple[str, ...]]


@dataclass(frozen=True)
class WrapperEdit(Edit):
    """A change of the model by a context manager of the method's own (hooks, added modules).

    ``apply(hf_model)`` must undo all it did on exit; parameters and buffers are verified.

    Attributes:
        whole: in a sequence, it holds all steps so far and takes the place of the wrapper before
            it; else the wrappers of all steps are open at once, the first outermost.
    """

    apply: Callable[[Any], AbstractContextManager[object]]
    whole: bool = False


class Method(Protocol):
    """An editing method bound to one loaded model: what a method's fixture returns."""

    def edit(self, requests: Sequence[EditRequest], /) -> Sequence[Edit | NotApplicable]:
        """One edit a request, in order, each independent of the others; the model is untouched.

        In place of an edit a NotApplicable says why there is none for that one request.

        Raises:
            NotApplicable: when the method is not defined for the model or the requests.
        """
        ...


class NotApplicable(Exception):  # noqa: N818 - a verdict, not an error
    """A method is not defined here: ROME on a masked model. Its text is the skip's reason."""


def norm(edit: Edit) -> float:
    """Frobenius norm of the weight change of ``edit``; 0 where no weight changes."""
    if isinstance(edit, LowRankEdit):
        # |u v|_F^2 = tr(v v^T u^T u): never the full matrix
        squares = [
            torch.sum((up.u.double().T @ up.u.double()) * (up.v.double() @ up.v.double().T))
            for up in edit.updates
        ]
        return float(torch.stack(squares).sum().clamp_min(0).sqrt()) if squares else 0.0
    if isinstance(edit, DenseEdit):
        return float(sum(float(d.double().square().sum()) for d in edit.deltas.values()) ** 0.5)
    return 0.0


def describe(edit: Edit) -> str:
    """One line on what ``edit`` is, for the log."""
    if isinstance(edit, LowRankEdit):
        parts = (f"layer {up.layer} rank {up.u.shape[1]}" for up in edit.updates)
        return "low rank: " + (", ".join(parts) or "nothing")
    if isinstance(edit, NeuronEdit):
        parts = (f"layer {s.layer} x{s.factor:g} on {s.neurons.numel()}" for s in edit.scales)
        return "neurons: " + (", ".join(parts) or "none")
    if isinstance(edit, DenseEdit):
        return "dense: " + ", ".join(edit.deltas)
    if isinstance(edit, PromptEdit):
        return "prompt"
    if isinstance(edit, LookupEdit):
        return "lookup"
    return "wrapper" if isinstance(edit, WrapperEdit) else "none"
