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
PIECES = 4
"""Pieces of an interval that is refined: two would take twice the rounds, for as many nodes."""
ROUNDING = 60
"""What sums of some thousand terms round P by, relative to it, in units of float32 or wider."""


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
        allowed: the error that the rule allows there, or that P is rounded by.
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
    # few intervals are split in the end, and a pass over few rows costs as much as one over many:
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
            allowed=path.allowed[i],
            nodes=path.nodes[i],
        )
        for i in range(len(scores))
    ]


@dataclass(frozen=True)
class _Path:
    """Integral of dP/dvalue over g, P(0), allowed error, nodes used: for every question and layer.

    The first is on the model's device, the others are on the host.
    """

    integral: Float[Tensor, "B n_layers d_model"]
    without: Float[Tensor, "B n_layers"]
    allowed: Float[Tensor, "B n_layers"]
    nodes: Int[Tensor, "B n_layers"]


@dataclass(frozen=True)
class _Intervals:
    """Parts of the paths of all questions and layers, with what the rule gave on them.

    ``cell`` is question * n_layers + layer: paths of all questions and layers are one axis, so that
    intervals of any of them share a pass. P is known at both ends ``low`` and ``high``. All but the
    integral is on the host, which decides what to split.
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
        self,
        low: np.ndarray,
        high: np.ndarray,
        cell: np.ndarray,
        also: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[Float[Tensor, "n nodes"], Float[Tensor, "n d_model"], Float[Tensor, " m"]]:
        """Return P at each interval's nodes, the integral of dP/dvalue over it, and P at ``also``.

        Args:
            also: m cells and a place on the path of each; the same pass gives P there.
        """
        n, unit = len(self.unit.places), self.unit
        width = (high - low)[:, None]
        g, at = (low[:, None] + width * unit.places).ravel(), cell.repeat(n)
        if also is not None:
            at, g = np.concatenate([at, also[0]]), np.concatenate([g, also[1]])
        left = self._left

        def done(share: float) -> None:
            # how many rounds are to come is not known: each counts for most of what is left
            part = ROUND * share * left
            self._left -= part
            self._advance(part)

        along = self.asked.run(self.rows(at, g), gradient=True, done=done)
        nodes = len(cell) * n
        gradient = along.gradient[:nodes].reshape(len(cell), n, -1)
        weights = to_device(unit.weights * width, gradient.device, gradient.dtype)
        integral = torch.einsum("cnd,cn->cd", gradient, weights)
        return along.probability[:nodes].reshape(-1, n), integral, along.probability[nodes:]

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
    adaptive = rule.name == "adaptive"
    at_zero = take.probability(cell, zero) if adaptive else None
    probability, integral, _ = take.gradients(zero, full, cell)
    # both published rules have their first node at g = 0
    at_zero = probability[:, 0] if at_zero is None else at_zero
    p_low, p_high, change = to_host(at_zero, asked.probability, take.change(cell, integral))
    p_high = p_high.repeat(take.n_layers)
    allowed = _allowed(asked, rule, p_low, p_high)
    nodes = np.full(n_cells, rule.n_nodes)
    if adaptive:
        error = np.abs(change - (p_high - p_low))
        whole = _Intervals(integral, cell, zero, full, p_low, p_high, error)
        done, nodes = _refined(take, whole, rule, allowed)
        at = to_device(done.cell, integral.device)
        integral = torch.zeros_like(take.grown).index_add_(0, at, done.integral)
    take.finish()
    on_host = (torch.from_numpy(part).reshape(shape) for part in (p_low, allowed, nodes))
    return _Path(integral.reshape(*shape, -1), *on_host)


def _allowed(
    asked: CleanBatch, rule: Rule, p_low: np.ndarray, p_high: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Return the error that is allowed to each path: the rule's, or what sums round P by."""
    wide = torch.promote_types(asked.lm.dtype, torch.float32)
    by_sums = ROUNDING * torch.finfo(wide).eps * np.maximum(p_high, p_low)
    by_rule = rule.allowed(torch.from_numpy(p_high - p_low)).numpy()
    allowed: np.ndarray = np.maximum(by_rule, by_sums).astype(p_low.dtype)
    return allowed


def _refined(
    take: _Integrator, parts: _Intervals, rule: Rule, allowed: Float[np.ndarray, " n"]
) -> tuple[_Intervals, Int[np.ndarray, " n"]]:
    """Split intervals until the errors of each path add up to no more than is allowed.

    Returns:
        the intervals, and the nodes that each path has had.
    """
    # more nodes do not help where half precision weights round by more than is allowed
    unit = 4 * torch.finfo(take.asked.lm.dtype).eps
    allowed = np.maximum(allowed, unit * np.maximum(parts.p_high, parts.p_low))
    nodes = np.full(len(allowed), rule.n_nodes)
    while True:
        failing = np.bincount(parts.cell, parts.error, minlength=len(allowed)) > allowed
        split = failing[parts.cell] & _worst(parts, allowed / 2)
        more = np.bincount(parts.cell[split], minlength=len(allowed)) * PIECES * rule.n_nodes
        affordable = nodes + more <= rule.most
        split &= affordable[parts.cell]
        if not split.any():
            return parts, nodes
        nodes += np.where(affordable, more, 0)
        parts = parts.where(~split).joined(_pieces(take, parts.where(split)))


def _worst(parts: _Intervals, tolerated: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " m"]:
    """Tell which intervals are left when the best of each path are put aside.

    Those put aside have errors that add up to no more than is ``tolerated`` of their path.
    """
    order = np.lexsort((parts.error, parts.cell))  # path by path, the smallest first
    error, cell = parts.error[order], parts.cell[order]
    begins = np.flatnonzero(np.diff(cell, prepend=-1))
    sizes = np.diff(begins, append=len(cell))
    path, place = np.arange(len(begins)).repeat(sizes), np.arange(len(cell)) - begins.repeat(sizes)
    sums = np.zeros((len(begins), sizes.max(initial=0)))
    sums[path, place] = error
    worst = np.empty(len(order), bool)
    worst[order] = sums.cumsum(1)[path, place] > tolerated[cell]
    return worst


def _pieces(take: _Integrator, parts: _Intervals) -> _Intervals:
    """Take the integral on equal pieces of each interval, in one pass with P between them."""
    share = np.linspace(0, 1, PIECES + 1)
    edges = parts.low[:, None] + (parts.high - parts.low)[:, None] * share
    cell, low, high = parts.cell.repeat(PIECES), edges[:, :-1].ravel(), edges[:, 1:].ravel()
    inner = parts.cell.repeat(PIECES - 1), edges[:, 1:-1].ravel()
    _, integral, between = take.gradients(low, high, cell, also=inner)
    p_between, change = to_host(between, take.change(cell, integral))
    ends = (parts.p_low[:, None], p_between.reshape(-1, PIECES - 1), parts.p_high[:, None])
    p = np.concatenate(ends, 1)
    p_low, p_high = p[:, :-1].ravel(), p[:, 1:].ravel()
    return _Intervals(integral, cell, low, high, p_low, p_high, np.abs(change - (p_high - p_low)))
