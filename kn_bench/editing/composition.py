"""The model after some steps of a sequence: the original plus the edits so far, and nothing else.

    weights       LowRankEdit, DenseEdit     added in place, in float32 or wider
    questions     PromptEdit, LookupEdit     joined: prefix after prefix, table over table
                  NeuronEdit                 factors of the same neuron multiplied
    modules       MemoryEdit, WrapperEdit    context managers kept open, the first outermost

What is bound to the model (a method, say) sees the edited weights, and a content hash that is the
edited model's own. Leaving the context restores the weights to the byte, checked by SHA-256.

A low-rank edit of a batch of steps can also be looked at step by step: :class:`UpToStep` runs every
row of a batch under the first edits of the batch only, so that questions of many steps are asked
at once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_bench.editing.applying import deltas_of
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
    WrapperEdit,
    content_of,
    side_by_side,
)
from kn_bench.model.held import EditOutlivedError
from kn_bench.model.language_model import LanguageModel


class CannotCompose(ValueError):  # noqa: N818 - named as the sentence reads
    """Two edits of a sequence that cannot both be in force; one sentence says why."""


@dataclass
class Composition:
    """A model that takes in one edit after another; a context manager.

    Attributes:
        lm: the model.
        asked_under: what is not in the weights: the edit under which questions are asked.
        changed: whether any edit so far changes anything.
    """

    lm: LanguageModel
    asked_under: Edit = field(default_factory=NoEdit)
    changed: bool = False

    def __post_init__(self) -> None:
        self._originals: dict[str, Tensor] = {}
        self._exact: dict[str, Tensor] = {}
        self._wrapped: list[MemoryEdit | WrapperEdit] = []
        self._wrappers = ExitStack()
        self._open = ExitStack()
        self._hash = ""

    def __enter__(self) -> Composition:
        self._before = self.lm.verified_hash
        return self

    def __exit__(self, *about: object) -> None:
        self._open.close()
        try:
            self._wrappers.close()
        finally:
            parameters = dict(self.lm.hf.named_parameters())
            with torch.no_grad():
                for name, tensor in self._originals.items():
                    parameters[name].copy_(tensor)
        if self.lm.parameter_hash() != self._before:
            raise EditOutlivedError(
                f"{self.lm.name} differs after a sequence of edits was taken back: an edit changed "
                "parameters or buffers that it does not declare"
            )

    def add(self, edits: Sequence[Edit]) -> None:
        """Take in the edits of one step.

        Raises:
            CannotCompose: for an edit that cannot be in force beside those before.
            ValueError: for a delta that names no parameter, or has another shape.
        """
        for edit in edits:
            if isinstance(edit, LowRankEdit | DenseEdit):
                self._add_to_weights(deltas_of(self.lm, edit))
            elif isinstance(edit, MemoryEdit | WrapperEdit):
                if edit.whole:
                    self._wrappers.close()
                    self._wrapped.clear()
                self._wrapped.append(edit)
                self._wrap(edit)
            elif not isinstance(edit, NoEdit):
                self.asked_under = joined(self.asked_under, edit)
            self.changed = self.changed or not isinstance(edit, NoEdit)
        self._hash = hashlib.sha256(
            "".join([self._hash, *map(content_of, edits)]).encode()
        ).hexdigest()
        self._open.close()
        if self.changed:
            self._open.enter_context(self.lm.holding(self._hash, self._originals))

    def _wrap(self, edit: MemoryEdit | WrapperEdit) -> None:
        # the weights do not show what a wrapper does
        self._wrappers.enter_context(self.lm.memo.suspended())
        self._wrappers.enter_context(edit.apply(self.lm.hf))

    @torch.no_grad()
    def _add_to_weights(self, deltas: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.lm.hf.named_parameters())
        for name, delta in deltas:
            parameter = parameters[name]
            if name not in self._originals:
                self._originals[name] = parameter.detach().clone()
                exact = torch.promote_types(parameter.dtype, torch.float32)
                # a 16-bit weight would lose small edits one by one
                self._exact[name] = parameter if parameter.dtype == exact else parameter.to(exact)
            self._exact[name].add_(delta.to(self._exact[name]))
            if self._exact[name] is not parameter:
                parameter.copy_(self._exact[name])

    @property
    def wraps(self) -> bool:
        """Whether code of a method is in force."""
        return bool(self._wrapped)

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of the edited matrices as they stand."""
        parameters = dict(self.lm.hf.named_parameters())
        return {name: parameters[name].detach().clone() for name in self._originals}

    @contextmanager
    def as_of(self, snapshot: Mapping[str, Tensor]) -> Iterator[None]:
        """Put the weights back to a snapshot while open; what it lacks is then as loaded."""
        now = self.snapshot()
        parameters = dict(self.lm.hf.named_parameters())

        @torch.no_grad()
        def put(tensors: Mapping[str, Tensor]) -> None:
            for name, tensor in tensors.items():
                parameters[name].copy_(tensor)

        put({name: snapshot.get(name, original) for name, original in self._originals.items()})
        try:
            yield
        finally:
            put(now)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Put back the model as it was loaded while open, wrappers and all."""
        self._wrappers.close()
        try:
            with self.lm.unedited():
                yield
        finally:
            for edit in self._wrapped:
                self._wrap(edit)

    def growth(self) -> dict[str, float]:
        """Return |dW|_F / |W|_F of every edited matrix, W as loaded."""
        parameters = dict(self.lm.hf.named_parameters())
        return {
            name: float(
                (self._exact[name].double() - old.double()).norm()
                / old.double().norm().clamp_min(1e-300)
            )
            for name, old in self._originals.items()
            if parameters[name].shape == old.shape
        }


def joined(first: Edit, second: Edit) -> Edit:
    """Return two edits that touch no weight, both in force, the second after the first.

    Raises:
        CannotCompose: for edits of different kinds.
    """
    if isinstance(first, NoEdit):
        return second
    if isinstance(first, PromptEdit) and isinstance(second, PromptEdit):
        return PromptEdit(f"{first.prefix} {second.prefix}")
    if isinstance(first, LookupEdit) and isinstance(second, LookupEdit):
        return LookupEdit({**first.answers, **second.answers})
    if isinstance(first, NeuronEdit) and isinstance(second, NeuronEdit):
        return NeuronEdit(_multiplied((*first.scales, *second.scales)))
    raise CannotCompose(
        f"a {type(second).__name__} cannot follow a {type(first).__name__} in one sequence"
    )


def _multiplied(scales: Sequence[NeuronScale]) -> tuple[NeuronScale, ...]:
    """Return every neuron once, its factors multiplied, grouped by layer and factor."""
    factors: dict[tuple[int, int], float] = {}
    for scale in scales:
        for neuron in scale.neurons.tolist():
            place = scale.layer, neuron
            factors[place] = factors.get(place, 1.0) * scale.factor
    groups: defaultdict[tuple[int, float], list[int]] = defaultdict(list)
    for (layer, neuron), factor in sorted(factors.items()):
        groups[layer, factor].append(neuron)
    return tuple(
        NeuronScale(layer, torch.tensor(neurons), factor)
        for (layer, factor), neurons in sorted(groups.items())
    )


# -- many steps at once ------------------------------------------------------------------------


class UpToStep:
    """Rows under the first so many of a list of low-rank edits, on the model as of before them.

    Takes the place of :class:`~kn_bench.editing.applying.RowEdits`: the "edit" of a row is the
    number of edits in force for it, from 0.

        change of a row = (keys @ U * in_force) @ V        U [d_mlp, rank], V [rank, d_model]

    Raises:
        ValueError: for an edit that is not of low rank.
    """

    def __init__(self, lm: LanguageModel, edits: Sequence[Edit]) -> None:
        self.lm = lm
        pieces: defaultdict[int, list[tuple[int, LowRank]]] = defaultdict(list)
        for number, edit in enumerate(edits, start=1):
            if isinstance(edit, NoEdit):
                continue
            if not isinstance(edit, LowRankEdit):
                raise ValueError(f"a {type(edit).__name__} is not of low rank")
            for update in edit.updates:
                for layer in lm.sharers(update.layer):
                    pieces[layer].append((number, update))
        self._layers = {layer: _Stacked.of(lm, layer, part) for layer, part in pieces.items()}

    def on(
        self, edit_of: Int[Tensor, " rows"], where: Bool[Tensor, "rows T"]
    ) -> AbstractContextManager[None]:
        """Let row i of every forward pass run under the first ``edit_of[i]`` edits while open."""
        if not self._layers:
            return nullcontext()

        def hook(layer: int, keys: Tensor, values: Tensor) -> Tensor:
            part = self._layers[layer]
            keys = keys.reshape(*where.shape, -1)
            in_force = (part.number[None] <= edit_of[:, None])[:, None]
            return values + ((keys @ part.u * in_force) @ part.v).reshape(values.shape)

        return self.lm.site_hooks(hook, list(self._layers))


@dataclass(frozen=True)
class _Stacked:
    """The updates of one layer side by side, and which edit each rank belongs to."""

    u: Float[Tensor, "d_mlp rank"]
    v: Float[Tensor, "rank d_model"]
    number: Int[Tensor, " rank"]

    @classmethod
    def of(cls, lm: LanguageModel, layer: int, pieces: Sequence[tuple[int, LowRank]]) -> _Stacked:
        weight = lm.weight(layer)
        u = torch.cat([update.u.to(weight) for _, update in pieces], 1)
        v = torch.cat([update.v.to(weight) for _, update in pieces])
        number = [edit for edit, update in pieces for _ in range(update.u.shape[1])]
        return cls(u, v, torch.tensor(number, device=weight.device))


def summed(edits: Sequence[Edit]) -> Edit:
    """Return the edits of one batch as one.

    Raises:
        CannotCompose: where a sum has no meaning: wrappers, or edits of different kinds.
    """
    if len(edits) == 1:
        return edits[0]
    whole: Edit = NoEdit()
    low_rank: list[LowRank] = []
    dense: dict[str, Tensor] = {}
    for edit in edits:
        if isinstance(edit, LowRankEdit):
            low_rank += edit.updates
        elif isinstance(edit, DenseEdit):
            for name, delta in edit.deltas.items():
                dense[name] = dense[name] + delta if name in dense else delta
        elif isinstance(edit, MemoryEdit | WrapperEdit):
            raise CannotCompose("edits by wrappers have no sum: the method has no batch of its own")
        elif not isinstance(edit, NoEdit):
            whole = joined(whole, edit)
    parts = [bool(low_rank), bool(dense), not isinstance(whole, NoEdit)]
    if sum(parts) > 1:
        raise CannotCompose("edits of different kinds have no sum")
    if low_rank:
        return LowRankEdit(side_by_side(low_rank))
    return DenseEdit(dense) if dense else whole
