"""Groups that knowledge neurons are located for: a fact with its patterns, or a class of pairs.

    P36 Canada                         "The capital of Canada is ▁", "Canada's capital is ▁", ...
    determiner_noun_agreement_2 these  "Raymond is selling ▁ sketches", "Anne likes ▁ lakes", ...

A class is all pairs of a paradigm with the same determiner, asked for or turned on; without a
determiner, all pairs with the same number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.building.grammar import NUMBER_CLASS, lexeme, number_of
from kn_bench.cases.building.paradigms import BLIMP
from kn_bench.cases.case import Case, Cloze, EditRequest, Query, Task
from kn_bench.cases.sampling import stable_hash
from kn_bench.localise.attribution import Attribution, attribute
from kn_bench.localise.integration import Rule
from kn_bench.localise.locating import Locating
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron, Neurons, Refined, coarse
from kn_bench.measure.encoding import EncodedQuery, encode_query
from kn_bench.model.language_model import LanguageModel

RANKED = 512
"""Number of neurons that are ranked: a large model has hundreds of thousands."""
UNFIT = "not fitting the model"
NOTHING_BEFORE = "with nothing before the gap from which a causal model could predict the answer"
SAME = "the same to the model as another one of their group"
FAMILY = {paradigm.id: paradigm.family for paradigm in BLIMP}


@dataclass(frozen=True)
class Group:
    """Prompts that should share their knowledge neurons.

    Attributes:
        id: case id of a fact; ``paradigm/class`` of pairs.
        task: of its prompts.
        relation: relation or paradigm.
        name: the subject, or what the class is called.
        queries: the prompts.
        clusters: of the prompts: the noun of a pair; the pattern of a fact.
        requests: the edit requests behind it, one for a fact.
    """

    id: str
    task: Task
    relation: str
    name: str
    queries: tuple[Query, ...]
    clusters: tuple[str, ...]
    requests: tuple[EditRequest, ...]


@dataclass(frozen=True)
class Profile:
    """A group with the attributions of those of its prompts that the model is asked.

    Attributes:
        group: the group.
        encoded: those prompts in tokens, see :func:`encode_group`.
        kept: their indices in ``group.queries``.
        attributions: of each.
    """

    group: Group
    encoded: tuple[Fitted, ...]
    kept: tuple[int, ...]
    attributions: tuple[Attribution, ...]

    @cached_property
    def scores(self) -> Float[Tensor, "n n_layers d_mlp"]:
        """Of every prompt, on the CPU."""
        return torch.stack([attribution.scores for attribution in self.attributions]).cpu()

    @cached_property
    def ranked(self) -> tuple[Neuron, ...]:
        """Neurons by mean attribution, the highest first; at most :data:`RANKED`."""
        mean = self.scores.double().mean(0)
        order = mean.flatten().argsort(descending=True, stable=True)[:RANKED].tolist()
        return tuple(Neuron(*divmod(place, mean.shape[1])) for place in order)

    def first(self, n: int) -> Profile:
        """Return the same profile with its first ``n`` prompts."""
        return Profile(self.group, self.encoded[:n], self.kept[:n], self.attributions[:n])

    @property
    def clusters(self) -> list[str]:
        """Of those prompts."""
        return [self.group.clusters[i] for i in self.kept]

    def coarse_sets(self, t: float = 0.2) -> list[Neurons]:
        """Return the coarse set of every prompt."""
        return [coarse(scores, t) for scores in self.scores]

    def select(self, locating: Locating | None = None) -> Refined:
        """Return the group's knowledge neurons."""
        locating = locating or Locating()
        return locating.select(self.coarse_sets(locating.t))


def groups_of(
    cases: Iterable[Case], *, facts: int | None = None, prompts: int | None = None
) -> list[Group]:
    """Return the facts and the classes among ``cases``.

    Args:
        facts: of each relation, drawn by a hash of their ids; all when None.
        prompts: of each group, likewise; all when None.
    """
    groups: list[Group] = []
    by_relation: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_relation[case.relation].append(case)
    for relation, members in by_relation.items():
        if members[0].task == "fact":
            chosen = sorted(members, key=lambda case: stable_hash("group", case.id))
            groups += [_fact(case, prompts) for case in chosen[:facts]]
        else:
            groups += _classes(relation, members, prompts)
    return groups


def _fact(case: Case, prompts: int | None) -> Group:
    queries = case.request.queries[:prompts]
    clusters = tuple(str(i) for i in range(len(queries)))
    request = case.request
    return Group(case.id, "fact", case.relation, request.subject, queries, clusters, (request,))


def _classes(relation: str, cases: Sequence[Case], prompts: int | None) -> list[Group]:
    by_class: dict[str, list[EditRequest]] = defaultdict(list)
    for case in cases:
        by_class[class_of(case.request)].append(case.request)
    groups = []
    for name, requests in sorted(by_class.items()):
        chosen = sorted(requests, key=lambda r: stable_hash("group", r.id))[:prompts]
        groups.append(
            Group(
                f"{relation}/{name}",
                "pair",
                relation,
                name,
                tuple(Query(r.cloze, r.target_true) for r in chosen),
                tuple(_cluster(r) for r in chosen),
                tuple(chosen),
            )
        )
    return groups


def class_of(request: EditRequest) -> str:
    """Return the class of a pair: its determiner, else its number, else the governing word."""
    for word in (request.target_true.lower(), request.subject.lower()):
        if word in NUMBER_CLASS:
            return word
    number = number_of(
        FAMILY.get(request.relation, ""),
        request.subject,
        request.target_true,
        before="{}" in request.prompt,
    )
    return number or request.subject.lower()


def _cluster(request: EditRequest) -> str:
    """Return the noun that a pair turns on."""
    if request.subject.lower() in NUMBER_CLASS:
        return lexeme(request.target_true, request.target_new)
    return request.subject.lower()


class AskedPrompts(NamedTuple):
    """The prompts of a group that the model is asked.

    Attributes:
        kept: their indices in ``group.queries``.
        encoded: these in tokens.
        left_out: number of the others, by reason.
    """

    kept: tuple[int, ...]
    encoded: tuple[Fitted, ...]
    left_out: Counter[str]


def encode_group(lm: LanguageModel, group: Group) -> AskedPrompts:
    """Encode the group's prompts; leave out those that say nothing about this group and model.

    A causal model reads no more than what comes before the gap: prompts that differ after it alone
    are one prompt, and one that begins with the gap asks how likely any text begins with the word.
    """
    places: dict[EncodedQuery, int] = {}
    left_out: Counter[str] = Counter()
    for i, query in enumerate(group.queries):
        encoded = encode_query(query, lm.tokens, group.task)
        if encoded is None:
            left_out[UNFIT] += 1
        elif lm.is_causal and not query.cloze.left:
            left_out[NOTHING_BEFORE] += 1
        elif encoded in places:
            left_out[SAME] += 1
        else:
            places[encoded] = i
    return AskedPrompts(tuple(places.values()), tuple(places), left_out)


def profiles(
    lm: LanguageModel, groups: Sequence[Group], *, rule: Rule | None = None
) -> list[Profile]:
    """Attribute every prompt of every group, each distinct one once; leave out groups without any.

    Args:
        rule: how the integral is taken.
    """
    asked = [encode_group(lm, group) for group in groups]
    distinct = list(dict.fromkeys(query for prompts in asked for query in prompts.encoded))
    attributions = dict(zip(distinct, attribute(lm, distinct, rule=rule), strict=True))
    return [
        Profile(group, encoded, kept, tuple(attributions[query] for query in encoded))
        for group, (kept, encoded, _) in zip(groups, asked, strict=True)
        if encoded
    ]


def gap_prompts(cases: Iterable[Case], *, causal: bool) -> list[tuple[Cloze, str]]:
    """Return prompts with a gap for a determiner, each once with a noun.

    Args:
        causal: for a model that reads only what stands before the gap: prompts that are equal there
            are one prompt.
    """
    nouns: dict[object, tuple[Cloze, str]] = {}
    for case in cases:
        request = case.request
        if case.task == "pair" and request.target_true.lower() in NUMBER_CLASS:
            read = request.cloze.left if causal else request.cloze
            nouns[read] = request.cloze, _cluster(request)
    return list(nouns.values())
