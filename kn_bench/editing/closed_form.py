"""The closed form behind ROME, MEMIT, EMMET, PMET, AlphaEdit, ENCORE and BetaEdit, in float64.

A layer's weight maps keys to values, v = k W with k a row. The update D = A R answers to the keys K
with the residuals R, and leaves alone what a prior says:

    S = U^T (lambda C) U + ridge I                in the coordinates of U, which spans the projector
    M = S + U^T Sigma U                           Sigma = K_p^T K_p of the edits before
    A = U M^-1 U^T K^T (K U M^-1 U^T K^T + slack I)^-1

    slack 1   least squares: A = (P (K^T K + Sigma + lambda C) + ridge I)^-1 P K^T
    slack 0   an equality: K D = R, as in ROME and EMMET

so that no system is larger than the batch, besides the prior's own factor, which is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.model.memo import n_bytes


class SingularError(ValueError):
    """C, or a prior made of it, that is not positive definite; one sentence."""


class Factors(NamedTuple):
    """An update D = u v of a weight taken as the map key -> value."""

    u: Float[Tensor, "d_mlp n"]
    v: Float[Tensor, "n d_model"]


def closed_form(
    keys: Float[Tensor, "n d_mlp"],
    residual: Float[Tensor, "n d_model"],
    covariance: Float[Tensor, "d_mlp d_mlp"] | None = None,
    past: Float[Tensor, "earlier d_mlp"] | None = None,
    ridge: float = 0.0,
    projector: Float[Tensor, "d_mlp rank"] | None = None,
    *,
    slack: float = 1.0,
) -> Factors:
    """Return the update that answers to ``keys`` with ``residual``, in float64.

    Args:
        covariance: lambda C, weighed already; None for none.
        past: keys of the edits before, whose answers are to stay.
        ridge: weight of the identity.
        projector: orthonormal columns that span what may change; None for everything.
        slack: 1 for least squares, 0 for an equality.

    Raises:
        SingularError: when the prior is not positive definite.
    """
    prior = Prior(covariance, ridge, projector)
    return Factors(prior.coefficients(keys, past, slack), residual.double())


@dataclass(frozen=True, eq=False)
class Prior:
    """S of the closed form, factored once and solved with many times.

    Attributes:
        covariance: lambda C, or None.
        ridge: weight of the identity.
        projector: U, or None for every direction.
    """

    covariance: Float[Tensor, "d_mlp d_mlp"] | None = None
    ridge: float = 0.0
    projector: Float[Tensor, "d_mlp rank"] | None = None

    def coefficients(
        self,
        keys: Float[Tensor, "n d_mlp"],
        past: Float[Tensor, "earlier d_mlp"] | None = None,
        slack: float = 1.0,
    ) -> Float[Tensor, "d_mlp n"]:
        """Return A."""
        k = self._coordinates(keys)
        m = self._solved(k, None if past is None or not len(past) else self._coordinates(past))
        system = k @ m.T + slack * torch.eye(len(k), dtype=k.dtype, device=k.device)
        a: Tensor = torch.linalg.solve(system, m)
        return a.T if self.projector is None else self.projector @ a.T

    def _coordinates(self, rows: Tensor) -> Float[Tensor, "n rank"]:
        rows = rows.double()
        return rows if self.projector is None else rows @ self.projector

    def _solved(
        self, k: Float[Tensor, "n rank"], q: Float[Tensor, "earlier rank"] | None
    ) -> Float[Tensor, "n rank"]:
        """Return rows M^-1 k."""
        if q is None:
            return self._solve(k)
        if len(q) * WOODBURY > k.shape[1]:
            matrix = self._matrix(k) + q.T @ q
            return _solve_with(_cholesky(matrix, OF_A_PRIOR), k)
        # (S + Q^T Q)^-1 k = S^-1 k - S^-1 Q^T (I + Q S^-1 Q^T)^-1 Q S^-1 k
        s_q = self._solve(q)
        inner = torch.eye(len(q), dtype=q.dtype, device=q.device) + q @ s_q.T
        correction: Tensor = torch.linalg.solve(inner, s_q @ k.T).T @ s_q
        return self._solve(k) - correction

    def _solve(self, rows: Tensor) -> Tensor:
        return rows / self.ridge if self.covariance is None else _solve_with(self._factor, rows)

    def _matrix(self, like: Tensor) -> Float[Tensor, "rank rank"]:
        identity = torch.eye(like.shape[1], dtype=torch.float64, device=like.device)
        if self.covariance is None:
            return self.ridge * identity
        c = self.covariance.double()
        inside = c if self.projector is None else self.projector.T @ c @ self.projector
        return inside + self.ridge * identity

    @cached_property
    def _factor(self) -> Float[Tensor, "rank rank"]:
        assert self.covariance is not None
        rank = self.covariance if self.projector is None else self.projector
        return _cholesky(self._matrix(rank), OF_A_PRIOR)


WOODBURY = 4
"""With more earlier keys than a fourth of the dimensions, one dense factor is the cheaper."""
OF_A_PRIOR = "edit other layers, or by a method with a ridge"
OF_C = "edit another layer, or set mom2_adjustment=false"
"""What to do where a matrix cannot be solved with."""


def _cholesky(matrix: Float[Tensor, "d d"], otherwise: str) -> Float[Tensor, "d d"]:
    """Return the factor of a positive definite matrix: C is ill-conditioned, so in float64.

    Args:
        otherwise: what to do where it is not positive definite.
    """
    factor: Tensor
    failed: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        n, silent = len(matrix), int((matrix.diagonal() == 0).sum())
        cause = (
            f"the text never activates {silent} of its {n} neurons; "
            if silent
            else f"too few tokens for its {n} dimensions; use more text, "
        )
        raise SingularError(f"C is not positive definite: {cause}{otherwise}")
    return factor


def _solve_with(factor: Tensor, rows: Tensor) -> Tensor:
    return torch.cholesky_solve(rows.T, factor).T


@dataclass(frozen=True, eq=False)
class Covariance:
    """C = E[k k^T] of one layer, and the priors made of it.

    Attributes:
        matrix: C, ``[d_mlp, d_mlp]``.
        source: the text it was taken over: name, tokens and hash; recorded with every edit.
    """

    matrix: Float[Tensor, "d_mlp d_mlp"]
    source: str = ""
    _priors: dict[Hashable, Prior] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_bytes(self) -> int:
        """Return what it takes by now, for the memo: factors and priors come as they are used."""
        return n_bytes(vars(self))

    def prior(
        self, *, weight: float = 0.0, ridge: float = 0.0, null_below: float | None = None
    ) -> Prior:
        """Return the prior of ``weight`` C + ``ridge`` I, the same object each time.

        Args:
            null_below: only directions in which C has an eigenvalue below it may change.
        """
        return self.remembered(
            (weight, ridge, null_below),
            lambda: Prior(
                weight * self.matrix.double() if weight else None,
                ridge,
                None if null_below is None else self.null_space(null_below),
            ),
        )

    def remembered(self, key: Hashable, make: Callable[[], Prior]) -> Prior:
        """Return the prior for ``key``, made when it is first asked for; the last few are kept."""
        if key not in self._priors:
            while len(self._priors) >= PRIORS_KEPT:
                del self._priors[next(iter(self._priors))]
            self._priors[key] = make()
        return self._priors[key]

    def null_space(self, threshold: float) -> Float[Tensor, "d_mlp rank"]:
        """Return an orthonormal basis of the directions that text hardly uses."""
        values, vectors = self._eigen
        basis: Tensor = vectors[:, values < threshold]
        return basis

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix.double())
        return values, vectors

    def solve(self, keys: Float[Tensor, "n d_mlp"]) -> Float[Tensor, "n d_mlp"]:
        """Return rows C^-1 k, in float64."""
        return _solve_with(self._factor, keys.double())

    @cached_property
    def _factor(self) -> Float[Tensor, "d_mlp d_mlp"]:
        return _cholesky(self.matrix.double(), OF_C)


PRIORS_KEPT = 4


def joined(
    past: Float[Tensor, "earlier d_mlp"] | None, keys: Float[Tensor, "n d_mlp"]
) -> Float[Tensor, "later d_mlp"]:
    """Return keys with the same sum of k^T k as both together, never more than d_mlp of them."""
    rows = keys.double() if past is None else torch.cat([past.double(), keys.double()])
    if len(rows) <= rows.shape[1]:
        return rows
    triangle: Tensor = torch.linalg.qr(rows, mode="r").R
    return triangle
