"""Applying edits: row by row inside a batch, or in place with a verified restore.

    RowEdits    every row of a batch under an edit of its own; no weight is touched
    in_place    one edit in the weights; bytes copied back on exit and checked by SHA-256

Both give equal logits for low-rank edits, which a test holds them to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LookupEdit,
    LowRankDeltas,
    LowRankEdit,
    MemoryEdit,
    NeuronEdit,
    NoEdit,
    NotApplicable,
    PromptEdit,
    WrapperEdit,
    content_of,
)
from kn_bench.editing.validation import checked
from kn_bench.model.held import EditOutlivedError
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loaded import check_model
from kn_bench.model.precision import wide_dtype

IN_PLACE = (DenseEdit, MemoryEdit, WrapperEdit)
"""Edits that need the weights or the modules themselves: one at a time."""


@dataclass(frozen=True)
class _Updates:
    """Low-rank updates of one layer, padded to one rank; edits without one have zeros."""

    u: Float[Tensor, "edits d_mlp rank"]
    v: Float[Tensor, "edits rank d_model"]

    def change(self, keys: Tensor, edit_of: Int[Tensor, " rows"], _: Tensor) -> Tensor:
        return keys @ self.u[edit_of] @ self.v[edit_of]


@dataclass(frozen=True)
class _Scales:
    """Neurons of one layer, padded to one number: change = key * (factor - 1) @ value rows."""

    neurons: Int[Tensor, "edits n"]
    values: Float[Tensor, "edits n d_model"]

    def change(self, keys: Tensor, edit_of: Tensor, where: Bool[Tensor, "rows T"]) -> Tensor:
        index = self.neurons[edit_of][:, None].expand(-1, keys.shape[1], -1)
        return (keys.gather(2, index) * where[..., None]) @ self.values[edit_of]


class RowEdits:
    """A list of edits, packed so that row i of a batch runs under edit ``edit_of[i]``.

    Only :class:`LowRankEdit` and :class:`NeuronEdit` change anything here; other edits (none,
    prompt, lookup) leave a row's computation as it is.

    Raises:
        ValueError: for an edit that can only be applied in place.
    """

    def __init__(self, lm: LanguageModel, edits: Sequence[Edit]) -> None:
        for edit in edits:
            if isinstance(edit, IN_PLACE):
                raise ValueError(f"a {type(edit).__name__} cannot be applied row by row")
        self.lm = lm
        self.edits = edits

    @cached_property
    def _by_layer(self) -> dict[int, list[_Updates | _Scales]]:
        by_layer: dict[int, list[_Updates | _Scales]] = defaultdict(list)
        for layer in range(self.lm.n_layers):
            updates, scales = self._updates(layer), self._scales(layer)
            by_layer[layer] = [part for part in (updates, scales) if part is not None]
        return {layer: parts for layer, parts in by_layer.items() if parts}

    def _updates(self, layer: int) -> _Updates | None:
        here = self.lm.sharers(layer)  # a changed weight acts wherever it is used
        pieces = [
            [up for up in edit.updates if up.layer in here] if isinstance(edit, LowRankEdit) else []
            for edit in self.edits
        ]
        rank = max((sum(up.u.shape[1] for up in piece) for piece in pieces), default=0)
        if not rank:
            return None
        weight = self.lm.weight(layer)
        u = weight.new_zeros(len(pieces), weight.shape[0], rank)
        v = weight.new_zeros(len(pieces), rank, weight.shape[1])
        for index, piece in enumerate(pieces):
            if piece:
                joined_u, joined_v = (
                    torch.cat([p.u for p in piece], 1),
                    torch.cat([p.v for p in piece]),
                )
                u[index, :, : joined_u.shape[1]] = joined_u
                v[index, : joined_v.shape[0]] = joined_v
        return _Updates(u, v)

    def _scales(self, layer: int) -> _Scales | None:
        pieces = [
            [s for s in edit.scales if s.layer == layer] if isinstance(edit, NeuronEdit) else []
            for edit in self.edits
        ]
        width = max((sum(s.neurons.numel() for s in piece) for piece in pieces), default=0)
        if not width:
            return None
        weight = self.lm.weight(layer)
        neurons = torch.zeros(len(pieces), width, dtype=torch.long, device=weight.device)
        values = weight.new_zeros(len(pieces), width, weight.shape[1])
        for index, piece in enumerate(pieces):
            at = 0
            for scale in piece:
                stop = at + scale.neurons.numel()
                neurons[index, at:stop] = scale.neurons
                values[index, at:stop] = (scale.factor - 1) * weight[
                    scale.neurons.to(weight.device)
                ]
                at = stop
        return _Scales(neurons, values)

    def on(
        self, edit_of: Int[Tensor, " rows"], where: Bool[Tensor, "rows T"]
    ) -> AbstractContextManager[None]:
        """Let row i of every forward pass run under ``edits[edit_of[i]]`` while open.

        Args:
            edit_of: index into the edits, for every row.
            where: positions at which neurons are scaled (the answer's); low-rank updates act
                everywhere, as a changed weight does.
        """
        if not self._by_layer:
            return nullcontext()

        def hook(layer: int, keys: Tensor, values: Tensor) -> Tensor:
            keys = keys.reshape(*where.shape, -1)
            return self.changed(layer, keys, values, edit_of, where)

        return self.lm.site_hooks(hook, self.layers)

    @property
    def layers(self) -> list[int]:
        """Return the layers at whose sites something changes."""
        return list(self._by_layer)

    def changed(
        self,
        layer: int,
        keys: Float[Tensor, "rows T d_mlp"],
        values: Tensor,
        edit_of: Int[Tensor, " rows"],
        where: Bool[Tensor, "rows T"],
    ) -> Tensor:
        """Return the values of one site under the rows' edits; see :meth:`on`."""
        for part in self._by_layer[layer]:
            values = values + part.change(keys, edit_of, where).reshape(values.shape)
        return values


@contextmanager
def edited(model: LanguageModel, edit: Edit) -> Iterator[LanguageModel]:
    """Let ``model`` be the edited one while open; afterwards it is as it was, to the bit.

    Neurons are scaled where an answer is read: at the mask, or from the last prompt token on.

    Blocks can be nested, in one thread: the inner edit is made in the model that holds the outer
    one, and is taken back before it.

    Args:
        model: what a method made the edit for.
        edit: any edit but a LookupEdit, which is not a change of the model.

    Raises:
        TypeError: for a model that is not loaded.
        ValueError: for an edit that does not fit the model, or no edit of a model; or while another
            thread uses it.
        EditOutlivedError: when some parameter or buffer differs afterwards, or an inner block is
            still open, which is then left as well.

    Examples:
        >>> import kn_bench as kn
        >>> model = kn.load_model("tiny-gpt2")
        >>> with kn.edited(model, kn.PromptEdit("The capital of France is Rome.")):
        ...     text = model.generate("The capital of France is", max_new_tokens=1)
        >>> text
        ' Rome'
    """
    check_model(model)
    if isinstance(edit, NotApplicable):
        raise ValueError(f"NotApplicable: expected an edit, and the method has none: {edit}")
    (problem,) = checked([edit], 1, model, "the edit")
    if isinstance(problem, str):
        raise ValueError(problem)
    if isinstance(edit, LookupEdit):
        raise ValueError(
            "LookupEdit: expected an edit of the model, and this is a table of answers to the "
            "probes of cases; measure it by evaluate"
        )
    elsewhere = isinstance(edit, NeuronEdit | MemoryEdit | WrapperEdit)
    changes = not isinstance(edit, PromptEdit | NoEdit)
    with model.held.block() as block:
        block.callback(setattr, model, "prompt_prefix", model.prompt_prefix)
        if isinstance(edit, PromptEdit):
            model.prompt_prefix = f"{model.prompt_prefix} {edit.prefix}".strip()
        scope = _scaled(model, edit) if isinstance(edit, NeuronEdit) else in_place(model, edit)
        originals = block.enter_context(scope)
        if elsewhere:
            block.enter_context(model.memo.suspended())
        content = content_of(edit) if changes else ""
        block.enter_context(model.holding(content, originals, elsewhere=elsewhere))
        yield model


@contextmanager
def _scaled(model: LanguageModel, edit: NeuronEdit) -> Iterator[dict[str, Tensor]]:
    """Scale neurons in every forward pass of ``model``, one prompt a row."""
    mask = model.tokens.mask_id if model.tokens.mask_id is not None else -1
    now: dict[str, Tensor] = {}

    def read(_: object, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        ids = named["input_ids"] if "input_ids" in named else args[0]
        # with keys and values kept, the last token fed is the last of the prompt, then each new one
        last = torch.arange(ids.shape[1], device=ids.device) == ids.shape[1] - 1
        now["where"] = last.expand_as(ids) if model.is_causal else ids.eq(mask)

    rows = RowEdits(model, [edit])

    def scale(layer: int, keys: Tensor, values: Tensor) -> Tensor:
        where = now["where"]
        keys = keys.reshape(*where.shape, -1)
        first = torch.zeros(len(where), dtype=torch.long, device=where.device)
        return rows.changed(layer, keys, values, first, where)

    handle = model.hf.base_model.register_forward_pre_hook(read, with_kwargs=True)
    try:
        with model.site_hooks(scale, rows.layers):
            yield {}
    finally:
        handle.remove()


@contextmanager
def in_place(lm: LanguageModel, edit: Edit) -> Iterator[dict[str, Tensor]]:
    """Apply one edit to the model itself; on exit the model is as it was, to the bit.

    A change is added in float32 or wider, and the sum alone is rounded to the weight's dtype.

    Yields:
        The changed parameters as they were before, by name.

    Raises:
        ValueError: a delta names no parameter, or has another shape; or a wrapper is no context
            manager.
        EditOutlivedError: some parameter or buffer differs afterwards.
    """
    before = lm.parameter_hash() if lm.held_edits else lm.verified_hash
    parameters = dict(lm.hf.named_parameters())
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, delta in deltas_of(lm, edit):
                parameter = parameters[name]
                saved[name] = parameter.detach().clone()
                parameter.add_(delta.to(parameter.device, wide_dtype(parameter.dtype)))
        wrapper = edit if isinstance(edit, MemoryEdit | WrapperEdit) else None
        applied = wrapper.apply(lm.hf) if wrapper else nullcontext()
        if not isinstance(applied, AbstractContextManager):
            raise ValueError(
                f"the apply of a WrapperEdit returned a {type(applied).__name__}: expected a "
                "context manager; decorate it with contextlib.contextmanager"
            )
        with applied:
            yield saved
    finally:
        with torch.no_grad():
            for name, tensor in saved.items():
                parameters[name].copy_(tensor)
        if lm.parameter_hash() != before:
            raise EditOutlivedError(
                f"{lm.name} differs after a {type(edit).__name__} was taken back: the edit changed "
                "parameters or buffers that it does not declare"
            )


def deltas_of(lm: LanguageModel, edit: Edit) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each parameter that ``edit`` changes, with its delta.

    Deltas that are not held in full, of a LoRA edit or a random one, are made one at a time.

    Raises:
        ValueError: a delta names no parameter, or has another shape; or the edit changes
            activations.
    """
    if isinstance(edit, LowRankEdit):
        deltas: dict[str, Tensor] = {}
        for up in edit.updates:
            wide = torch.promote_types(up.u.dtype, up.v.dtype)
            change = up.u.to(lm.device, wide) @ up.v.to(lm.device, wide)
            name = lm.weight_name(up.layer)
            deltas[name] = deltas.get(name, 0) + (change.T if lm.transposed(up.layer) else change)
        yield from deltas.items()
    if isinstance(edit, NeuronEdit):
        raise ValueError("a NeuronEdit changes activations, not weights: apply it row by row")
    if not isinstance(edit, DenseEdit):
        return
    parameters = dict(lm.hf.named_parameters())
    held = edit.deltas
    # on the model's device, as saved edits lie on the CPU and devices round differently
    held = held.copied(lm.device) if isinstance(held, LowRankDeltas) else held
    for name, delta in held.items():
        if name not in parameters:
            raise ValueError(f"the edit changes {name!r}: expected a parameter of {lm.name}")
        if delta.shape != parameters[name].shape:
            raise ValueError(
                f"the edit's delta of {name!r}, of shape {tuple(delta.shape)}: expected the "
                f"parameter's, {tuple(parameters[name].shape)}"
            )
        yield name, delta
