"""Do random neurons do the same? Of the same number, in the same layers, as active on the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kn_bench.editing.edit import NoEdit
from kn_bench.localise.interventions import crossed, scale
from kn_bench.localise.matching import matched, seeded
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neurons
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

DRAWS = 20


@dataclass(frozen=True)
class AgainstRandom:
    """An effect beside those of matched random neurons.

    Attributes:
        n_neurons: how many were scaled.
        effect: mean change of log P(answer), in nats.
        draws: the same for each random set.
        z: (effect - mean of draws) / their standard deviation; nan where that is 0.
        p: share of draws at least as extreme in the effect's direction, (b + 1) / (m + 1).
    """

    n_neurons: int
    effect: float
    draws: tuple[float, ...]

    @property
    def z(self) -> float:
        spread = float(np.std(self.draws, ddof=1))
        return (self.effect - float(np.mean(self.draws))) / spread if spread else float("nan")

    def p(self, *, falls: bool = True) -> float:
        """One-sided p: of a fall that is as deep (``falls``), or a rise that is as high."""
        extreme = [d <= self.effect if falls else d >= self.effect for d in self.draws]
        return (sum(extreme) + 1) / (len(extreme) + 1)


def against_random(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    neurons: Neurons,
    activation: Float[Tensor, "n_layers d_mlp"],
    *,
    factor: float = 0.0,
    draws: int = DRAWS,
    seed: object = 0,
) -> AgainstRandom:
    """Scale ``neurons``, and as many random ones ``draws`` times, on the same prompts.

    Args:
        activation: mean activation of every neuron at these prompts' answer positions.
        factor: 0 suppresses, 2 enhances.
        seed: of the draws; take the group's id, so that groups draw on their own.
    """
    generator = seeded("matched", seed)
    sets = [neurons, *(matched(activation, neurons, generator) for _ in range(draws))]
    log_probs, _ = crossed(lm, queries, [NoEdit(), *(scale(one, factor) for one in sets)])
    changes = (log_probs[1:] - log_probs[0]).mean(1)
    return AgainstRandom(len(neurons), float(changes[0]), tuple(changes[1:].tolist()))


def mean_activation(
    activations: Float[Tensor, "n n_layers d_mlp"],
) -> Float[Tensor, "n_layers d_mlp"]:
    """What random neurons are matched on."""
    mean: Tensor = torch.as_tensor(activations).double().mean(0)
    return mean
