"""The rank-one update: W' = W + u v with k u v = v_star - W k (ROME, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from kn_bench.editing.closed_form import Covariance
from kn_bench.editing.edit import LowRank
from kn_bench.editing.rome.problem import Value

KeyChoice = Literal["bare", "mean"]
"""Which key a formula takes: that of the bare prompt, or the mean over contexts."""


@dataclass(frozen=True)
class RankOne:
    """One update with what is recorded of it.

    Attributes:
        update: u [d_mlp, 1] of unit norm, v [1, d_model].
        denominator: k_p . u; near 0 the edit disables the model.
    """

    update: LowRank
    denominator: float


def rank_one(
    value: Value,
    layer: int,
    *,
    solver: Covariance | None,
    u_from: KeyChoice = "mean",
    k_p_from: KeyChoice = "bare",
) -> RankOne:
    """Return the update that makes the site of ``layer`` answer v_star to the key k_p.

    Args:
        solver: holds C; without it u is along the key itself.
        u_from: the key u is made of.
        k_p_from: the key in the denominator and in W k_p. ROME as published takes the bare prompt's
            here though u has the mean; R-ROME takes the same in both.
    """
    k = _pick(value.keys.double(), u_from)
    u = k if solver is None else solver.solve(k[None])[0]
    u = u / u.norm()
    denominator = _pick(value.keys.double(), k_p_from) @ u
    # the site's outputs hold its bias, and so does v_star
    v = (value.v_star.double() - _pick(value.outputs.double(), k_p_from)) / denominator
    dtype = value.keys.dtype
    update = LowRank(layer, u.to(dtype)[:, None], v.to(dtype)[None])
    return RankOne(update, float(denominator))


def _pick(rows: Float[Tensor, "contexts d"], which: KeyChoice) -> Float[Tensor, " d"]:
    return rows[0] if which == "bare" else rows.mean(0)
