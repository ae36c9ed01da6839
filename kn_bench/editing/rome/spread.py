"""Several layers share what is to be changed (Meng et al. 2023, MEMIT, section 4.4).

For each layer in turn, with keys K of the model as edited so far and residuals R of the targets,
D = A R^T; the methods differ in A, see :mod:`kn_bench.editing.closed_form`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.editing.rome.problem import ValueProblem, ValueRow
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import wide_dtype
from kn_bench.model.ragged import Place, states_at

Coefficients = Callable[[int, Float[Tensor, "n d_mlp"]], Float[Tensor, "d_mlp n"]]
"""(layer, keys of one batch) -> A, in float64."""

Mean = Literal["grouped", "flat"]
"""Over contexts: the bare prompt weighs one half and the others share the rest (MEMIT), or all
weigh the same (ROME)."""
Share = Literal["linear", "sqrt"]
"""What a layer takes on of the residual, with L layers left: 1 / L (MEMIT), 1 / sqrt(L) (PMET)."""


class Spread(NamedTuple):
    """The edit of one group, and the keys that entered each layer's solve."""

    edit: LowRankEdit
    keys: dict[int, Float[Tensor, "n d_mlp"]]


def mean_of(rows: Float[Tensor, "contexts d"], mean: Mean) -> Float[Tensor, " d"]:
    """Return the mean over contexts, the bare prompt first."""
    if mean == "flat" or len(rows) == 1:
        return rows.mean(0)
    return (rows[0] + rows[1:].mean(0)) / 2


def spread(
    lm: LanguageModel,
    groups: Sequence[Sequence[ValueProblem]],
    targets: Sequence[Float[Tensor, "n d_model"]],
    layers: Sequence[int],
    coefficients: Coefficients,
    *,
    place: Place = "block",
    share: Share = "linear",
    mean: Mean = "grouped",
) -> list[Spread]:
    """Make one joint edit a group of requests; the groups know nothing of each other.

    Args:
        targets: for each group, the output that the last of ``layers`` is to have at every
            request's subject.
        layers: those to be edited, from below; each takes its share of what is left to do.
        coefficients: A of the method.
        place: whose output the targets are: the last layer's, or its site's.
    """
    spreads = [Spread(LowRankEdit(updates=()), {}) for _ in groups]
    exact = wide_dtype(lm.dtype)
    for index, layer in enumerate(layers):
        left = len(layers) - index
        so_far = [step.edit for step in spreads]
        keys, reached = _states(lm, groups, so_far, layer, layers[-1], place, mean)
        for group, (k, output) in enumerate(zip(keys, reached, strict=True)):
            a = coefficients(layer, k)
            missing = targets[group].double() - output.double()
            residual = missing / (left if share == "linear" else math.sqrt(left))
            update = LowRank(layer, a.to(exact), residual.to(exact))
            spreads[group] = Spread(
                LowRankEdit(updates=(*so_far[group].updates, update)),
                {**spreads[group].keys, layer: k},
            )
    return spreads


def group_keys(
    lm: LanguageModel,
    groups: Sequence[Sequence[ValueProblem]],
    edits: Sequence[LowRankEdit],
    layer: int,
    mean: Mean = "grouped",
) -> list[Float[Tensor, "n d_mlp"]]:
    """Return the keys of each group's requests at ``layer``, on the model with its edit."""
    return _states(lm, groups, edits, layer, layer, "site", mean)[0]


def _states(
    lm: LanguageModel,
    groups: Sequence[Sequence[ValueProblem]],
    edits: Sequence[LowRankEdit],
    layer: int,
    top: int,
    place: Place,
    mean: Mean,
) -> tuple[list[Float[Tensor, "n d_mlp"]], list[Float[Tensor, "n d_model"]]]:
    """Return each group's keys at ``layer`` and outputs of ``top``, every row under its edit."""
    rows: list[ValueRow] = []
    edit_of: list[int] = []
    spans: list[list[list[slice]]] = []  # of each group, of each problem: the rows of its facts
    for group, problems in enumerate(groups):
        spans.append([])
        for problem in problems:
            spans[-1].append([])
            for fact in problem.facts:
                spans[-1][-1].append(slice(len(rows), len(rows) + len(fact)))
                rows += fact
                edit_of += [group] * len(fact)
    owners = torch.tensor(edit_of, device=lm.device)
    keys, outputs = states_at(
        lm,
        [row.ids for row in rows],
        [row.subject for row in rows],
        layer,
        top,
        lambda where: RowEdits(lm, edits).on(owners, where),
        place=place,
    )
    return (
        [
            torch.stack(
                [torch.stack([mean_of(keys[s], mean) for s in facts]).mean(0) for facts in group]
            )
            for group in spans
        ],
        [torch.stack([_reached(outputs, facts, mean) for facts in group]) for group in spans],
    )


def _reached(
    outputs: Float[Tensor, "rows d_model"], facts: Sequence[slice], mean: Mean
) -> Float[Tensor, " d_model"]:
    """Return the first fact's output at the subject: of its bare prompt, or the mean."""
    first = outputs[facts[0]]
    return first[0] if mean == "grouped" else first.mean(0)
