"""Integration rules over the path g in [0, 1] along which a layer's neurons grow to their value.

    adaptive   Gauss-Legendre, 5 nodes; halved where completeness fails     (the default)
    riemann    g = k/m,       k = 0..m-1, weight 1/m                        (Dai et al. 2022, code)
    linspace   g = k/(m - 1), k = 0..m-1, weight 1/m: both ends count       (EleutherAI; biased)

The last two are for comparison with published numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

RuleName = Literal["adaptive", "riemann", "linspace"]
RULES: tuple[RuleName, ...] = ("adaptive", "riemann", "linspace")
FEWEST_NODES = 5


class Nodes(NamedTuple):
    """Places on an interval of unit length and their weights."""

    places: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Rule:
    """How the integral is taken, and when it counts as converged.

    Attributes:
        name: ``adaptive``, ``riemann`` or ``linspace``.
        nodes: nodes of an interval; None for 5 (adaptive) or 20 (the published rules).
        tolerance: allowed completeness error, as a share of |P(w) - P(0)|.
        floor: the error in P that is always allowed: below it float32 cannot tell.
        most: nodes after which an adaptive row is left as it is and reported.

    Raises:
        ValueError: for an unknown rule, or fewer than 5 nodes.
    """

    name: RuleName = "adaptive"
    nodes: int | None = None
    tolerance: float = 1e-3
    floor: float = 1e-6
    most: int = 320

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ValueError(f"unknown rule {self.name!r}; known: {', '.join(RULES)}")
        if self.n_nodes < FEWEST_NODES:
            raise ValueError(
                f"{self.n_nodes} integration nodes are too few to attribute by: use at least "
                f"{FEWEST_NODES}"
            )

    @property
    def n_nodes(self) -> int:
        """Nodes of one interval."""
        return self.nodes or (FEWEST_NODES if self.name == "adaptive" else 20)

    def on_unit_interval(self) -> Nodes:
        """The rule's nodes and weights on [0, 1]."""
        m = self.n_nodes
        if self.name == "adaptive":
            x, w = np.polynomial.legendre.leggauss(m)
            return Nodes((x + 1) / 2, w / 2)
        places = np.arange(m) / (m if self.name == "riemann" else m - 1)
        return Nodes(places, np.full(m, 1 / m))

    def allowed(self, change: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Allowed completeness error where P changes by ``change`` from g = 0 to g = 1."""
        return (self.tolerance * change.abs()).clamp_min(self.floor)
