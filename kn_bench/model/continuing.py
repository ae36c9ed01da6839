"""What follows prompts of unequal length, all in the same passes: greedy or given tokens.

    prompt 0   . . k k | t t t        k  attention keys and values of the prompt, padded on the left
    prompt 1   k k k k | t t t        t  tokens that follow, one a pass

A pass over one token a row costs about as much for ten rows as for a hundred, so rows of all
lengths share it: the keys of shorter prompts are padded, and a mask hides the padding. Prompts of
one length are continued as they are, without a mask, and so is every prompt of a family whose rows
cannot be padded, or with a window of attention that a row might outgrow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from kn_bench.model.architecture import window_of
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.rows import Following, Prompt, RowContext, Settled


@dataclass(frozen=True)
class Going:
    """Rows that are to be continued.

    Attributes:
        past: transformers' cache of the rows.
        edit_of: number of the edit that each row runs under.
        padding: columns of the cache that are none of a row's own; None where all rows have all.
    """

    past: Any
    edit_of: Int[Tensor, " rows"]
    padding: Int[Tensor, " rows"] | None = None

    def select(self, rows: Int[Tensor, " n"]) -> Going:
        """Return some of the rows; the cache of the others is given up."""
        self.past.batch_select_indices(rows)
        padding = None if self.padding is None else self.padding[rows]
        return Going(self.past, self.edit_of[rows], padding)

    def copied(self, rows: Int[Tensor, " n"], room: int) -> Going:
        """Return copies of ``rows``, each any number of times, with room for other tokens."""
        past = DynamicCache()
        for layer in self.past.layers:
            at = rows.to(layer.keys.device)  # the layers may be spread over several GPUs
            keys, values = layer.keys[at], layer.values[at]
            past.layers.append(_PreallocatedLayer([keys], [values], keys.shape[2], room))
        padding = None if self.padding is None else self.padding[rows]
        return Going(past, self.edit_of[rows], padding)

    def options(self, dtype: torch.dtype, queries: int = 1) -> dict[str, Any]:
        """Return the mask and the positions of a pass over the next ``queries`` tokens."""
        padding = self.padding
        if padding is None:
            if queries == 1:
                return {}
            padding = torch.zeros_like(self.edit_of)
        columns = self.past.get_seq_length()
        places = torch.arange(columns + queries, device=padding.device)
        own = torch.arange(queries, device=padding.device)
        later = places > columns + own[:, None]
        hidden = (places < padding[:, None])[:, None] | later
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        mask.masked_fill_(hidden, torch.finfo(dtype).min)
        return {"mask": mask[:, None], "position_ids": columns - padding[:, None] + own}


def may_be_padded(lm: LanguageModel) -> bool:
    """Tell whether rows of unequal length may be continued together."""
    return lm.is_causal and lm.architecture.resumable and window_of(lm.hf.config) is None


class _PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in buffers with room for new tokens: nothing is copied to add one.

    Args:
        keys, values: the same layer's of several passes, whose rows follow one another.
        columns: of the longest; shorter ones are padded on the left.
        room: columns for the tokens to come.
    """

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], columns: int, room: int
    ) -> None:
        super().__init__()
        self.lazy_initialization(keys[0], values[0])
        self._buffers = [_padded(parts, columns, room) for parts in (keys, values)]
        self._expose(columns)

    def _expose(self, columns: int) -> None:
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self._expose(stop)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = [buffer[indices.to(buffer.device)] for buffer in self._buffers]
        self._expose(self.keys.shape[2])


def _padded(
    parts: Sequence[Float[Tensor, "_ heads _ d_head"]], columns: int, room: int
) -> Float[Tensor, "all_rows heads {columns}+{room} d_head"]:
    """Return the rows of all parts, each ending at ``columns``."""
    rows = sum(len(part) for part in parts)
    _, heads, _, size = parts[0].shape
    result = parts[0].new_empty(rows, heads, columns + room, size)
    for part, rows_of in zip(parts, torch.split(result, list(map(len, parts))), strict=True):
        begin = columns - part.shape[2]
        rows_of[:, :, :begin] = 0  # uninitialised memory may hold NaN, which no mask hides
        rows_of[:, :, begin:columns] = part
    return result


def joined(parts: Sequence[Going], room: int) -> Going:
    """Return the rows of several passes as one, their keys and values padded on the left.

    Args:
        room: tokens that are to follow.
    """
    layers_of = [getattr(part.past, "layers", (None,)) for part in parts]
    plain = all(type(layer) is DynamicLayer for layers in layers_of for layer in layers)
    if len(parts) == 1 and not plain:  # a window of attention, or a cache of another kind
        return parts[0]
    lengths = [part.past.get_seq_length() for part in parts]
    longest = max(lengths)
    past = DynamicCache()
    past.layers = [
        _PreallocatedLayer([p.keys for p in layers], [p.values for p in layers], longest, room)
        for layers in zip(*layers_of, strict=True)
    ]
    edit_of = torch.cat([part.edit_of for part in parts])
    if len(parts) == 1:
        return Going(past, edit_of)
    padding = [
        torch.full_like(part.edit_of, longest - length)
        for part, length in zip(parts, lengths, strict=True)
    ]
    return Going(past, edit_of, torch.cat(padding))


def continued(
    lm: LanguageModel,
    going: Going,
    first: Int[Tensor, "rows 1"],
    edits: RowContext,
    n_tokens: int,
    prompts: Sequence[Prompt],
    settled: Settled | None,
) -> list[list[int]]:
    """Continue each row by its most probable token, until it ends or has ``n_tokens``.

    A row ends with a token that ends a text, which it keeps, or where it is settled.

    Args:
        first: the first token of each continuation.
        prompts: of the rows, for ``settled``.
        settled: None where every row is to have all tokens.
    """
    ends = lm.end_ids
    if settled is None:
        whole: list[list[int]] = continue_greedily(lm, going, first, edits, n_tokens).tolist()
        return [_until(ends, tokens) for tokens in whole]
    generated: list[list[int]] = first.tolist()
    rows, last = list(range(len(prompts))), first
    for _ in range(n_tokens - 1):
        left = [
            i
            for i, row in enumerate(rows)
            if generated[row][-1] not in ends and not settled(prompts[row], generated[row])
        ]
        if not left:
            break
        if len(left) < len(rows):
            kept = torch.tensor(left, device=first.device)
            going, last, rows = going.select(kept), last[kept], [rows[i] for i in left]
        last = continue_greedily(lm, going, last, edits, 2)[:, 1:]
        for row, (token,) in zip(rows, last.tolist(), strict=True):
            generated[row].append(token)
    return generated


def _until(ends: Collection[int], tokens: list[int]) -> list[int]:
    """Return ``tokens`` up to the first that ends a text: a model that is fed it begins another."""
    last = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]


def continue_greedily(
    lm: LanguageModel,
    going: Going,
    first: Int[Tensor, "rows 1"],
    edits: RowContext,
    n_tokens: int,
) -> Int[Tensor, "rows n_tokens"]:
    """Continue rows by each one's most probable token.

    Args:
        first: the first token of each continuation.
    """
    tokens = [first]
    everywhere = torch.ones_like(first, dtype=torch.bool)
    with edits.on(going.edit_of, everywhere):
        for _ in range(n_tokens - 1):
            output = lm.hidden(
                tokens[-1], past_key_values=going.past, use_cache=True, **going.options(lm.dtype)
            )
            tokens.append(lm.logits(output.last_hidden_state[:, -1]).argmax(-1, keepdim=True))
    return torch.cat(tokens, 1)


def followed(
    lm: LanguageModel,
    going: Going,
    edits: RowContext,
    rows: Sequence[int],
    following: Sequence[Following],
) -> Float[Tensor, "n width d_model"]:
    """Feed given tokens to copies of some rows; those of ``going`` stay as they are.

    Args:
        rows: the row that each of ``following`` goes on from.

    Returns:
        The last hidden states at the tokens of each of ``following``; shorter ones are padded.
    """
    width = max(len(each.ids) for each in following)
    # what pads a row on the right comes after all that is read
    ids = lm.tensor([each.ids + (0,) * (width - len(each.ids)) for each in following])
    copies = going.copied(torch.tensor(rows, device=ids.device), width)
    with edits.on(copies.edit_of, torch.ones_like(ids, dtype=torch.bool)):
        output = lm.hidden(
            ids, past_key_values=copies.past, use_cache=True, **copies.options(lm.dtype, width)
        )
    hidden: Tensor = output.last_hidden_state
    return hidden
