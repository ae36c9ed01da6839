"""Greedy generation with kept keys and values, whatever hooks the model has on it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@torch.no_grad()
def greedy(hf: Any, ids: Int[Tensor, "1 T"], n: int, *, end: int | None) -> list[int]:
    """Return the ids of the greedy continuation of ``ids``, at most ``n``.

    Args:
        hf: a causal Hugging Face model.
        end: the id at which a text ends; it is not returned.
    """
    new: list[int] = []
    past = None
    while len(new) < n:
        output = hf(input_ids=ids, past_key_values=past, use_cache=True)
        token = int(output.logits[0, -1].argmax())
        if token == end:
            break
        new.append(token)
        ids, past = ids.new_tensor([[token]]), output.past_key_values
    return new
