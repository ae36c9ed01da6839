"""Select knowledge neurons by their attribution scores (Dai et al. 2022, section 3.2).

    coarse     per prompt: alpha > t * max over all layers and neurons
    refined    over the prompts of one fact or class: in more than a share p of their coarse sets
    adaptive   p moves by 0.05 until 2 to 5 neurons are left       (the published cap)

With the cap, knowledge can never be found to be distributed: report the refined set as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Neuron(NamedTuple):
    """Coordinate ``unit`` of the input of the site of ``layer``."""

    layer: int
    unit: int


Neurons = frozenset[Neuron]


@dataclass(frozen=True)
class Refined:
    """A set of knowledge neurons and how it was selected.

    Attributes:
        neurons: what was selected.
        tau: the share p where the rule stopped. As published, p moves after every round that does
            not end the search, so without convergence it is one step ahead of the set.
        converged: whether the number of neurons is within the bounds (always so without bounds).
        rounds: how often p was tried.
    """

    neurons: Neurons
    tau: float
    converged: bool = True
    rounds: int = 1


def coarse(scores: Float[Tensor, "n_layers d_mlp"], t: float = 0.2) -> Neurons:
    """Return neurons with a score above ``t`` times the highest of all layers and neurons."""
    above = scores > scores.max().item() * t
    return frozenset(Neuron(layer, unit) for layer, unit in above.nonzero().tolist())


def refined(sets: Sequence[Iterable[Neuron]], p: float = 0.7) -> Refined:
    """Return neurons in more than a share ``p`` of the prompts' coarse sets; no cap."""
    return Refined(_shared(_counted(sets), len(sets), p), p)


def adaptive(
    sets: Sequence[Iterable[Neuron]],
    p: float = 0.7,
    *,
    low: int = 2,
    high: int = 5,
    step: float = 0.05,
    rounds: int = 20,
) -> Refined:
    """Move ``p`` by ``step`` until ``low`` to ``high`` neurons are left, at most ``rounds`` times.

    ``p`` is a running float sum, as in published code: 0.7 - 0.05 - 0.05 is a little less than 0.6,
    so that 6 prompts of 10 are more than that share. Where it alternates between too many and too
    few neurons, the last of the ``rounds`` decides, as published.
    """
    counted = _counted(sets)
    neurons: Neurons = frozenset()
    for tried in range(1, rounds + 1):
        neurons = _shared(counted, len(sets), p)
        if low <= len(neurons) <= high:
            return Refined(neurons, p, rounds=tried)
        p = p + step if len(neurons) > high else p - step
    return Refined(neurons, p, converged=False, rounds=rounds)


def shared_by(sets: Sequence[Iterable[Neuron]], share: float) -> Neurons:
    """Return neurons in more than ``share`` of the sets of *other* facts of the relation."""
    return _shared(_counted(sets), len(sets), share)


def _counted(sets: Iterable[Iterable[Neuron]]) -> Counter[Neuron]:
    return Counter(neuron for coarse_set in sets for neuron in coarse_set)


def _shared(counted: Counter[Neuron], n: int, p: float) -> Neurons:
    return frozenset(neuron for neuron, count in counted.items() if count > n * p)
