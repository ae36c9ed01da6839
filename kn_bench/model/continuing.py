"""Greedy continuations of prompts of unequal length, all in the same passes.

    prompt 0   . . k k | t t t        k  attention keys and values of the prompt, padded on the left
    prompt 1   k k k k | t t t        t  tokens that follow, one a pass

A pass over one token a row costs about as much for ten rows as for a hundred, so rows of all
lengths share it: the keys of shorter prompts are padded, and a mask hides the padding. Prompts of
one length are continued as they are, without a mask, and so is every prompt of a family whose rows
cannot be padded, or with a window of attention that a row might outgrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from kn_bench.model.language_model import LanguageModel
from kn_bench.model.rows import Prompt, RowContext, Settled


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

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return what the next token's pass is told of the padding."""
        if self.padding is None:
            return {}
        columns = self.past.get_seq_length()
        places = torch.arange(columns + 1, device=self.padding.device)
        hidden = places < self.padding[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        mask.masked_fill_(hidden, torch.finfo(dtype).min)
        return {"mask": mask[:, None, None], "position_ids": (columns - self.padding)[:, None]}


def may_be_padded(lm: LanguageModel) -> bool:
    """Tell whether rows of unequal length may be continued together."""
    window = getattr(lm.hf.config, "sliding_window", None)
    return lm.is_causal and lm.architecture.resumable and not window


def joined(parts: Sequence[Going]) -> Going:
    """Return the rows of several passes as one, their keys and values padded on the left."""
    if len(parts) == 1:
        return parts[0]
    lengths = [part.past.get_seq_length() for part in parts]
    longest = max(lengths)
    past = DynamicCache()
    for index in range(len(parts[0].past.layers)):
        layers = [part.past.layers[index] for part in parts]
        past.update(
            *(
                torch.cat([pad(kept, (0, 0, longest - kept.shape[2], 0)) for kept in several])
                for several in zip(*((layer.keys, layer.values) for layer in layers), strict=True)
            ),
            index,
        )
    padding = [
        torch.full_like(part.edit_of, longest - length)
        for part, length in zip(parts, lengths, strict=True)
    ]
    return Going(past, torch.cat([part.edit_of for part in parts]), torch.cat(padding))


def continued(
    lm: LanguageModel,
    going: Going,
    first: Int[Tensor, "rows 1"],
    edits: RowContext,
    n_tokens: int,
    prompts: Sequence[Prompt],
    settled: Settled | None,
) -> list[list[int]]:
    """Continue each row by its most probable token, until it is settled or has ``n_tokens``.

    Args:
        first: the first token of each continuation.
        prompts: of the rows, for ``settled``.
        settled: None where every row is to have all tokens.
    """
    if settled is None:
        whole: list[list[int]] = continue_greedily(lm, going, first, edits, n_tokens).tolist()
        return whole
    generated: list[list[int]] = first.tolist()
    rows, last = list(range(len(prompts))), first
    for _ in range(n_tokens - 1):
        left = [i for i, row in enumerate(rows) if not settled(prompts[row], generated[row])]
        if not left:
            break
        if len(left) < len(rows):
            kept = torch.tensor(left, device=first.device)
            going, last, rows = going.select(kept), last[kept], [rows[i] for i in left]
        last = continue_greedily(lm, going, last, edits, 2)[:, 1:]
        for row, (token,) in zip(rows, last.tolist(), strict=True):
            generated[row].append(token)
    return generated


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
