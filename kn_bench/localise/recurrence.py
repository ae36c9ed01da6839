"""Count in how many pairs of a class a neuron recurs (Niu et al. 2024, section 3 and Figure 1).

A neuron recurs in a pair if it is in the pair's coarse set: its score exceeds a fifth of the
highest. Of thousands of neurons some recur by chance, so the shares are compared with the highest
share that any neuron reaches where pairs share nothing.
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
    """Count how often each neuron recurs in the coarse sets of each class, most often first.

    Args:
        sets: of each class, the coarse sets of its pairs.
        least: neurons whose share is below this in every class are left out.
    """
    neurons = {neuron for group in sets for coarse_set in group for neuron in coarse_set}
    recurring = [
        Recurrence(
            neuron,
            tuple(sum(neuron in pair for pair in group) / max(1, len(group)) for group in sets),
        )
        for neuron in sorted(neurons)
    ]
    kept = [entry for entry in recurring if max(entry.shares) >= least]
    return sorted(kept, key=lambda entry: (-max(entry.shares), entry.neuron))


def chance_recurrence(
    sets: Sequence[Neurons], d_mlp: int, *, draws: int = 100, seed: int = 0
) -> ByChance:
    """Return the highest share among all neurons where the pairs of a class share nothing.

    Each pair gets as many random neurons in each layer as its coarse set has, as for the null of
    R_1^2. The highest share is what to compare with, since neurons are listed because they recur.

    Args:
        sets: coarse sets of one class's pairs.
        d_mlp: neurons in a layer.

    Raises:
        ValueError: when there are no pairs.
    """
    if not sets:
        raise ValueError("no pairs: expected the coarse set of at least one")
    counts = [Counter(neuron.layer for neuron in pair) for pair in sets]
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
    """Return the neuron that all classes of one number share and that is rare in the other.

    It has the greatest difference between its least share in a class of its own number (*these*,
    *those*) and its greatest in one of the other (*this*, *that*).

    Raises:
        ValueError: when no neuron is in any coarse set.
    """
    recurring = recurrences([*own, *other])
    if not recurring:
        raise ValueError("coarse sets: expected a neuron in at least one of them")
    n = len(own)

    def contrast(entry: Recurrence) -> float:
        return min(entry.shares[:n]) - max(entry.shares[n:], default=0)

    return max(recurring, key=contrast).neuron
