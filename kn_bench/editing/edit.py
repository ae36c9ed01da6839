"""Edits as values: what a method returns. None of them has touched a model.

    LowRankEdit   out += (key @ u) @ v     at down-projections      ROME, KN-edit, MEMIT
    NeuronEdit    neurons scaled           at the answer position   KN suppress / enhance
    DenseEdit     W += delta               any named parameters     fine-tuning, LoRA
    PromptEdit    a prefix in the prompt   no weight                in-context editing
    LookupEdit    a table of answers       no weight                the oracle
    NoEdit        nothing                                           the control
    MemoryEdit    a side memory            beside a linear module   GRACE, WISE
    WrapperEdit   the model in a context manager of the method's own

The first two, and the prompt and lookup edits, are applied row by row inside a batch and touch no
weight. The others are applied in place, one at a time, with a verified restore. All but the wrapper
are data: :func:`plain_of` and :func:`tensors_of` take them apart.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_bench.cases.case import Cloze, EditRequest
from kn_bench.editing.memories import Memory
from kn_bench.model.precision import wide_dtype

Notes = dict[str, float | int | str | bool]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Base of all edits.

    Two edits are equal when their notes and all that they hold are, tensors included.

    Attributes:
        notes: recorded with the run (loss, norms, ...).
        for_all: it belongs to no request: it was made elsewhere, and one control serves every case.
    """

    notes: Notes = field(default_factory=dict)
    for_all: bool = field(default=False, repr=False, compare=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit) or type(other) is not type(self):
            return NotImplemented
        return self.notes == other.notes and content_of(self) == content_of(other)


@dataclass(frozen=True)
class NoEdit(Edit):
    """Changes nothing."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """W' = W + u v at one site, W taken as the map key [d_mlp] -> value [d_model]."""

    layer: int
    u: Float[Tensor, "d_mlp rank"]
    v: Float[Tensor, "rank d_model"]


@dataclass(frozen=True, eq=False)
class LowRankEdit(Edit):
    """Low-rank updates of down-projections; of one layer they are joined once they are returned."""

    updates: tuple[LowRank, ...]


@dataclass(frozen=True, eq=False)
class NeuronScale:
    """Neurons of one site, multiplied by ``factor`` (0 suppresses, 2 enhances)."""

    layer: int
    neurons: Int[Tensor, " n"]
    factor: float


@dataclass(frozen=True, eq=False)
class NeuronEdit(Edit):
    """Scales neurons at the answer position: the mask, or the last prompt token and all after.

    Each neuron is in one scale at most.
    """

    scales: tuple[NeuronScale, ...]


@dataclass(frozen=True, eq=False)
class DenseEdit(Edit):
    """Deltas by parameter name, as in ``model.named_parameters()``, in the weight's own layout.

    ``deltas`` may be :class:`LowRankDeltas`, which holds none of them in full.
    """

    deltas: Mapping[str, Tensor]


class RankFactors(NamedTuple):
    """A matrix as the product of two."""

    u: Float[Tensor, "rows rank"]
    v: Float[Tensor, "rank columns"]


@dataclass(frozen=True, eq=False)
class LowRankDeltas(Mapping[str, Tensor]):
    """Deltas that are held as their factors; looking one up multiplies, in float32 or wider."""

    factors: Mapping[str, RankFactors]

    def __getitem__(self, name: str) -> Float[Tensor, "rows columns"]:
        u, v = self.factors[name]
        wide = wide_dtype(torch.promote_types(u.dtype, v.dtype))
        return u.to(wide) @ v.to(wide)

    def __iter__(self) -> Iterator[str]:
        return iter(self.factors)

    def __len__(self) -> int:
        return len(self.factors)

    def copied(self, device: torch.device | None = None) -> LowRankDeltas:
        """Return copies of the factors, row by row in memory, on ``device`` if one is given.

        A product of factors that lie otherwise in memory may be rounded otherwise.
        """
        return LowRankDeltas({
            name: RankFactors(*(
                factor.detach().to(device, copy=True, memory_format=torch.contiguous_format)
                for factor in pair
            ))
            for name, pair in self.factors.items()
        })  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class MemoryEdit(Edit):
    """A side memory beside one linear module; in a sequence it holds all steps so far.

    Attributes:
        module: the module's name, as in ``model.named_modules()``.
        memory: what it answers in place of the module.
        before_last: a codebook's: replace all positions before the last one of a text.
    """

    module: str
    memory: Memory
    before_last: bool = False
    whole: ClassVar[bool] = True

    @contextmanager
    def apply(self, hf: nn.Module) -> Iterator[None]:
        """Let the memory answer beside the module while open."""

        module = hf.get_submodule(self.module)
        device = next(module.parameters()).device  # one that was loaded lies on the CPU
        memory = type(self.memory)(**{n: t.to(device) for n, t in vars(self.memory).items()})

        def answer(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = (-1, *args[0].shape[-2:-1])  # some families hand over rows and positions in one
            replaced = memory.replaced(
                args[0].reshape(*rows, args[0].shape[-1]),
                output.reshape(*rows, output.shape[-1]),
                before_last=self.before_last,
            )
            return replaced.reshape(output.shape)

        handle = module.register_forward_hook(answer)
        try:
            yield
        finally:
            handle.remove()


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
        """Return one edit a request, in order, each independent; the model is untouched.

        In place of an edit a NotApplicable says why there is none for that one request.

        Raises:
            NotApplicable: when the method is not defined for the model or the requests.
        """
        ...


class NotApplicable(Exception):  # noqa: N818 - a verdict, not an error
    """A method is not defined here: ROME on a masked model. Its text is the skip's reason."""


def tensors_of(edit: Edit) -> dict[str, Tensor]:
    """Return every tensor that ``edit`` holds, by a name that tells its place."""
    if isinstance(edit, LowRankEdit):
        pairs = enumerate(edit.updates)
        return {f"{i}.{name}": getattr(up, name) for i, up in pairs for name in ("u", "v")}
    if isinstance(edit, NeuronEdit):
        return {str(i): scale.neurons for i, scale in enumerate(edit.scales)}
    if isinstance(edit, DenseEdit) and isinstance(edit.deltas, LowRankDeltas):
        numbered = enumerate(edit.deltas.factors.values())
        return {f"{i}.{n}": f for i, pair in numbered for n, f in zip("uv", pair, strict=True)}
    if isinstance(edit, DenseEdit):
        return {str(i): delta for i, delta in enumerate(edit.deltas.values())}
    return dict(vars(edit.memory)) if isinstance(edit, MemoryEdit) else {}


def apart(edit: Edit) -> Edit:
    """Return ``edit`` with copies of its tensors, detached, which nobody else writes to.

    The two factors of an update get the wider of their dtypes, and updates of one layer are joined.
    """
    if isinstance(edit, LowRankEdit):
        return _with(edit, updates=side_by_side([_update_apart(up) for up in edit.updates]))
    if isinstance(edit, NeuronEdit):
        scales = (replace(s, neurons=_neurons_apart(s.neurons)) for s in edit.scales)
        return _with(edit, scales=tuple(scales))
    if isinstance(edit, DenseEdit) and isinstance(edit.deltas, LowRankDeltas):
        return _with(edit, deltas=edit.deltas.copied())
    if isinstance(edit, DenseEdit):
        return _with(edit, deltas={n: d.detach().clone() for n, d in edit.deltas.items()})
    if isinstance(edit, MemoryEdit):
        held = {name: tensor.detach().clone() for name, tensor in tensors_of(edit).items()}
        return _with(edit, memory=type(edit.memory)(**held))
    return edit


def _neurons_apart(neurons: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    copied = neurons.detach().clone()
    # as an index torch takes neither of these, and others for a mask
    return copied.long() if copied.dtype in (torch.int8, torch.int16, torch.int32) else copied


def _update_apart(update: LowRank) -> LowRank:
    wide = torch.promote_types(update.u.dtype, update.v.dtype)
    u, v = (factor.detach().to(wide, copy=True) for factor in (update.u, update.v))
    return replace(update, u=u, v=v)


def side_by_side(updates: Sequence[LowRank]) -> tuple[LowRank, ...]:
    """Return the same updates, one a layer."""
    by_layer: defaultdict[int, list[LowRank]] = defaultdict(list)
    for update in updates:
        by_layer[update.layer].append(update)
    return tuple(
        replace(part[0], u=torch.cat([p.u for p in part], 1), v=torch.cat([p.v for p in part]))
        if len(part) > 1
        else part[0]
        for _, part in sorted(by_layer.items())
    )


def _with(edit: Edit, **fields: object) -> Edit:
    """Return a copy of ``edit`` with other fields, of whatever class of a method's own it is."""
    changed = copy(edit)
    for name, value in fields.items():
        object.__setattr__(changed, name, value)
    return changed


def with_notes(edit: Edit, notes: Notes) -> Edit:
    """Return ``edit`` with other notes."""
    return _with(edit, notes=notes)


def plain_of(edit: Edit) -> tuple[object, ...]:
    """Return what ``edit`` says beside its tensors and notes; a wrapper's code by its identity."""
    if isinstance(edit, LowRankEdit):
        return tuple(up.layer for up in edit.updates)
    if isinstance(edit, NeuronEdit):
        return tuple((scale.layer, scale.factor) for scale in edit.scales)
    if isinstance(edit, DenseEdit):
        return tuple(edit.deltas)
    if isinstance(edit, PromptEdit):
        return (edit.prefix,)
    if isinstance(edit, LookupEdit):
        return tuple(sorted(edit.answers.items()))
    if isinstance(edit, MemoryEdit):
        return (edit.module, type(edit.memory).__name__, edit.before_last)
    return (id(edit.apply),) if isinstance(edit, WrapperEdit) else ()


def content_of(edit: Edit) -> str:
    """Return a digest of what an edit changes; a wrapper, which is code, counts by identity."""
    digest = hashlib.sha256(f"{type(edit).__name__} {plain_of(edit)!r}".encode())
    for name, tensor in tensors_of(edit).items():
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype}{tuple(tensor.shape)}".encode())
        if plain.numel():  # torch refuses to view nothing as bytes
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def norm(edit: Edit) -> float:
    """Return frobenius norm of the weight change of ``edit``; 0 where no weight changes."""
    if isinstance(edit, LowRankEdit):
        # |u v|_F^2 = tr(v v^T u^T u): never the full matrix
        squares = [
            torch.sum((up.u.double().T @ up.u.double()) * (up.v.double() @ up.v.double().T))
            for up in edit.updates
        ]
        whole = float(torch.stack(squares).sum().clamp_min(0).sqrt()) if squares else 0.0
        return whole if math.isfinite(whole) else math.hypot(*map(_scaled_norm, edit.updates))
    if isinstance(edit, DenseEdit):
        return float(sum(float(d.double().square().sum()) for d in edit.deltas.values()) ** 0.5)
    return 0.0


def _scaled_norm(update: LowRank) -> float:
    """Return frobenius norm of an update whose factors are too large or small to be squared."""
    largest = [max(float(factor.abs().max()), 1e-300) for factor in (update.u, update.v)]
    u, v = (f.double() / n for f, n in zip((update.u, update.v), largest, strict=True))
    return math.prod(largest) * float(torch.sum((u.T @ u) * (v @ v.T)).clamp_min(0).sqrt())


def describe(edit: Edit) -> str:
    """Return one line on what ``edit`` is, for the log."""
    if isinstance(edit, LowRankEdit):
        parts = (f"layer {up.layer} rank {up.u.shape[1]}" for up in edit.updates)
        return "low rank: " + (", ".join(parts) or "nothing")
    if isinstance(edit, NeuronEdit):
        parts = (f"layer {s.layer} x{s.factor:g} on {s.neurons.numel()}" for s in edit.scales)
        return "neurons: " + (", ".join(parts) or "none")
    if isinstance(edit, DenseEdit) and isinstance(edit.deltas, LowRankDeltas):
        parts = (f"{name} rank {u.shape[1]}" for name, (u, _) in edit.deltas.factors.items())
        return "low rank: " + (", ".join(parts) or "nothing")
    if isinstance(edit, DenseEdit):
        return "dense: " + ", ".join(edit.deltas)
    if isinstance(edit, PromptEdit):
        return "prompt"
    if isinstance(edit, LookupEdit):
        return "lookup"
    if isinstance(edit, MemoryEdit):
        return f"memory: {type(edit.memory).__name__} beside {edit.module}"
    return "wrapper" if isinstance(edit, WrapperEdit) else "none"
