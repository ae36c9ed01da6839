"""A target at one layer, reached by updates of several: MEMIT and AlphaEdit, and EMMET's one layer.

Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023; Gupta et al., "A Unified Framework
for Model Editing" (EMMET), 2024; Fang et al., "AlphaEdit", ICLR 2025.

At each layer in turn, with keys K of the model as edited so far and residuals R of the targets,
dW = A R^T; the methods differ in A, the coefficients of the keys:

    MEMIT      A = (lambda C + K K^T)^-1 K
    AlphaEdit  A = (P (K K^T + K_p K_p^T) + L2 I)^-1 P K
    EMMET      A = C^-1 K (K^T C^-1 K + lambda_e I)^-1

All in float64, by the identities that need no d_mlp x d_mlp system besides C's own factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.editing.rome.problem import Row, ValueProblem
from kn_bench.editing.rome.update import SecondMomentSolver
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import wide_dtype
from kn_bench.model.ragged import states_at

if TYPE_CHECKING:
    from jaxtyping import Float

    Coefficients = Callable[[int, Float[Tensor, "n d_mlp"]], Float[Tensor, "d_mlp n"]]
    """(layer, keys of one batch) -> A, in float64."""


def whitened_coefficients(
    keys: Float[Tensor, "n d_mlp"], solver: SecondMomentSolver, ridge: float
) -> Float[Tensor, "d_mlp n"]:
    """C^-1 K (K^T C^-1 K + ridge I)^-1: EMMET's A with lambda_e, and MEMIT's with lambda.

    MEMIT's is (lambda C + K K^T)^-1 K, by the push-through identity the same.
    """
    k = keys.double()
    whitened = solver.solve(k)
    system = k @ whitened.T + ridge * torch.eye(len(k), dtype=k.dtype, device=k.device)
    coefficients: Tensor = torch.linalg.solve(system, whitened).T
    return coefficients


def null_space(
    moment: Float[Tensor, "d_mlp d_mlp"], threshold: float
) -> Float[Tensor, "d_mlp rank"]:
    """Orthonormal basis U_0 of the directions that the text hardly uses: eigenvalues below.

    AlphaEdit's P is U_0 U_0^T.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    basis: Tensor = vectors[:, values < threshold]
    return basis


def alphaedit_coefficients(
    keys: Float[Tensor, "n d_mlp"],
    basis: Float[Tensor, "d_mlp rank"],
    history: Float[Tensor, "earlier d_mlp"],
    ridge: float,
) -> Float[Tensor, "d_mlp n"]:
    """(P (K K^T + K_p K_p^T) + L2 I)^-1 P K, of P = U_0 U_0^T.

    With Q = [K, K_p] and the Woodbury identity: (PK - PQ (L2 I + Q^T P Q)^-1 Q^T P K) / L2.
    """
    q = torch.cat([keys, history]).double()
    inside = q @ basis  # coordinates of the projected keys: Q^T P Q = inside inside^T
    system = inside @ inside.T + ridge * torch.eye(len(q), dtype=q.dtype, device=q.device)
    wanted = inside[: len(keys)]
    correction: Tensor = inside.T @ torch.linalg.solve(system, inside @ wanted.T)
    coefficients: Tensor = basis @ (wanted.T - correction) / ridge
    return coefficients


def typed_mean(keys: Float[Tensor, "contexts d"]) -> Float[Tensor, " d"]:
    """MEMIT's mean over contexts: the bare prompt weighs one half, the others share the rest."""
    return keys[0] if len(keys) == 1 else (keys[0] + keys[1:].mean(0)) / 2


def spread(
    lm: LanguageModel,
    groups: Sequence[Sequence[ValueProblem]],
    targets: Sequence[Float[Tensor, "n d_model"]],
    layers: Sequence[int],
    coefficients: Coefficients,
) -> list[LowRankEdit]:
    """One joint edit a group of requests; the groups know nothing of each other.

    Args:
        targets: for each group, the output that the last of ``layers`` is to have at every
            request's subject.
        layers: those to be edited, from below; each takes its share of what is left to do.
        coefficients: A of the method.
    """
    edits = [LowRankEdit(updates=()) for _ in groups]
    for index, layer in enumerate(layers):
        keys, reached = _states(lm, groups, edits, layer, layers[-1])
        for group, (found, output) in enumerate(zip(keys, reached, strict=True)):
            a = coefficients(layer, found)
            residual = (targets[group].double() - output.double()) / (len(layers) - index)
            exact = wide_dtype(lm.dtype)
            update = LowRank(layer, a.to(exact), residual.to(exact))
            edits[group] = LowRankEdit(updates=(*edits[group].updates, update))
    return edits


def group_keys(
    lm: LanguageModel,
    groups: Sequence[Sequence[ValueProblem]],
    edits: Sequence[LowRankEdit],
    layer: int,
) -> list[Float[Tensor, "n d_mlp"]]:
    """The keys of each group's requests at ``layer``, on the model with the group's edit."""
    return _states(lm, groups, edits, layer, layer)[0]


def _states(
    lm: LanguageModel,
    groups: Sequence[Sequence[ValueProblem]],
    edits: Sequence[LowRankEdit],
    layer: int,
    top: int,
) -> tuple[list[Float[Tensor, "n d_mlp"]], list[Float[Tensor, "n d_model"]]]:
    """Each group's keys at ``layer`` and outputs of ``top``, every row under its group's edit."""
    rows: list[Row] = []
    edit_of: list[int] = []
    firsts: list[list[tuple[int, int]]] = []
    for group, problems in enumerate(groups):
        firsts.append([])
        for problem in problems:
            firsts[-1].append((len(rows), len(problem.contexts)))
            rows += problem.contexts
            edit_of += [group] * len(problem.contexts)
    owners = torch.tensor(edit_of, device=lm.device)
    keys, outputs = states_at(
        lm,
        [row.ids for row in rows],
        [row.subject for row in rows],
        layer,
        top,
        lambda where: RowEdits(lm, edits).on(owners, where),
    )
    return (
        [torch.stack([typed_mean(keys[a : a + n]) for a, n in group]) for group in firsts],
        [outputs[[a for a, _ in group]] for group in firsts],
    )
