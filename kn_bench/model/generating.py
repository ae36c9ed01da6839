"""Generation with kept keys and values, whatever hooks the model has on it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.model.tokens import Tokens

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


def prompt_ids(model: str, tokens: Tokens, prompt: str, new: int) -> list[int]:
    """Return the ids of a prompt that the model can go on from, or fill in.

    Args:
        model: its name.
        new: tokens that are to follow in a causal model.

    Raises:
        ValueError: for a prompt that is empty or leaves no room in the model, or that holds half a
            character; for a masked model's without exactly one mask.
    """
    ids = list(tokens.encode(prompt).ids)
    what = f"{prompt[:40]!r}"
    if tokens.kind == "masked":
        if (masks := sum(id == tokens.mask_id for id in ids)) != 1:
            raise ValueError(
                f"{prompt!r}: expected one {tokens.mask_token} in a prompt for the masked model "
                f"{model}, got {masks}"
            )
        if len(ids) > tokens.max_length:
            raise ValueError(
                f"{what}: expected at most {tokens.max_length} tokens in a prompt for {model}, "
                f"got {len(ids)}; shorten it"
            )
        return ids
    ids = ids[: len(ids) - tokens.n_closing]
    room = tokens.max_length - new
    if room < 1:
        raise ValueError(
            f"max_new_tokens {new}: expected at most {tokens.max_length - 1}, since {model} has "
            f"room for {tokens.max_length} tokens with the prompt"
        )
    if not 1 <= len(ids) <= room:
        raise ValueError(
            f"{what}: expected 1 to {room} tokens before {new} new ones, got {len(ids)}"
        )
    return ids


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
