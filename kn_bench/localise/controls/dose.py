"""Dose and response: how much of an answer goes with how many of its neurons?

Neurons are suppressed from the highest attribution down, and what is left is read off: probability,
rank and accuracy. A mean fall by half may be half of the facts gone, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kn_bench.localise.interventions import crossed, suppress
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float

DOSES = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)


@dataclass(frozen=True)
class DoseResponse:
    """What is left after suppressing the first k neurons of an order.

    Attributes:
        doses: k.
        probability: mean P(answer).
        accuracy: share of prompts whose answer is the argmax.
        rank: mean rank of the answer's first token, 0 for the argmax.
    """

    doses: tuple[int, ...]
    probability: tuple[float, ...]
    accuracy: tuple[float, ...]
    rank: tuple[float, ...]

    def needed(self, share: float) -> int | None:
        """The least dose that takes this share of the greatest loss of probability.

        None where no dose loses anything.
        """
        lost = self.probability[0] - np.asarray(self.probability)
        if lost.max() <= 0:
            return None
        return self.doses[int(np.argmax(lost >= share * lost.max()))]


def dose_response(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    order: Sequence[Neuron],
    *,
    doses: Sequence[int] = DOSES,
) -> DoseResponse:
    """Suppress the first k neurons of ``order`` for each dose k.

    Args:
        doses: 0 first; those beyond the order are left out.

    Raises:
        ValueError: when 0 is not the first dose.
    """
    if not doses or doses[0] != 0:
        raise ValueError(f"the doses {list(doses)} must start with 0, the model as it is")
    taken = [k for k in doses if k <= len(order)]
    log_probs, ranks = crossed(lm, queries, [suppress(order[:k]) for k in taken])
    return DoseResponse(
        tuple(taken),
        _means(np.exp(log_probs)),
        _means(ranks == 0),
        _means(ranks),
    )


def _means(values: Float[np.ndarray, "doses queries"]) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=float).mean(1).tolist())
