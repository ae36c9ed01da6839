"""Generation with kept keys and values, whatever hooks the model has on it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Choose = Callable[[Float[Tensor, " vocabulary"]], int]
"""Picks a token by its logits."""


def most_probable(logits: Float[Tensor, " vocabulary"]) -> int:
    """Return the token of the largest logit: greedy decoding."""
    return int(logits.argmax())


def top_k(k: int, seed: int) -> Choose:
    """Return a sampler from the ``k`` most probable tokens, their probabilities renormalised.

    Draws are made on the host, so that a seed means the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Float[Tensor, " vocabulary"]) -> int:
        best, tokens = logits.float().cpu().topk(min(k, len(logits)))
        return int(tokens[torch.multinomial(best.softmax(0), 1, generator=generator)])

    return choose


@torch.no_grad()
def continued(
    hf: Any,
    ids: Int[Tensor, "1 T"],
    n: int,
    *,
    ends: Collection[int],
    choose: Choose = most_probable,
) -> list[int]:
    """Return the ids of a continuation of ``ids``, at most ``n``.

    Args:
        hf: a causal Hugging Face model.
        ends: the ids at which a text ends; they are not returned.
        choose: picks each token.
    """
    new: list[int] = []
    past = None
    while len(new) < n:
        output = hf(input_ids=ids, past_key_values=past, use_cache=True)
        token = choose(output.logits[0, -1])
        if token in ends:
            break
        new.append(token)
        ids, past = ids.new_tensor([[token]]), output.past_key_values
    return new
