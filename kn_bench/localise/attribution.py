"""Integrated gradients of neurons (Dai et al. 2022, equation 3): which carry the answer?

    alpha_i = w_i * integral_0^1 dP(g w)/dw_i dg

w are a layer's neurons at the answer position, P the probability of the answer (not its log), one
layer at a time. Completeness: over a layer the alphas add up to P(w) - P(0). Every attribution
records the error of that sum, and the adaptive rule refines until it is small enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_bench.localise.integration import Rule
from kn_bench.localise.queries import Fitted, questions_of
from kn_bench.localise.scaling import CleanBatch, Rows, ask, row_bytes
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.progress import Advance
from kn_bench.model.transfer import to_device, to_host

PASSES = 16
"""Passes with the first rows of all questions of a batch."""
ROUND = 0.7
"""The share of a batch that a round of passes is reported as, of what is left."""


@dataclass(frozen=True)
class Attribution:
    """Scores of every neuron of a model for one query.

    Attributes:
        scores: alpha, ``[n_layers, d_mlp]``, in units of probability, on the model's device; all
            else is on the host. For an answer of several tokens the mean over its tokens, as are
            all figures below but ``completeness`` and ``allowed``, which are those of each layer's
            worst token, and ``nodes``, the most of any.
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
) -> list[Attribution]:
    """Attribute the answer of each query to the neurons, layer by layer.

    Args:
        rule: how the integral is taken; adaptive by default.

    Raises:
        ValueError: for an answer with a special token, or with none at all.
    """
    rule = rule or Rule()
    asked = [questions_of(lm, query) for query in queries]
    singles = list(dict.fromkeys(question for group in asked for question in group))
    # few intervals are halved in the end, and a pass over few rows costs as much as one over many:
    # a batch holds questions for several passes, so that what is left of them shares the last ones
    rows = lm.n_layers * rule.n_nodes / PASSES
    with lm.progress.task("locating, prompt", len(singles)) as advance:
        attributions = lm.batcher.run(
            lambda questions: _attribute(ask(lm, questions), rule, advance),
            singles,
            item_bytes=lambda question: rows * row_bytes(lm, len(question.ids)),
            shape=lambda question: len(question.ids),
        )
    by_question = dict(zip(singles, attributions, strict=True))
    return [_mean([by_question[question] for question in group]) for group in asked]


def _mean(parts: Sequence[Attribution]) -> Attribution:
    """Average the attributions of the tokens of one answer."""
    if len(parts) == 1:
        return parts[0]
    errors = torch.stack([part.completeness for part in parts])
    allowed = torch.stack([part.allowed for part in parts])
    # tokens allow errors of different size, so each is judged by its own bound
    worst = (errors / allowed).argmax(0, keepdim=True)
    return Attribution(
        scores=torch.stack([part.scores for part in parts]).mean(0),
        probability=sum(part.probability for part in parts) / len(parts),
        without=torch.stack([part.without for part in parts]).mean(0),
        completeness=errors.gather(0, worst)[0],
        allowed=allowed.gather(0, worst)[0],
        nodes=torch.stack([part.nodes for part in parts]).amax(0),
    )


def _attribute(asked: CleanBatch, rule: Rule, advance: Advance) -> list[Attribution]:
    """Attribute questions of equal length, all from one clean pass."""
    path = _integrate(asked, rule, advance)
    weights = [asked.lm.weight(layer) for layer in range(asked.lm.n_layers)]
    by_key = torch.stack([path.integral[:, i] @ w.T for i, w in enumerate(weights)], 1)
    scores = asked.keys * by_key
    total, probability = map(torch.from_numpy, to_host(scores.sum(2), asked.probability))
    change = probability[:, None] - path.without
    completeness = (total - change).abs()
    return [
        Attribution(
            scores=scores[i],
            probability=float(probability[i]),
            without=path.without[i],
            completeness=completeness[i],
            allowed=rule.allowed(change[i]),
            nodes=path.nodes[i],
        )
        for i in range(len(scores))
    ]


@dataclass(frozen=True)
class _Path:
    """Integral of dP/dvalue over g, P(0) and nodes used, for every question and layer.

    The first is on the model's device, the others are on the host.
    """

    integral: Float[Tensor, "B n_layers d_model"]
    without: Float[Tensor, "B n_layers"]
    nodes: Int[Tensor, "B n_layers"]


@dataclass(frozen=True)
class _Intervals:
    """Parts of the paths of all questions and layers, with what the rule gave on them.

    ``cell`` is question * n_layers + layer: paths of all questions and layers are one axis, so that
    intervals of any of them share a pass. P is known at both ends ``low`` and ``high``. All but the
    integral is on the host, which decides what to halve.
    """

    integral: Float[Tensor, "n d_model"]
    cell: Int[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    p_low: Float[np.ndarray, " n"]
    p_high: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]

    def where(self, keep: Bool[np.ndarray, " n"]) -> _Intervals:
        at = to_device(np.flatnonzero(keep), self.integral.device)
        return _Intervals(self.integral[at], *(part[keep] for part in self._on_host))

    def joined(self, other: _Intervals) -> _Intervals:
        parts = zip(self._on_host, other._on_host, strict=True)
        integral = torch.cat([self.integral, other.integral])
        return _Intervals(integral, *map(np.concatenate, parts))

    @property
    def _on_host(self) -> tuple[np.ndarray, ...]:
        return self.cell, self.low, self.high, self.p_low, self.p_high, self.error


class _Integrator:
    """Takes the integral on intervals of the paths of ``asked``."""

    def __init__(self, asked: CleanBatch, rule: Rule, advance: Advance) -> None:
        self.asked, self.rule = asked, rule
        self._advance, self._left = advance, float(len(asked.tokens))
        self.n_layers = asked.lm.n_layers
        # what a layer's neurons add to its value: the change of P is the integral along it
        self.grown = asked.grown.flatten(0, 1)
        self.unit = rule.on_unit_interval()

    def rows(self, cell: np.ndarray, g: np.ndarray) -> Rows:
        return Rows(cell // self.n_layers, cell % self.n_layers, g)

    def probability(self, cell: np.ndarray, g: np.ndarray) -> Float[Tensor, " n"]:
        """Return P where the neurons of ``cell`` are scaled by ``g``."""
        return self.asked.run(self.rows(cell, g), gradient=False).probability

    def gradients(
        self, cell: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[Float[Tensor, "n nodes"], Float[Tensor, "n d_model"]]:
        """Return P at the nodes of each interval, and the integral of dP/dvalue over it."""
        n, unit = len(self.unit.places), self.unit
        width = (high - low)[:, None]
        g = low[:, None] + width * unit.places
        left = self._left

        def done(share: float) -> None:
            # how many rounds are to come is not known: each counts for most of what is left
            part = ROUND * share * left
            self._left -= part
            self._advance(part)

        along = self.asked.run(self.rows(cell.repeat(n), g.ravel()), gradient=True, done=done)
        gradient = along.gradient.reshape(len(cell), n, -1)
        weights = to_device(unit.weights * width, gradient.device, gradient.dtype)
        return along.probability.reshape(len(cell), n), torch.einsum(
            "cnd,cn->cd", gradient, weights
        )

    def finish(self) -> None:
        """Report all questions as done."""
        self._advance(self._left)

    def change(self, cell: np.ndarray, integral: Tensor) -> Float[Tensor, " n"]:
        """Return the change of P along intervals with these integrals."""
        return (integral * self.grown[to_device(cell, integral.device)]).sum(1)


def _integrate(asked: CleanBatch, rule: Rule, advance: Advance) -> _Path:
    take = _Integrator(asked, rule, advance)
    n_cells = len(take.grown)
    cell = np.arange(n_cells)
    shape = (n_cells // take.n_layers, take.n_layers)
    zero, full = np.zeros(n_cells), np.ones(n_cells)
    if rule.name != "adaptive":
        probability, integral = take.gradients(cell, zero, full)
        # both published rules have their first node at g = 0
        (without,) = to_host(probability[:, 0])
        nodes = torch.full(shape, rule.n_nodes)
        take.finish()
        return _Path(integral.reshape(*shape, -1), torch.from_numpy(without).reshape(shape), nodes)
    at_zero = take.probability(cell, zero)
    _, integral = take.gradients(cell, zero, full)
    p_low, p_high, change = to_host(at_zero, asked.probability, take.change(cell, integral))
    p_high = p_high.repeat(take.n_layers)
    error = np.abs(change - (p_high - p_low))
    whole = _Intervals(integral, cell, zero, full, p_low, p_high, error)
    done = _refined(take, whole, rule)
    take.finish()
    at = to_device(done.cell, integral.device)
    # a path that ends in k intervals was evaluated on 2 k - 1, the halved ones included
    intervals = torch.from_numpy(np.bincount(done.cell, minlength=n_cells))
    return _Path(
        torch.zeros_like(take.grown).index_add_(0, at, done.integral).reshape(*shape, -1),
        torch.from_numpy(p_low).reshape(shape),
        ((2 * intervals - 1) * rule.n_nodes).reshape(shape),
    )


def _refined(take: _Integrator, parts: _Intervals, rule: Rule) -> _Intervals:
    """Halve intervals until the errors of each path add up to no more than is allowed."""
    # more nodes do not help where half precision weights round by more than is allowed
    rounding = 4 * torch.finfo(take.asked.lm.dtype).eps * np.maximum(parts.p_high, parts.p_low)
    change = torch.from_numpy(parts.p_high - parts.p_low)
    allowed = np.maximum(rule.allowed(change).numpy(), rounding)
    while True:
        count = np.bincount(parts.cell, minlength=len(allowed))
        total = np.bincount(parts.cell, parts.error, minlength=len(allowed))
        # the next round may double the intervals of a path
        affordable = (4 * count - 1) * rule.n_nodes <= rule.most
        failing = (total > allowed) & affordable
        # halve intervals with more than their share of the error: a failing path has at least one
        halve = failing[parts.cell] & (parts.error > (allowed / count)[parts.cell])
        if not halve.any():
            return parts
        parts = parts.where(~halve).joined(_halved(take, parts.where(halve)))


def _halved(take: _Integrator, parts: _Intervals) -> _Intervals:
    middle = (parts.low + parts.high) / 2
    cell = np.tile(parts.cell, 2)
    low, high = np.concatenate([parts.low, middle]), np.concatenate([middle, parts.high])
    at_middle = take.probability(parts.cell, middle)
    _, integral = take.gradients(cell, low, high)
    p_middle, change = to_host(at_middle, take.change(cell, integral))
    p_low = np.concatenate([parts.p_low, p_middle])
    p_high = np.concatenate([p_middle, parts.p_high])
    error = np.abs(change - (p_high - p_low))
    return _Intervals(integral, cell, low, high, p_low, p_high, error)
