"""Does the attribution matter? Neurons chosen on half of the prompts, suppressed on the others.

Integrated gradients against activation, gradient x activation and direct ablation (a search for
what lowers P most, neuron by neuron), with matched random neurons as the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kn_bench.editing.edit import NoEdit
from kn_bench.localise.interventions import crossed, suppress
from kn_bench.localise.matching import matched, seeded
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

    Scores = Float[Tensor, "n n_layers d_mlp"]


@dataclass(frozen=True)
class Chosen:
    """What one way to choose neurons did on the prompts it did not see.

    Attributes:
        method: name of the scores.
        neurons: the k highest by mean score on the chosen half.
        change: mean change of log P on the other half, in nats.
        overlap: share of them that the first method chose as well.
    """

    method: str
    neurons: Neurons
    change: float
    overlap: float


def top(scores: Scores, k: int) -> Neurons:
    """The k neurons with the highest mean score."""
    mean = torch.as_tensor(scores).double().mean(0)
    places = mean.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return frozenset(Neuron(*divmod(place, mean.shape[1])) for place in places)


def halves(n: int) -> tuple[list[int], list[int]]:
    """Every other prompt, and the rest."""
    return list(range(0, n, 2)), list(range(1, n, 2))


def choose(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    scores: Sequence[tuple[str, Scores]],
    *,
    k: int = 5,
    draws: int = 20,
    seed: object = 0,
) -> list[Chosen]:
    """Choose k neurons by each of ``scores`` on half of the prompts, suppress them on the other.

    Args:
        scores: (name, scores of every prompt); the one called ``activation`` also matches the
            random neurons, which are added as ``random``.
        draws: random sets.

    Raises:
        ValueError: for fewer than two prompts, or without activations.
    """
    named = dict(scores)
    if len(queries) < 2 or "activation" not in named:
        raise ValueError(
            f"{len(queries)} prompts with scores {', '.join(named)}: choosing needs two prompts or "
            "more, and their activations to match random neurons on"
        )
    seen, unseen = halves(len(queries))
    sets = {name: top(one[seen], k) for name, one in named.items()}
    first = next(iter(sets.values()))
    mean = named["activation"][seen].double().mean(0)
    generator = seeded("choice", seed)
    random = [matched(mean, first, generator) for _ in range(draws)]
    edits = [NoEdit(), *map(suppress, sets.values()), *map(suppress, random)]
    log_probs, _ = crossed(lm, [queries[i] for i in unseen], edits)
    changes = (log_probs[1:] - log_probs[0]).mean(1)
    found = [
        Chosen(name, neurons, float(change), len(neurons & first) / k)
        for (name, neurons), change in zip(sets.items(), changes, strict=False)
    ]
    floor = float(np.mean(changes[len(sets) :]))
    return [*found, Chosen("random", frozenset(), floor, 0.0)]
