"""Run only what follows a change: from its layer on, and for causal models from its position.

    clean_run   one pass over the unchanged rows, keeping every layer's input and, for a causal
                model, its attention keys and values
    resume      copies of clean rows join at the layers where they begin to differ, and rows of all
                layers are run on together

The axis of rows grows from layer to layer, joining rows last. With ``joins = {1: [0, 2], 3: [2]}``:

    layer                0         1          2          3            [rows, Tq, d_model]
    rows present         skipped   0' 2'      0' 2'      0' 2' 2"     a prime: a changed copy
    clean rows (B)                 0  2       0  2       0  2  2      whose keys each row reads

Rows are in the order in which they join, so that those already present keep their places, the hook
finds a layer's new rows at the end, and one concatenation adds them. The axis of positions is
Tq = T - start throughout; positions before ``start`` exist only as keys and values of clean rows.

The model's own forward pass is used throughout, with its masks and rotary embeddings: layers below
the first join are skipped, and a joining layer's input is replaced on the way in. Results equal
those of whole runs, to rounding. Rows that cannot resume (:func:`may_resume`) are run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from kn_bench.model.architecture import window_of
from kn_bench.model.language_model import LanguageModel, SiteHook

Arriving = Callable[[int, Tensor], Tensor]
"""(layer, output of the layer before for the rows present [rows, Tq, d_model]) -> input of the
layer: of these rows, followed by the rows that join there."""


@dataclass(frozen=True)
class CleanRun:
    """Result of one pass over unchanged rows, for :func:`resume`.

    Attributes:
        ids: the rows, of equal length.
        layer_inputs: input of every layer, ``[B, T, d_model]`` each.
        keys, values: attention keys and values of every layer, ``[B, heads, T, d_head]`` each;
            empty for masked models and rows that cannot resume.
        last_hidden: what the head reads, ``[B, T, d_model]``.
    """

    ids: Int[Tensor, "B T"]
    layer_inputs: tuple[Float[Tensor, "B T d_model"], ...]
    keys: tuple[Float[Tensor, "B heads T d_head"], ...]
    values: tuple[Float[Tensor, "B heads T d_head"], ...]
    last_hidden: Float[Tensor, "B T d_model"]


class PrefixCache(Cache):  # type: ignore[misc]  # transformers has no types
    """Keys and values of earlier positions, read by rows and never written.

    Attributes:
        keys, values: per layer, of the positions before those that are run, on its device.
        rows: per layer, which prefix each row of the batch reads; None where row i reads prefix i.
    """

    def __init__(
        self,
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        rows: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._keys, self._values, self._rows = keys, values, rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._rows is not None:
            rows = self._rows[layer_idx].to(keys.device)
            keys, values = keys[rows], values[rows]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self._keys[layer_idx].shape[2])


def may_resume(lm: LanguageModel, length: int) -> bool:
    """Tell whether rows of ``length`` tokens may join at any layer and position.

    The ready masks say nothing of a window of attention, so rows must be shorter than it.
    """
    window = window_of(lm.hf.config)
    return lm.architecture.resumable and (window is None or length < window)


@torch.no_grad()
def clean_run(lm: LanguageModel, ids: Int[Tensor, "B T"]) -> CleanRun:
    """Run unchanged rows of equal length once, remembering what :func:`resume` needs."""
    inputs: dict[int, Tensor] = {}
    resumable_causal = lm.is_causal and may_resume(lm, ids.shape[1])
    options: dict[str, Any] = {}
    if lm.is_causal:
        options["use_cache"] = resumable_causal
        if resumable_causal:
            # plain layers: those of a window of attention would leave room for its keys alone
            options["past_key_values"] = DynamicCache()

    def keep(layer: int, hidden: Tensor) -> None:
        inputs[layer] = hidden.detach()

    with lm.input_hooks(keep, range(lm.n_layers)):
        output = lm.hidden(ids, **options)
    cached = output.past_key_values.layers if resumable_causal else ()
    return CleanRun(
        ids,
        tuple(inputs[index] for index in range(lm.n_layers)),
        tuple(layer.keys for layer in cached),
        tuple(layer.values for layer in cached),
        output.last_hidden_state.detach(),
    )


def resume(
    lm: LanguageModel,
    clean: CleanRun,
    *,
    joins: Mapping[int, Int[Tensor, " rows"]],
    start: int,
    hook: SiteHook,
    arriving: Arriving | None = None,
) -> Float[Tensor, "all_rows Tq d_model"]:
    """Run rows that equal clean rows up to a layer and a position.

    Args:
        joins: layer -> which clean rows join at its input; results are in the order of layers.
        start: first position that is run, so Tq = T - start; earlier ones are read from the clean
            run's keys and values. Masked models: 0.
        hook: called at every site from the first join on, with all rows present there.
        arriving: returns the input of every layer from the first join on; by default joining rows
            enter with their clean inputs, and the others are unchanged.

    Returns:
        Last hidden states of all rows at positions ``start`` and after.

    Raises:
        ValueError: when a masked model is asked to start after position 0.
    """
    if start and not lm.is_causal:
        raise ValueError(
            f"start {start}: expected 0 for a masked model, whose tokens all see each other"
        )

    def unchanged(layer: int, before: Tensor) -> Tensor:
        if layer not in joins:
            return before
        return torch.cat([before, clean.layer_inputs[layer][joins[layer]][:, start:]])

    arriving = arriving or unchanged
    if not may_resume(lm, clean.ids.shape[1]):
        return _whole(lm, clean, joins=joins, start=start, hook=hook, arriving=arriving)
    first = min(joins)
    # layer -> clean row behind each row present: the cache gathers keys and values by it
    rows, present = {}, torch.zeros(0, dtype=torch.long, device=clean.ids.device)
    for layer in range(lm.n_layers):
        present = torch.cat([present, joins[layer]]) if layer in joins else present
        rows[layer] = present
    options: dict[str, Any] = {}
    length = clean.ids.shape[1]
    if lm.is_causal:
        prefix = (
            tuple(k[:, :, :start] for k in clean.keys),
            tuple(v[:, :, :start] for v in clean.values),
        )
        options = {"past_key_values": PrefixCache(*prefix, rows), "use_cache": True}
        options["position_ids"] = torch.arange(start, length, device=clean.ids.device)[None]
        options["mask"] = causal_mask(length - start, start, lm.dtype, clean.ids.device)
    with (
        _joining(lm, first, clean, start, arriving),
        lm.site_hooks(hook, range(first, lm.n_layers)),
    ):
        # the ids only give the shape: _joining replaces the input of the first layer that runs
        output = lm.hidden(clean.ids[joins[first], start:], **options)
    hidden: Tensor = output.last_hidden_state
    return hidden


def causal_mask(
    queries: int, before: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 1 queries keys"]:
    """Return the additive mask of ``queries`` positions that follow ``before`` visible ones."""
    mask = torch.full(
        (queries, before + queries), torch.finfo(dtype).min, dtype=dtype, device=device
    )
    return mask.triu(before + 1)[None, None]


@contextmanager
def _joining(
    lm: LanguageModel, first: int, clean: CleanRun, start: int, arriving: Arriving
) -> Iterator[None]:
    """Skip the layers below ``first``; add rows to the input of the layers where they join."""
    nobody = clean.layer_inputs[first][:0, start:]
    with ExitStack() as stack:
        stack.enter_context(skipping(lm, range(first)))

        def join(layer: int, hidden: Tensor) -> Tensor:
            return arriving(layer, nobody if layer == first else hidden)

        stack.enter_context(lm.input_hooks(join, range(first, lm.n_layers)))
        yield


@contextmanager
def skipping(lm: LanguageModel, layers: Iterable[int]) -> Iterator[None]:
    """Let each of ``layers`` return its input, in the structure that the family's layers use.

    A module that is shared with a layer outside of ``layers`` still runs.
    """
    chosen = set(layers)
    needed = {id(module) for layer, module in enumerate(lm.layers) if layer not in chosen}

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, None) if lm.architecture.tuple_layers else hidden_states

    with ExitStack() as stack:
        for layer in chosen:
            if id(lm.layers[layer]) not in needed:
                stack.enter_context(replaced_forward(lm.layers[layer], forward))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward method of ``module`` while open; one that accelerate set comes back."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _whole(
    lm: LanguageModel,
    clean: CleanRun,
    *,
    joins: Mapping[int, Tensor],
    start: int,
    hook: SiteHook,
    arriving: Arriving,
) -> Float[Tensor, "all_rows Tq d_model"]:
    """Run :func:`resume` where rows cannot join: every row from layer 0 on.

    The hook still sees only the rows that have joined and the positions from ``start`` on.
    """
    # rows are in the order in which they join: the first counts[layer] are present at a layer
    layers = sorted(joins)
    counts = {
        layer: sum(len(joins[j]) for j in layers if j <= layer) for layer in range(lm.n_layers)
    }

    def partial(layer: int, keys: Tensor, values: Tensor) -> Tensor:
        # OPT's MLP sees rows and positions as one axis
        n, shape = counts[layer], (len(ids), ids.shape[1], -1)
        keys, old = keys.reshape(shape), values.reshape(shape)
        if not n:
            return values
        new = hook(layer, keys[:n, start:], old[:n, start:])
        return torch.cat([torch.cat([old[:n, :start], new], 1), old[n:]]).reshape(values.shape)

    def put(layer: int, hidden: Tensor) -> Tensor:
        new = arriving(layer, hidden[: counts.get(layer - 1, 0), start:])
        hidden = hidden.clone()
        hidden[: counts[layer], start:] = new
        return hidden

    ids = clean.ids[torch.cat([joins[layer] for layer in layers])]
    inputs = lm.input_hooks(put, range(layers[0], lm.n_layers))
    with inputs, lm.site_hooks(partial, range(lm.n_layers)):
        options: dict[str, Any] = {"use_cache": False} if lm.is_causal else {}
        hidden: Tensor = lm.hidden(ids, **options).last_hidden_state
    return hidden[:, start:]
