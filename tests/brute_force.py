"""The oracle: the whole model, run anew for every layer and every step. Slow and plain on purpose.

Shares nothing with the fast path but the integration rule: no resuming, no batching, and the
gradient is taken by the neurons themselves.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_bench.localise.integration import Nodes


@dataclass(frozen=True)
class Place:
    """Where neurons are: what enters a module at one position, or with ``output`` leaves it.

    ``call`` counts the module's calls in a pass, for layers that share their modules.
    """

    module: nn.Module
    position: int
    output: bool = False
    call: int = 0


def integrated_gradients(
    hf: Any, ids: Int[Tensor, " T"], token: int, place: Place, nodes: Nodes
) -> Float[Tensor, " n"]:
    """w * integral of dP/dw along g * w, P the probability of ``token`` at the place's position.

    Args:
        hf: a Hugging Face language model.
        nodes: places g in [0, 1] and weights of the rule.
    """
    clean = neurons_at(hf, ids, place)
    total = torch.zeros_like(clean)
    for g, weight in zip(nodes.places.tolist(), nodes.weights.tolist(), strict=True):
        neurons = (g * clean).requires_grad_()
        p = probability(hf, ids, token, place, neurons)
        total += weight * torch.autograd.grad(p, neurons)[0]
    return clean * total


def neurons_at(hf: Any, ids: Int[Tensor, " T"], place: Place) -> Float[Tensor, " n"]:
    """The neurons in an unperturbed run."""
    read: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, result: Tensor) -> None:
        read.append((result if place.output else inputs[0]).reshape(len(ids), -1))

    handle = place.module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            hf(input_ids=ids[None])
    finally:
        handle.remove()
    return read[place.call][place.position].detach()


def probability(
    hf: Any, ids: Int[Tensor, " T"], token: int, place: Place, neurons: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """P(``token``) at the place's position where the neurons there are ``neurons``."""
    calls, at = itertools.count(), place.position

    def replaced(tensor: Tensor) -> Tensor | None:
        if next(calls) != place.call:
            return None
        flat = tensor.reshape(len(ids), -1)
        return torch.cat([flat[:at], neurons[None], flat[at + 1 :]]).reshape(tensor.shape)

    if place.output:
        handle = place.module.register_forward_hook(lambda _, __, result: replaced(result))
    else:
        handle = place.module.register_forward_pre_hook(lambda _, inputs: replaced(inputs[0]))
    try:
        logits = hf(input_ids=ids[None]).logits[0, at]
    finally:
        handle.remove()
    answer: Tensor = logits.softmax(-1)[token]
    return answer
