"""Maps of a finished update: RECT, PRUNE and SPHERE. Each restrains what an edit may change.

RECT    Gu et al., "Model Editing Harms General Abilities of Large Language Models", EMNLP 2024
PRUNE   Ma et al., "Perturbation-Restrained Sequential Model Editing", ICLR 2025
SPHERE  "Energy-Regularized Sequential Model Editing on Hyperspheres", 2025

Updates and weights are taken as maps from keys to values, ``[d_mlp, d_model]``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kn_bench.editing.closed_form import Factors

UpdateMap = Literal["none", "rect", "prune", "sphere"]


def rect_mask(
    update: Float[Tensor, "d_mlp d_model"],
    weight: Float[Tensor, "d_mlp d_model"],
    kept: float = 0.4,
) -> Bool[Tensor, "d_mlp d_model"]:
    """Return where the update is large against the weight: the top ``kept`` share of entries.

    As published: the epsilon is signed, and one entry more than the share is kept.
    """
    relative = (update / (weight + 1e-8)).abs()
    # the k-th smallest, k = the share that is left out
    k = int((1 - kept) * relative.numel())
    if k < 1:
        return torch.ones_like(relative, dtype=torch.bool)
    mask: Tensor = relative >= relative.flatten().kthvalue(k).values
    return mask


def rect(
    update: Float[Tensor, "d_mlp d_model"],
    weight: Float[Tensor, "d_mlp d_model"],
    kept: float = 0.4,
) -> Float[Tensor, "d_mlp d_model"]:
    """Return the update with all but its relatively largest entries set to 0."""
    return update * rect_mask(update, weight, kept)


def prune(change: Factors, sigma_max: float) -> Factors:
    """Return the change with each singular value s above ``sigma_max`` brought down.

    s becomes ln s - ln sigma_max + sigma_max, sigma_max being the largest of the original weight.

    Args:
        change: everything that was added to the original weight.
    """
    u, s, v = svd(change)
    restrained = torch.where(s > sigma_max, s.log() - math.log(sigma_max) + sigma_max, s)
    return Factors(u * restrained, v)


def svd(
    factors: Factors,
) -> tuple[Float[Tensor, "d_mlp r"], Float[Tensor, " r"], Float[Tensor, "r d_model"]]:
    """Return U, s and V of u v in float64, without making the whole matrix."""
    q_u, r_u = torch.linalg.qr(factors.u.double())
    q_v, r_v = torch.linalg.qr(factors.v.double().T)
    u, s, v = torch.linalg.svd(r_u @ r_v.T, full_matrices=False)
    return q_u @ u, s, v @ q_v.T


def sphere(
    update: Factors,
    weight: Float[Tensor, "d_mlp d_model"],
    energy: float = 0.5,
    strength: float = 0.5,
) -> Factors:
    """Return the update with ``strength`` of its share in the weight's main directions taken off.

    Main are the fewest eigenvectors of the row-normalised weight's Gram matrix that hold
    ``energy`` of its trace; a row is what one value dimension reads.
    """
    rows = weight.double() / weight.double().norm(dim=0).clamp_min(1e-30)
    directions, s, _ = torch.linalg.svd(rows, full_matrices=False)
    share = s.square().cumsum(0) / s.square().sum()
    main = directions[:, : int((share < energy).sum()) + 1]
    u = update.u.double()
    return Factors(u - strength * main @ (main.T @ u), update.v)
