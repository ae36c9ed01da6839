"""Integration rules over the path g in [0, 1] that scales a layer's neurons from 0 to their value.

    adaptive   Gauss-Legendre, 5 nodes; quartered where completeness fails  (the default)
    riemann    g = k/m,       k = 0..m-1, weight 1/m                        (Dai et al. 2022, code)
    linspace   g = k/(m - 1), k = 0..m-1, weight 1/m: both ends count       (EleutherAI; biased)

The last two are for comparison with published numbers: their error is not controlled, and linspace
gives both ends the weight of a whole step, where the trapezoidal rule gives them half.

A rule is a list of nodes on [0, 1]; an interval [low, high] of a path takes the same nodes at
``low + (high - low) * places`` with weights times ``high - low``. Nodes are the fastest axis of a
pass: row ``interval * n_nodes + node``, so that the sum over nodes is one reshape.
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
    """Nodes on an interval of unit length, and their weights, which add up to 1."""

    places: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Rule:
    """How the integral is taken, and when it counts as converged.

    Attributes:
        name: ``adaptive``, ``riemann`` or ``linspace``.
        nodes: nodes of an interval; None for 5 (adaptive) or 20 (the published rules).
        tolerance: allowed completeness error, as a share of |P(w) - P(0)|.
        floor: the error in P that is always allowed: float32 does not resolve less.
        most: nodes of a path after which the adaptive rule stops, and reports the error.

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
            raise ValueError(f"rule {self.name!r}: expected one of {', '.join(RULES)}")
        if self.n_nodes < FEWEST_NODES:
            raise ValueError(f"{self.n_nodes} integration nodes: expected at least {FEWEST_NODES}")

    @property
    def n_nodes(self) -> int:
        """Nodes of one interval."""
        return self.nodes or (FEWEST_NODES if self.name == "adaptive" else 20)

    def on_unit_interval(self) -> Nodes:
        """Return the rule's nodes and weights on [0, 1]."""
        m = self.n_nodes
        if self.name == "adaptive":
            x, w = np.polynomial.legendre.leggauss(m)  # on [-1, 1]
            return Nodes((x + 1) / 2, w / 2)
        places = np.arange(m) / (m if self.name == "riemann" else m - 1)
        return Nodes(places, np.full(m, 1 / m))

    def allowed(self, change: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Return the allowed completeness error where P changes by ``change`` from g = 0 to 1."""
        return (self.tolerance * change.abs()).clamp_min(self.floor)
