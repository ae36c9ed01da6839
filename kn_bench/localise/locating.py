"""From the queries of facts and classes to their knowledge neurons, each query attributed once.

What is remembered is the coarse set of a query, not its scores: some dozens of neurons. It is kept
with the model object and under the query and the settings, and forgotten when the weights change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

from kn_bench.cases.case import Query, Task
from kn_bench.localise.attribution import MEMORY, attribute
from kn_bench.localise.integration import Rule
from kn_bench.localise.selection import Neurons, Refined, adaptive, coarse, refined
from kn_bench.measure.encoding import encode_query
from kn_bench.model.language_model import LanguageModel

Asked = tuple[Query, Task]

REMEMBERED = 50_000
"""Queries whose coarse sets are kept for one model; the least recently used are dropped."""


@dataclass(frozen=True)
class Locating:
    """How knowledge neurons are located (Dai et al. 2022).

    Attributes:
        t: a prompt's coarse set: scores above this share of its highest.
        p: neurons are kept that are in more than this share of the prompts' coarse sets.
        fewest, most: p is moved until the number of neurons is within these bounds.
        capped: False leaves p as it is, and the number of neurons to what there are.
        rule: how attributions are integrated.
        memory: bytes that a batch of perturbed rows may take; changes nothing but speed.
    """

    t: float = 0.2
    p: float = 0.7
    fewest: int = 2
    most: int = 5
    capped: bool = True
    rule: Rule = field(default_factory=Rule)
    memory: int = field(default=MEMORY, compare=False)

    def select(self, sets: Sequence[Neurons]) -> Refined:
        """The knowledge neurons of prompts with these coarse sets."""
        if not self.capped:
            return refined(sets, self.p)
        return adaptive(sets, self.p, low=self.fewest, high=self.most)


class Bag(NamedTuple):
    """The prompts of one fact or class; ``task`` says how a causal model is asked them."""

    queries: tuple[Query, ...]
    task: Task = "fact"


@dataclass(frozen=True, slots=True)
class CoarseSet:
    """What is remembered of one query.

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


@dataclass
class _Memory:
    """Coarse sets of one model, for the weights as they were; ``versions`` notices changes."""

    versions: tuple[int, ...]
    weights: str
    sets: OrderedDict[tuple[Asked, float, Rule], CoarseSet | None] = field(
        default_factory=OrderedDict
    )


_MEMORIES: WeakKeyDictionary[LanguageModel, _Memory] = WeakKeyDictionary()


def locate(
    lm: LanguageModel, bags: Sequence[Bag], settings: Locating | None = None
) -> list[Located]:
    """The knowledge neurons of each bag of queries, all attributed together.

    Args:
        bags: the prompts of each fact or class; a query in several bags is attributed once.
        settings: Dai et al.'s by default.
    """
    settings = settings or Locating()
    asked = [[(query, bag.task) for query in bag.queries] for bag in bags]
    found = coarse_sets(lm, (one for bag in asked for one in bag), settings)
    return [_located([found[one] for one in bag], settings) for bag in asked]


def coarse_sets(
    lm: LanguageModel, queries: Iterable[Asked], settings: Locating
) -> dict[Asked, CoarseSet | None]:
    """The coarse set of each distinct query; None for one that does not fit the model."""
    memory = _memory(lm).sets
    wanted = dict.fromkeys(queries)
    found: dict[Asked, CoarseSet | None] = {}
    missing = []
    for query in wanted:
        key = (query, settings.t, settings.rule)
        if key in memory:
            memory.move_to_end(key)
            found[query] = memory[key]
        else:
            missing.append(query)
    for query, result in zip(missing, _attributed(lm, missing, settings), strict=True):
        found[query] = memory[query, settings.t, settings.rule] = result
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
    return found


def _attributed(
    lm: LanguageModel, queries: Sequence[Asked], settings: Locating
) -> list[CoarseSet | None]:
    encoded = [encode_query(query, lm.tokens, task) for query, task in queries]
    encoding = [one for one in encoded if one is not None]
    # in portions: the scores themselves are large, and only the sets of them are kept
    portion = max(1, settings.memory // (8 * lm.n_layers * lm.d_mlp))
    sets: list[CoarseSet] = []
    for start in range(0, len(encoding), portion):
        for one in attribute(
            lm, encoding[start : start + portion], rule=settings.rule, memory=settings.memory
        ):
            worst, converged = float(one.completeness.max()), bool(one.converged.all())
            sets.append(CoarseSet(coarse(one.scores, settings.t), worst, converged))
    remaining = iter(sets)
    return [None if one is None else next(remaining) for one in encoded]


def _located(sets: Sequence[CoarseSet | None], settings: Locating) -> Located:
    encoding = [one for one in sets if one is not None]
    selected = settings.select([one.neurons for one in encoding])
    return Located(
        neurons=selected.neurons,
        tau=selected.tau,
        within=selected.converged,
        queries=len(encoding),
        skipped=len(sets) - len(encoding),
        completeness=max((one.completeness for one in encoding), default=0.0),
        unconverged=sum(not one.converged for one in encoding),
    )


def _memory(lm: LanguageModel) -> _Memory:
    """What is remembered of ``lm``, which is nothing once its weights are others."""
    # torch counts in-place changes: only after one need the bytes be compared
    versions = tuple(parameter._version for parameter in lm.hf.parameters())
    known = _MEMORIES.get(lm)
    if known is None or known.versions != versions:
        weights = lm.parameter_hash()
        if known is not None and known.weights == weights:
            known.versions = versions
        else:
            known = _MEMORIES[lm] = _Memory(versions, weights)
    return known
