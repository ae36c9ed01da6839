"""Random neurons that match given ones: same number, same layers, nearest in mean activation.

The control of every effect of knowledge neurons: does any active neuron of that layer do the same?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.localise.selection import Neuron, Neurons

NEAREST = 20
"""Candidates for each neuron: those of its layer with the nearest mean activation."""


def matched(
    activation: Float[Tensor, "n_layers d_mlp"],
    neurons: Iterable[Neuron],
    generator: torch.Generator,
    *,
    nearest: int = NEAREST,
) -> Neurons:
    """Return one random set that matches ``neurons`` and shares none with them.

    Args:
        activation: mean activation of every neuron at the answer position.
        generator: on the CPU.
        nearest: how many candidates each neuron is sampled from.

    Raises:
        ValueError: when a layer has too few other neurons.
    """
    by_layer: dict[int, list[Neuron]] = defaultdict(list)
    for neuron in sorted(neurons):
        by_layer[neuron.layer].append(neuron)
    drawn: set[Neuron] = set()
    for layer, members in by_layer.items():
        row = activation[layer].double().cpu()
        if 2 * len(members) > len(row):
            raise ValueError(
                f"layer {layer}: expected at most {len(row) // 2} neurons to match, half of its "
                f"{len(row)}, got {len(members)}"
            )
        taken = {neuron.unit for neuron in members}
        for neuron in members:
            index = _near(row, neuron.unit, taken, nearest, generator)
            taken.add(index)
            drawn.add(Neuron(layer, index))
    return frozenset(drawn)


def _near(
    row: Tensor, index: int, taken: set[int], nearest: int, generator: torch.Generator
) -> int:
    distance = (row - row[index]).abs()
    distance[list(taken)] = torch.inf
    free = len(row) - len(taken)
    candidates = distance.argsort(stable=True)[: min(nearest, free)]
    return int(candidates[torch.randint(len(candidates), (1,), generator=generator)])
