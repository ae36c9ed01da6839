"""Locate the knowledge neurons of facts and classes, each query attributed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from kn_bench.cases.case import Query, Task
from kn_bench.localise.alternatives import log_prob_increase
from kn_bench.localise.attribution import attribute
from kn_bench.localise.integration import Rule
from kn_bench.localise.selection import Neurons, Refined, adaptive, coarse, refined
from kn_bench.measure.encoding import EncodedQuery, encode_query
from kn_bench.model.language_model import LanguageModel

TaskQuery = tuple[Query, Task]
"""A query, and the task that decides how a causal model is asked."""


AttributionName = Literal["integrated-gradients", "log-probability-increase"]


@dataclass(frozen=True)
class Locating:
    """How knowledge neurons are located (Dai et al. 2022).

    Attributes:
        t: a prompt's coarse set: scores above this share of its highest.
        p: neurons are kept that are in more than this share of the prompts' coarse sets.
        fewest, most: p is moved until the number of neurons is within these bounds.
        capped: False keeps p as it is, whatever the number of neurons.
        rule: how attributions are integrated.
        attribution: what scores the neurons: the paper's integrated gradients, or the forward-only
            increase of log-probability.
    """

    t: float = 0.2
    p: float = 0.7
    fewest: int = 2
    most: int = 5
    capped: bool = True
    rule: Rule = field(default_factory=Rule)
    attribution: AttributionName = "integrated-gradients"

    def select(self, sets: Sequence[Neurons]) -> Refined:
        """Return the knowledge neurons of prompts with these coarse sets."""
        if not self.capped:
            return refined(sets, self.p)
        return adaptive(sets, self.p, low=self.fewest, high=self.most)


class Bag(NamedTuple):
    """The prompts of one fact or class; ``task`` decides how a causal model is asked."""

    queries: tuple[Query, ...]
    task: Task = "fact"


@dataclass(frozen=True, slots=True)
class CoarseSet:
    """The part of a query's attribution that is remembered.

    Attributes:
        neurons: those above the threshold.
        completeness: the worst layer's completeness error, in units of probability.
        converged: whether every layer's error is within the rule's tolerance.
    """

    neurons: Neurons
    completeness: float
    converged: bool


@dataclass(frozen=True)
class Located:
    """The knowledge neurons of one fact or class.

    Attributes:
        neurons, tau: see :class:`kn_bench.localise.selection.Refined`.
        within: whether their number is within the bounds.
        queries: prompts that were attributed.
        skipped: prompts that do not fit the model (no single gap, an answer it has no token for).
        completeness: the worst completeness error of all prompts and layers.
        unconverged: prompts with a layer whose error exceeds the rule's tolerance.
    """

    neurons: Neurons
    tau: float
    within: bool
    queries: int
    skipped: int
    completeness: float
    unconverged: int


def locate(
    lm: LanguageModel, bags: Sequence[Bag], settings: Locating | None = None
) -> list[Located]:
    """Locate the knowledge neurons of each bag of queries, all attributed together.

    Args:
        bags: the prompts of each fact or class; a query in several bags is attributed once.
        settings: Dai et al.'s by default.
    """
    settings = settings or Locating()
    asked = [[(query, bag.task) for query in bag.queries] for bag in bags]
    sets = coarse_sets(lm, (query for bag in asked for query in bag), settings)
    return [_located([sets[query] for query in bag], settings) for bag in asked]


def coarse_sets(
    lm: LanguageModel, queries: Iterable[TaskQuery], settings: Locating
) -> dict[TaskQuery, CoarseSet | None]:
    """Return the coarse set of each distinct query; None for one that does not fit the model.

    ``lm.memo`` keeps a query's coarse set, some dozens of neurons, and not its scores.
    """
    keys = {
        query: ("coarse set", query, settings.t, settings.rule, settings.attribution)
        for query in queries
    }

    def attributed(missing: list[tuple[Any, ...]]) -> list[CoarseSet | None]:
        return _attributed(lm, [key[1] for key in missing], settings)

    sets = lm.memo.get_many(keys.values(), attributed)
    return {query: sets[key] for query, key in keys.items()}


def _attributed(
    lm: LanguageModel, queries: Sequence[TaskQuery], settings: Locating
) -> list[CoarseSet | None]:
    encoded = [encode_query(query, lm.tokens, task) for query, task in queries]

    def compute(fitting: list[EncodedQuery]) -> list[CoarseSet]:
        if settings.attribution == "log-probability-increase":
            # nothing is integrated, so there is no completeness error
            scored = log_prob_increase(lm, fitting)
            return [CoarseSet(coarse(scores, settings.t), 0.0, True) for scores in scored.cpu()]
        return [
            CoarseSet(
                coarse(attribution.scores, settings.t),
                float(attribution.completeness.max()),
                bool(attribution.converged.all()),
            )
            for attribution in attribute(lm, fitting, rule=settings.rule)
        ]

    # in batches: scores are large, and only their coarse sets are kept
    fitting = [query for query in encoded if query is not None]
    scores = 8 * lm.n_layers * lm.d_mlp
    sets = iter(lm.batcher.run(compute, fitting, item_bytes=lambda _: scores))
    return [None if query is None else next(sets) for query in encoded]


def _located(sets: Sequence[CoarseSet | None], settings: Locating) -> Located:
    fitting = [coarse_set for coarse_set in sets if coarse_set is not None]
    selected = settings.select([coarse_set.neurons for coarse_set in fitting])
    return Located(
        neurons=selected.neurons,
        tau=selected.tau,
        within=selected.converged,
        queries=len(fitting),
        skipped=len(sets) - len(fitting),
        completeness=max((coarse_set.completeness for coarse_set in fitting), default=0.0),
        unconverged=sum(not coarse_set.converged for coarse_set in fitting),
    )
