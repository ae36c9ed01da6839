"""Integrated gradients of neurons (Dai et al. 2022, equation 3): who carries the answer?

    alpha_i = w_i * integral_0^1 dP(g w)/dw_i dg

w are a layer's neurons at the answer position, P the probability of the answer (not its log), one
layer at a time. Completeness: over a layer the alphas add up to P(w) - P(0). The error of that is
recorded with every attribution, and the adaptive rule works until it is small enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kn_bench.localise.integration import Rule
from kn_bench.localise.queries import Fitted, Question, by_length, questions_of
from kn_bench.localise.scaling import Asked, Rows, ask, rows_within
from kn_bench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

MEMORY = 2**30
"""Bytes that the perturbed rows of one pass may take."""


@dataclass(frozen=True)
class Attribution:
    """Scores of every neuron of a model for one query.

    Attributes:
        scores: alpha, ``[n_layers, d_mlp]``, in units of probability. For an answer of several
            tokens the mean over its tokens, as are all figures below but ``completeness``,
            ``allowed`` and ``nodes``, which are those of the worst token.
        probability: P(w), of the answer by the model as it is.
        without: P(0) for each layer: its neurons at the answer position all set to 0.
        completeness: |sum of alpha - (P(w) - P(0))| for each layer.
        allowed: the error that the rule allows there.
        nodes: gradients taken for each layer.
    """

    scores: Float[Tensor, "n_layers d_mlp"]
    probability: float
    without: Float[Tensor, " n_layers"]
    completeness: Float[Tensor, " n_layers"]
    allowed: Float[Tensor, " n_layers"]
    nodes: Int[Tensor, " n_layers"]

    @property
    def converged(self) -> Bool[Tensor, " n_layers"]:
        """Whether each layer's completeness error is within the rule's tolerance."""
        return self.completeness <= self.allowed

    @property
    def worst(self) -> float:
        """The worst layer's completeness error, in units of what is allowed."""
        return float((self.completeness / self.allowed).max())


def attribute(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    *,
    rule: Rule | None = None,
    memory: int = MEMORY,
) -> list[Attribution]:
    """Attribute the answer of each query to the neurons, layer by layer.

    Args:
        rule: how the integral is taken; adaptive by default.
        memory: bytes that the perturbed rows of one pass may take.

    Raises:
        ValueError: for an answer with a special token, or with none at all.
    """
    rule = rule or Rule()
    asked = [questions_of(lm, query) for query in queries]
    singles = list(dict.fromkeys(question for group in asked for question in group))
    found: dict[Question, Attribution] = {}
    longest = max((len(question.ids) for question in singles), default=1)
    most = rows_within(lm, longest, memory)
    for batch in by_length(singles, max(1, most // (lm.n_layers * rule.n_nodes))):
        questions = [singles[index] for index in batch]
        found.update(zip(questions, _attribute(ask(lm, questions), rule, most), strict=True))
    return [_mean([found[question] for question in group]) for group in asked]


def _mean(parts: Sequence[Attribution]) -> Attribution:
    """Over the tokens of one answer."""
    if len(parts) == 1:
        return parts[0]
    return Attribution(
        scores=torch.stack([part.scores for part in parts]).mean(0),
        probability=sum(part.probability for part in parts) / len(parts),
        without=torch.stack([part.without for part in parts]).mean(0),
        completeness=torch.stack([part.completeness for part in parts]).amax(0),
        allowed=torch.stack([part.allowed for part in parts]).amin(0),
        nodes=torch.stack([part.nodes for part in parts]).amax(0),
    )


def _attribute(asked: Asked, rule: Rule, most: int) -> list[Attribution]:
    """Questions of equal length, with one clean pass behind them."""
    path = _integrate(asked, rule, most)
    weights = [asked.lm.weight(layer) for layer in range(asked.lm.n_layers)]
    by_key = torch.stack([path.integral[:, i] @ w.T for i, w in enumerate(weights)], 1)
    scores = asked.keys * by_key
    change = asked.probability[:, None] - path.without
    completeness = (scores.sum(2) - change).abs()
    return [
        Attribution(
            scores=scores[i],
            probability=float(asked.probability[i]),
            without=path.without[i],
            completeness=completeness[i],
            allowed=rule.allowed(change[i]),
            nodes=path.nodes[i],
        )
        for i in range(len(scores))
    ]


@dataclass(frozen=True)
class _Path:
    """Integral of dP/dvalue over g, P(0) and nodes used, for every question and layer."""

    integral: Float[Tensor, "B n_layers d_model"]
    without: Float[Tensor, "B n_layers"]
    nodes: Int[Tensor, "B n_layers"]


@dataclass(frozen=True)
class _Intervals:
    """Parts of the paths of all questions and layers, with what the rule gave on them.

    ``cell`` is question * n_layers + layer; P is known at both ends ``low`` and ``high``.
    """

    cell: Int[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    p_low: Float[Tensor, " n"]
    p_high: Float[Tensor, " n"]
    integral: Float[Tensor, "n d_model"]
    error: Float[Tensor, " n"]

    def where(self, keep: Bool[Tensor, " n"]) -> _Intervals:
        return _Intervals(*(tensor[keep] for tensor in self._parts))

    def joined(self, other: _Intervals) -> _Intervals:
        return _Intervals(*map(torch.cat, zip(self._parts, other._parts, strict=True)))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return (
            self.cell,
            self.low,
            self.high,
            self.p_low,
            self.p_high,
            self.integral,
            self.error,
        )


class _Integrator:
    """Takes the integral on intervals of the paths of ``asked``."""

    def __init__(self, asked: Asked, rule: Rule, most: int) -> None:
        self.asked, self.rule, self.most = asked, rule, most
        self.n_layers = asked.lm.n_layers
        # what a layer's neurons add at the answer position: completeness in the values' space
        self.grown = asked.grown.flatten(0, 1)
        self.unit = rule.on_unit_interval(asked.probability.dtype, asked.probability.device)

    def rows(self, cell: Tensor, g: Tensor) -> Rows:
        return Rows(cell // self.n_layers, cell % self.n_layers, g)

    def probability(self, cell: Tensor, g: Tensor) -> Float[Tensor, " n"]:
        """P where the neurons of ``cell`` are scaled by ``g``."""
        return self.asked.run(self.rows(cell, g), gradient=False, most=2 * self.most).probability

    def gradients(self, cell: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """P at the nodes of each interval, [n, nodes], and the integral of dP/dvalue over it."""
        n, unit = len(self.unit.places), self.unit
        g = low[:, None] + (high - low)[:, None] * unit.places
        along = self.asked.run(
            self.rows(cell.repeat_interleave(n), g.flatten()), gradient=True, most=self.most
        )
        gradient = along.gradient.reshape(len(cell), n, -1)
        weights = (unit.weights * (high - low)[:, None]).to(gradient.dtype)
        return along.probability.reshape(len(cell), n), torch.einsum(
            "cnd,cn->cd", gradient, weights
        )

    def intervals(
        self, cell: Tensor, low: Tensor, high: Tensor, p_low: Tensor, p_high: Tensor
    ) -> _Intervals:
        _, integral = self.gradients(cell, low, high)
        error = (integral * self.grown[cell]).sum(1) - (p_high - p_low)
        return _Intervals(cell, low, high, p_low, p_high, integral, error.abs())


def _integrate(asked: Asked, rule: Rule, most: int) -> _Path:
    take = _Integrator(asked, rule, most)
    n_cells = len(take.grown)
    cell = torch.arange(n_cells, device=asked.tokens.device)
    shape = (n_cells // take.n_layers, take.n_layers)
    zero = asked.probability.new_zeros(n_cells)
    if rule.name != "adaptive":
        probability, integral = take.gradients(cell, zero, zero + 1)
        # both published rules have their first node at g = 0
        return _Path(
            integral.reshape(*shape, -1),
            probability[:, 0].reshape(shape),
            torch.full_like(cell, rule.n_nodes).reshape(shape),
        )
    p_low, p_high = take.probability(cell, zero), asked.probability.repeat_interleave(shape[1])
    done = _refined(take, take.intervals(cell, zero, zero + 1, p_low, p_high), rule)
    nodes = torch.bincount(done.cell, minlength=n_cells)
    integral = torch.zeros_like(take.grown).index_add_(0, done.cell, done.integral)
    # a path in k intervals took 2 k - 1 of them, the halved ones included
    return _Path(
        integral.reshape(*shape, -1),
        p_low.reshape(shape),
        ((2 * nodes - 1) * rule.n_nodes).reshape(shape),
    )


def _refined(take: _Integrator, parts: _Intervals, rule: Rule) -> _Intervals:
    """Halve intervals until the errors of each path add up to no more than is allowed."""
    # more nodes do not help where half precision weights round by more than is allowed
    rounding = 4 * torch.finfo(take.asked.lm.dtype).eps * torch.maximum(parts.p_high, parts.p_low)
    allowed = torch.maximum(rule.allowed(parts.p_high - parts.p_low), rounding)
    while True:
        count = torch.bincount(parts.cell, minlength=len(allowed))
        total = torch.zeros_like(allowed).index_add_(0, parts.cell, parts.error)
        # the next round may double the intervals of a path
        affordable = (4 * count - 1) * rule.n_nodes <= rule.most
        failing = (total > allowed) & affordable
        # an interval fails where it has more than its share: at least one does in a failing path
        halve = failing[parts.cell] & (parts.error > (allowed / count)[parts.cell])
        if not halve.any():
            return parts
        parts = parts.where(~halve).joined(_halved(take, parts.where(halve)))


def _halved(take: _Integrator, parts: _Intervals) -> _Intervals:
    middle = (parts.low + parts.high) / 2
    p_middle = take.probability(parts.cell, middle)
    return take.intervals(
        parts.cell.repeat(2),
        torch.cat([parts.low, middle]),
        torch.cat([middle, parts.high]),
        torch.cat([parts.p_low, p_middle]),
        torch.cat([p_middle, parts.p_high]),
    )
