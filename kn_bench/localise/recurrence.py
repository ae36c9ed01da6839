"""In how many pairs of a class does a neuron recur (Niu et al. 2024, section 3 and Figure 1)?

A neuron recurs in a pair in whose coarse set it is: whose attribution it holds to more than a
fifth of the highest. Of thousands of neurons some recur by chance, so the highest share that any
of them reaches where nothing is shared stands beside the shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kn_bench.localise.selection import Neuron, Neurons


class Recurrence(NamedTuple):
    """A neuron and the share of each class's pairs in whose coarse set it is."""

    neuron: Neuron
    shares: tuple[float, ...]


class ByChance(NamedTuple):
    """The highest share that any neuron reaches where pairs share nothing."""

    mean: float
    high: float
    """95th percentile over the draws."""


def recurrences(sets: Sequence[Sequence[Neurons]], *, least: float = 0.0) -> list[Recurrence]:
    """How often each neuron recurs in the coarse sets of each class, the commonest first.

    Args:
        sets: of each class, the coarse sets of its pairs.
        least: neurons whose share is below this in every class are left out.
    """
    neurons = {neuron for group in sets for one in group for neuron in one}
    found = [
        Recurrence(
            neuron,
            tuple(sum(neuron in one for one in group) / max(1, len(group)) for group in sets),
        )
        for neuron in sorted(neurons)
    ]
    kept = [one for one in found if max(one.shares) >= least]
    return sorted(kept, key=lambda one: (-max(one.shares), one.neuron))


def chance_recurrence(
    sets: Sequence[Neurons], d_mlp: int, *, draws: int = 100, seed: int = 0
) -> ByChance:
    """The highest share among all neurons, when each pair has as many in each layer, at random.

    The same null as that of R_1^2, every pair permuted within layers; of the highest share, since
    neurons are listed because they recur.

    Args:
        sets: coarse sets of one class's pairs.
        d_mlp: neurons in a layer.

    Raises:
        ValueError: when there are no pairs.
    """
    if not sets:
        raise ValueError("no pairs: no share can be drawn")
    counts = [Counter(neuron.layer for neuron in one) for one in sets]
    layers = {layer for count in counts for layer in count}
    rng = np.random.default_rng(seed)
    highest = np.zeros(draws)
    for draw in range(draws):
        for layer in layers:
            times = np.zeros(d_mlp)
            for count in counts:
                times[rng.choice(d_mlp, count[layer], replace=False)] += 1
            highest[draw] = max(highest[draw], times.max() / len(sets))
    return ByChance(float(highest.mean()), float(np.percentile(highest, 95)))


def number_neuron(own: Sequence[Sequence[Neurons]], other: Sequence[Sequence[Neurons]]) -> Neuron:
    """The neuron that is shared by all classes of one number, and rare in those of the other.

    It has the greatest difference between its least share in a class of its own number (*these*,
    *those*) and its greatest in one of the other (*this*, *that*).

    Raises:
        ValueError: when no neuron is in any coarse set.
    """
    found = recurrences([*own, *other])
    if not found:
        raise ValueError("no pair has a coarse set: no number neuron can be named")
    n = len(own)
    return max(found, key=lambda one: min(one.shares[:n]) - max(one.shares[n:], default=0)).neuron
