"""Rows that follow prefixes of unequal length, whose attention keys and values are known.

    row 0   k k k k | q q q .         k  keys and values of the prefix, padded on the left (P)
    row 1   . . k k | q q q q         q  positions that are run, padded on the right (Tq)

Padding on the outer sides lets every row's prefix end, and its queries begin, in the same column:
one causal mask over the queries serves all rows, and only the mask over P depends on the row. The
axis of keys is P + Tq columns; positions are counted in the row's own tokens, without padding.

The model's own forward pass does the work, with a ready mask and position ids. Rows must be shorter
than any window of attention, for which the ready mask makes no provision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from kn_bench.model.language_model import LanguageModel
from kn_bench.model.resuming import PrefixCache


class States(NamedTuple):
    """Keys and values of every layer for one prefix, ``[heads, n, d_head]`` each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class Prefixes:
    """Keys and values of the text before the rows of a batch.

    Attributes:
        keys, values: per layer ``[rows, heads, P, d_head]``, padded on the left, on the layer's
            device; empty where no row has a prefix.
        counts: tokens of each row's prefix.
    """

    keys: tuple[Float[Tensor, "rows heads P d_head"], ...]
    values: tuple[Float[Tensor, "rows heads P d_head"], ...]
    counts: Int[Tensor, " rows"]

    @property
    def longest(self) -> int:
        return int(self.keys[0].shape[2]) if self.keys else 0


class Recorded(PrefixCache):
    """Reads prefixes and records what each layer attends to: prefixes and new positions."""

    def __init__(self, prefixes: Prefixes) -> None:
        super().__init__(prefixes.keys, prefixes.values)
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self._any = bool(prefixes.keys)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        seen = (key_states, value_states)
        if self._any:
            seen = super().update(key_states, value_states, layer_idx, *rest, **more)
        self.seen[layer_idx] = seen
        return seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) if self._any else 0


def shared_prefixes(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    counts: Sequence[int],
) -> Prefixes:
    """Return the states of each row's first ``counts`` tokens, each distinct prefix run once."""
    at = torch.tensor(counts, device=lm.device)
    if not any(counts):
        return Prefixes((), (), at)
    wanted = [tuple(row[:n]) for row, n in zip(rows, counts, strict=True)]
    kept: dict[tuple[str, tuple[int, ...]], States] = lm.memo.get_many(
        [("prefix", ids) for ids in wanted if ids],
        lambda missing: _run(lm, [ids for _, ids in missing]),
    )
    states = {ids: of_prefix for (_, ids), of_prefix in kept.items()}
    states[()] = _empty(next(iter(states.values())))
    # stacked once per distinct prefix and then gathered: many rows share few prefixes
    distinct = list(states)
    index = torch.tensor([distinct.index(ids) for ids in wanted], device=lm.device)
    return Prefixes(
        _stacked([states[ids].keys for ids in distinct], index),
        _stacked([states[ids].values for ids in distinct], index),
        at,
    )


@torch.no_grad()
def _run(lm: LanguageModel, prefixes: Sequence[tuple[int, ...]]) -> list[States]:
    ids = padded(lm, prefixes)
    # plain layers: those of a window of attention would leave room for its keys alone
    output = lm.hidden(ids, torch.ones_like(ids), past_key_values=DynamicCache(), use_cache=True)
    layers = output.past_key_values.layers
    return [
        States(
            tuple(layer.keys[row, :, : len(prefix)].clone() for layer in layers),
            tuple(layer.values[row, :, : len(prefix)].clone() for layer in layers),
        )
        for row, prefix in enumerate(prefixes)
    ]


def _empty(like: States) -> States:
    return States(tuple(k[:, :0] for k in like.keys), tuple(v[:, :0] for v in like.values))


def _stacked(
    states: Sequence[tuple[Tensor, ...]], index: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows heads P d_head"], ...]:
    """Stack the prefixes of the rows layer by layer, aligned on the right."""
    # pad_sequence pads the first axis, so positions come before heads while it does
    padded = (
        pad_sequence(
            [heads.transpose(0, 1) for heads in layer], batch_first=True, padding_side="left"
        ).transpose(1, 2)
        for layer in zip(*states, strict=True)
    )
    return tuple(layer[index.to(layer.device)] for layer in padded)


def run_after(
    lm: LanguageModel,
    ids: Int[Tensor, "rows Tq"],
    prefixes: Prefixes,
    stops: Int[Tensor, " rows"],
    cache: PrefixCache,
) -> Float[Tensor, "rows Tq d_model"]:
    """Return the last hidden states of ``ids``, each row following its prefix.

    Args:
        stops: full length of each row, prefix included; positions past it are padding.
        cache: returns ``prefixes`` to the model.
    """
    queries = ids.shape[1]
    positions = prefixes.counts[:, None] + torch.arange(queries, device=ids.device)
    output = lm.hidden(
        ids,
        _mask(lm, prefixes, queries),
        position_ids=positions.minimum(stops[:, None] - 1),
        past_key_values=cache,
        use_cache=True,
    )
    last: Tensor = output.last_hidden_state
    return last


def _mask(
    lm: LanguageModel, prefixes: Prefixes, queries: int
) -> Float[Tensor, "rows 1 Tq P_plus_Tq"]:
    """Return what is added to attention scores: 0 where a query sees a key.

    Padded queries may see anything: nobody reads their outputs.
    """
    device = prefixes.counts.device
    places = torch.arange(prefixes.longest, device=device)
    before = places >= prefixes.longest - prefixes.counts[:, None]
    own = torch.ones(queries, queries, dtype=torch.bool, device=device).tril()
    rows = len(prefixes.counts)
    seen = torch.cat([before[:, None].expand(rows, queries, -1), own.expand(rows, -1, -1)], 2)
    mask = torch.zeros(seen.shape, dtype=lm.dtype, device=device)
    return mask.masked_fill_(~seen, torch.finfo(lm.dtype).min)[:, None]


def padded(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows T"]:
    """Return the rows as one tensor, padded on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(lm.device)
