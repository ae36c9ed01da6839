"""The control of an edit: chance damage of the same size, drawn for the same request.

    LowRankEdit   random u and v of the same rank, layers and norms; where u picks neurons
                  (knowledge neurons), the same change at as many random neurons of the layer
    NeuronEdit    as many random neurons of the same layers, scaled alike, each by one factor
    DenseEdit     a random change of the same parameters, each of the same norm
    MemoryEdit    the same memory, what it answers turned at random: a codebook's values drawn anew,
                  a side weight's change rotated, so that it is used where the method's is
    PromptEdit    a prefix about another fact
    LookupEdit    nothing, as no weight changes; NoEdit alike

A method is better than chance only where its figure beats that of its control on the same cases.
The draw depends on the request's id and the layer alone, not on what else is measured. An edit that
belongs to no request (:attr:`Edit.for_all`: a checkpoint's, an adapter's) has one control for the
whole run: its draw depends on the layer alone, and all cases share it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.cases.case import EditRequest, Query
from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LookupEdit,
    LowRank,
    LowRankEdit,
    MemoryEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    PromptEdit,
    side_by_side,
)
from kn_bench.editing.memories import Codebook, Memory


def controls_of(
    edits: Sequence[Edit], requests: Sequence[EditRequest], d_mlp: int
) -> list[Edit | None]:
    """Return the control of each edit; one object that serves many requests has one control.

    An edit that is applied row by row is drawn for each request, unless it belongs to none.
    Dense deltas are drawn when they are put in place: those of many edits at once need no memory.
    """
    controls: list[Edit | None] = []
    shared: dict[int, Edit | None] = {}
    for edit, request in zip(edits, requests, strict=True):
        if id(edit) in shared:
            control = shared[id(edit)]
        elif isinstance(edit, DenseEdit):
            control = DenseEdit(_Drawn(edit.deltas, _drawn_for(edit, request)))
        else:
            control = control_of(edit, request, d_mlp)
        drawn_once = edit.for_all and not isinstance(edit, PromptEdit)
        if drawn_once or isinstance(edit, DenseEdit | MemoryEdit):
            shared[id(edit)] = control
        controls.append(control)
    return controls


def control_of(edit: Edit, request: EditRequest, d_mlp: int) -> Edit | None:
    """Return the control of ``edit``, or None where there is no edit of equal size.

    Args:
        edit: what a method made of ``request``.
        request: seeds the draw, unless the edit belongs to no request; a prompt's control states
            one of its background facts.
        d_mlp: neurons of a layer, to draw from.
    """
    drawn_for = _drawn_for(edit, request)
    if isinstance(edit, LowRankEdit):
        updates = side_by_side(edit.updates)  # two of a layer would be drawn alike
        return LowRankEdit(updates=tuple(_low_rank(up, drawn_for) for up in updates))
    if isinstance(edit, NeuronEdit):
        return NeuronEdit(scales=tuple(_scales(edit.scales, drawn_for, d_mlp)))
    if isinstance(edit, DenseEdit):
        return DenseEdit(dict(_Drawn(edit.deltas, drawn_for)))
    if isinstance(edit, MemoryEdit):
        return replace(edit, memory=_memory(edit.memory, drawn_for), notes={})
    if isinstance(edit, PromptEdit):
        other = _other_fact(request)
        return PromptEdit(prefix=other) if other else None
    return NoEdit() if isinstance(edit, LookupEdit | NoEdit) else None


def _drawn_for(edit: Edit, request: EditRequest) -> str:
    return "" if edit.for_all else request.id


def _generator(*parts: str | int) -> torch.Generator:
    text = "\0".join(map(str, ("control", *parts)))
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(seed % 2**63)


def _low_rank(update: LowRank, request: str) -> LowRank:
    """Draw on the CPU in float64, so that every machine draws the same."""
    generator = _generator(request, update.layer)
    if _picks_neurons(update.u):
        chosen = update.u.argmax(0).tolist()
        distinct = torch.tensor(list(dict.fromkeys(chosen)), dtype=torch.long)
        drawn = _neurons(distinct, update.u.shape[0], generator).sort().values
        # a neuron that a batch changes twice has one in its place, which is changed twice
        in_place_of = dict(zip(distinct.tolist(), drawn.tolist(), strict=True))
        u = torch.zeros_like(update.u)
        u[[in_place_of[n] for n in chosen], torch.arange(u.shape[1], device=u.device)] = 1
        return replace(update, u=u)
    u = torch.randn(update.u.shape, generator=generator, dtype=torch.float64)
    v = torch.randn(update.v.shape, generator=generator, dtype=torch.float64)
    v = v * (_norm(update.u, update.v) / _norm(u, v).clamp_min(1e-300))
    return replace(update, u=u.to(update.u), v=v.to(update.v))


def _norm(u: Tensor, v: Tensor) -> Tensor:
    """Return |u v|_F without the full matrix: its square is tr(v v^T u^T u)."""
    u, v = u.double().cpu(), v.double().cpu()
    return torch.sum((u.T @ u) * (v @ v.T)).clamp_min(0).sqrt()


def _picks_neurons(u: Float[Tensor, "d_mlp rank"]) -> bool:
    """Return whether every column of ``u`` is 1 at one neuron and 0 elsewhere."""
    return bool(((u != 0).sum(0) == 1).all()) and bool((u.sum(0) == 1).all())


def _neurons(
    chosen: Int[Tensor, " n"], d_mlp: int, generator: torch.Generator
) -> Int[Tensor, " n"]:
    """Return as many neurons as are ``chosen``, others than those while there are others."""
    order = torch.randperm(d_mlp, generator=generator)
    taken = torch.isin(order, chosen)
    return torch.cat([order[~taken], order[taken]])[: chosen.numel()]


def _scales(scales: Sequence[NeuronScale], request: str, d_mlp: int) -> Iterator[NeuronScale]:
    """Draw once a layer and deal out to its groups, so that no neuron is in two of them."""
    chosen: defaultdict[int, list[Tensor]] = defaultdict(list)
    for scale in scales:
        chosen[scale.layer].append(scale.neurons.cpu())
    left = {
        layer: _neurons(torch.cat(groups), d_mlp, _generator(request, layer))
        for layer, groups in chosen.items()
    }
    for scale in scales:
        dealt, left[scale.layer] = left[scale.layer].tensor_split([scale.neurons.numel()])
        yield replace(scale, neurons=dealt.sort().values.to(scale.neurons))


@dataclass(frozen=True, eq=False)
class _Drawn(Mapping[str, Tensor]):
    """Random deltas, each as large as that of ``deltas``, drawn when it is looked up."""

    deltas: Mapping[str, Tensor]
    request: str

    def __getitem__(self, name: str) -> Tensor:
        delta, generator = self.deltas[name], _generator(self.request, name)
        noise = torch.randn(delta.shape, generator=generator, dtype=torch.float32)
        size = delta.double().norm().cpu() / noise.double().norm().clamp_min(1e-300)
        return (noise * float(size)).to(delta)

    def __iter__(self) -> Iterator[str]:
        return iter(self.deltas)

    def __len__(self) -> int:
        return len(self.deltas)


def _memory(memory: Memory, request: str) -> Memory:
    """Return the same memory with random answers, of the same norms at every input."""
    generator = _generator(request, "memory")
    if isinstance(memory, Codebook):
        drawn = torch.randn(memory.values.shape, generator=generator, dtype=torch.float64)
        norms = memory.values.double().cpu().norm(dim=1, keepdim=True)
        values = drawn / drawn.norm(dim=1, keepdim=True) * norms
        return replace(memory, values=values.to(memory.values))
    width = memory.deltas.shape[-1]
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q.to(memory.deltas)
    return replace(memory, deltas=memory.deltas @ rotation)


def _other_fact(request: EditRequest) -> str:
    """Return a fact of the relation about another subject, as its own first prompt states it."""
    facts: Sequence[tuple[Query, ...]] = [bag for bag in request.background if bag]
    if not facts:
        return ""
    index = int(torch.randint(len(facts), (1,), generator=_generator(request.id, "prefix")))
    query = facts[index][0]
    text = query.cloze.fill(query.answer)
    return text if text.endswith((".", "!", "?")) else f"{text}."
