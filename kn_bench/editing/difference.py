"""What a checkpoint changes of a base model, as an edit.

    LowRankEdit   only down-projections differ, by a product of few columns and rows: row by row
    DenseEdit     anything else that differs: in place

Rounding to 16 bits hides small edits beside large ones, so that a product there is taken only where
it leaves nothing over that is stronger, in any direction, than rounding it leaves.

The checkpoint is read tensor by tensor: in memory are one model and what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LowRank,
    LowRankEdit,
    NoEdit,
    Notes,
    RankFactors,
)
from kn_bench.model.comparing import LOADED, counterpart, headers
from kn_bench.model.language_model import LanguageModel

FINE = torch.finfo(torch.float32).eps
"""Relative rounding that hides nothing which a log-probability would show."""
STRONGER = 2.0
"""Two matrices of rounding errors differ by less than this in their strongest direction; an edit
that a product lacks stands out by more."""
FULL = 4
"""A difference is of low rank up to a quarter of the matrix's smaller side."""


def checkpoint_edit(lm: LanguageModel, folder: Path) -> Edit:
    """Return the difference between the checkpoint in ``folder`` and ``lm``.

    Raises:
        ValueError: for a parameter that the checkpoint lacks, or has in another shape.
    """
    return edit_of(lm, dict(_differences(lm, folder)), _resolution(lm, folder))


def _differences(lm: LanguageModel, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Return every parameter that differs, by name, with its difference in float32 or wider."""
    stored = headers(folder)
    tied = {id(p): name for name, p in lm.hf.named_parameters()}
    parameters: list[tuple[str, Tensor]] = list(lm.hf.named_parameters(remove_duplicate=False))
    for name, parameter in parameters:
        match = counterpart(name, stored)
        if match is None:
            if _elsewhere(lm, parameter, stored):
                continue
            raise ValueError(f"{folder}: expected the tensor {name}, which {lm.name} has")
        with safe_open(stored[match].file, framework="pt") as file:
            other = file.get_tensor(match).to(parameter.device)
        if other.shape != parameter.shape:
            raise ValueError(
                f"{folder}: expected {match} in shape {tuple(parameter.shape)}, and it has "
                f"{tuple(other.shape)}"
            )
        exact = torch.promote_types(parameter.dtype, torch.float32)
        # what the checkpoint is when it is loaded in the same dtype
        delta = other.to(parameter.dtype).to(exact) - parameter.detach().to(exact)
        if not bool(delta.any()):
            continue
        if tied[id(parameter)] != name:
            first = counterpart(tied[id(parameter)], stored)
            if first is None or not _same(stored, first, match):
                raise ValueError(
                    f"{folder}: expected one matrix for {tied[id(parameter)]} and {name}, which "
                    f"{lm.name} shares, and they differ; name a base that keeps them apart"
                )
            continue
        yield name, delta


def _elsewhere(lm: LanguageModel, parameter: Tensor, stored: Mapping[str, object]) -> bool:
    """Tell whether a shared parameter is stored under another of its names."""
    names = lm.hf.named_parameters(remove_duplicate=False)
    return any(p is parameter and counterpart(name, stored) is not None for name, p in names)


def _same(stored: Mapping[str, Any], first: str, second: str) -> bool:
    tensors = []
    for name in (first, second):
        with safe_open(stored[name].file, framework="pt") as file:
            tensors.append(file.get_tensor(name))
    return torch.equal(*tensors)


def _resolution(lm: LanguageModel, folder: Path) -> float:
    """Return the coarsest rounding that the checkpoint's weights have been through."""
    named = {LOADED[h.dtype] for h in headers(folder).values() if h.dtype in LOADED}
    return max(torch.finfo(dtype).eps for dtype in (*(getattr(torch, n) for n in named), lm.dtype))


def edit_of(lm: LanguageModel, deltas: Mapping[str, Tensor], resolution: float) -> Edit:
    """Return changes of parameters as an edit, of low rank where they allow it.

    Args:
        lm: the model; untouched.
        deltas: by parameter name, in the parameter's own layout.
        resolution: relative rounding of the changed weights. What of a difference is smaller than
            it explains is not a rank.
    """
    if not deltas:
        return NoEdit(notes={"tensors": 0, "norm": 0.0})
    notes: Notes = {
        "tensors": len(deltas),
        "changed": ", ".join(sorted(deltas)),
        "norm": float(sum(float(d.double().square().sum()) for d in deltas.values()) ** 0.5),
    }
    places = {lm.weight_name(layer): layer for layer in reversed(range(lm.n_layers))}
    if set(deltas) <= set(places):
        updates = []
        for name, delta in deltas.items():
            layer = places[name]
            weight = lm.weight(layer).to(delta.dtype)
            change = delta.T if lm.transposed(layer) else delta
            rounding = resolution * float((weight + change).double().norm())
            factors = low_rank(change, rounding)
            if factors is not None and resolution > FINE:
                factors = _all_but_rounding(weight, change, factors, resolution)
            if factors is None:
                break
            updates.append(LowRank(layer, *factors))
        else:
            ranks = ", ".join(str(update.u.shape[1]) for update in updates)
            return LowRankEdit(tuple(updates), notes={**notes, "rank": ranks})
    return DenseEdit(dict(deltas), notes=notes)


def low_rank(matrix: Float[Tensor, "rows columns"], tolerance: float) -> RankFactors | None:
    """Return ``matrix`` as a product of the smallest rank, or None where that is not small.

    A range finder with a doubling number of seeded directions (Halko, Martinsson, Tropp 2011,
    algorithms 4.1 and 5.1): the whole spectrum of a large matrix would take minutes.

    Args:
        tolerance: Frobenius norm of what may be left over.
    """
    exact = matrix.double()
    rows, columns = exact.shape
    generator = torch.Generator().manual_seed(0)
    directions = 8
    while directions <= max(8, min(rows, columns) // FULL):
        directions = min(directions, rows, columns)
        drawn = torch.randn(columns, directions, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(exact @ drawn.to(exact.device)).Q
        inner = basis.T @ exact
        left = float((exact - basis @ inner).norm())
        if left <= tolerance:
            U, S, Vh = torch.linalg.svd(inner, full_matrices=False)
            tails = S.flip(0).square().cumsum(0).flip(0)
            room = max(tolerance**2 - left**2, 0.0)
            rank = int((tails > room).sum())
            if rank == 0 or rank > max(1, min(rows, columns) // FULL):
                return None
            u, v = basis @ U[:, :rank] * S[:rank], Vh[:rank]
            return RankFactors(u.to(matrix.dtype), v.to(matrix.dtype))
        directions *= 2
    return None


def _all_but_rounding(
    weight: Tensor, change: Tensor, factors: RankFactors, resolution: float
) -> RankFactors | None:
    """Return ``factors`` refined, or None where they lack more of ``change`` than rounding.

    One power step (Halko et al., algorithm 4.3) makes the product as close as its rank allows.
    """
    exact, before = change.double(), weight.double()
    basis = torch.linalg.qr(exact @ factors.v.double().T).Q
    U, S, Vh = torch.linalg.svd(basis.T @ exact, full_matrices=False)
    u, v = basis @ U * S, Vh
    product = u @ v
    error = _rounded(before + product, resolution) - before - product
    if _strength(exact - product) > STRONGER * _strength(error):
        return None
    return RankFactors(u.to(change.dtype), v.to(change.dtype))


def _rounded(matrix: Tensor, resolution: float) -> Tensor:
    """Return ``matrix`` in as many binary digits as a dtype of that ``eps`` has."""
    digits, exponent = torch.frexp(matrix)  # digits from 1/2 to 1
    return torch.ldexp((digits * 2 / resolution).round() * resolution / 2, exponent)


def _strength(matrix: Float[Tensor, "rows columns"]) -> float:
    """Return about the largest singular value, by power iteration from seeded directions."""
    drawn = torch.randn(
        matrix.shape[1], 8, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype
    )
    directions = drawn.to(matrix.device)
    for _ in range(8):
        directions = torch.linalg.qr(matrix.T @ (matrix @ directions)).Q
    return float(torch.linalg.matrix_norm(matrix @ directions, 2))
