"""What the sections of a study work on: made when first asked for, and once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.case import Case, Cloze, EditRequest, Query, Task
from kn_bench.cases.sampling import stable_hash
from kn_bench.localise.alternatives import activation, direct_ablation, gradient_x_activation
from kn_bench.localise.groups import Profile, gap_prompts, groups_of, profiles
from kn_bench.localise.locating import Locating
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.measure.encoding import encode_query
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.seeding import seeded
from kn_bench.study.page import NothingToShow

ABLATED_ALL = 8192
"""Neurons of a model up to which all of them are ablated, whatever is asked."""
RANKED = 50
SAMPLED = 200
TASKS: tuple[Task, ...] = ("fact", "pair")
METHODS = ("integrated gradients", "gradient x activation", "direct ablation", "activation")
"""The attributions compared, the one under test first."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What bears on a study's results.

    Attributes:
        facts: of each relation.
        prompts: of each group.
        gaps: prompts that modifiers are put in.
        traced: prompts traced of each relation and paradigm.
        samples: of the noise in traces.
        window: layers restored at once for MLP and attention; None for 10 of 48, as published,
            in proportion.
        sampled, sampled_prompts: groups of each task, and prompts of each, for expensive methods.
        edited: cases of each relation that are edited and measured.
        draws: random sets of neurons beside each set.
        permutations: behind the nulls of the measures of localisation.
        resamples: of the bootstrap over prompts.
        ablation: "all" ablates every neuron one by one; "ranked" of a model with many those that
            another score ranks high, and a random sample.
        neurons: the number neurons, plural and singular, instead of those that are located.
        corpus: text to count in; the embedded models' own when None.
        corpus_lines: of it that are read.
        seed: of all draws.
    """

    facts: int = 6
    prompts: int = 20
    gaps: int = 80
    traced: int = 3
    samples: int = 10
    window: int | None = None
    sampled: int = 12
    sampled_prompts: int = 4
    edited: int = 8
    draws: int = 20
    permutations: int = 10
    resamples: int = 100
    ablation: str = "ranked"
    neurons: tuple[Neuron, ...] = ()
    corpus: Path | None = None
    corpus_lines: int = 60_000
    seed: int = 0


class Material:
    """A model and cases, with what is made of them.

    Args:
        lm: the model.
        cases: facts and pairs, of any source.
        settings: how much of it is looked at.
    """

    def __init__(
        self, lm: LanguageModel, cases: Sequence[Case], settings: Settings | None = None
    ) -> None:
        self.lm, self.cases = lm, tuple(cases)
        self.settings = settings or Settings()

    @property
    def window(self) -> int:
        """Layers restored at once: 10 of GPT-2 XL's 48, and of others in proportion."""
        return self.settings.window or max(1, round(self.lm.n_layers * 10 / 48))

    @cached_property
    def profiles(self) -> list[Profile]:
        """Facts and classes of pairs that fit the model, attributed.

        Raises:
            NothingToShow: when there are none.
        """
        s = self.settings
        found = profiles(self.lm, groups_of(self.cases, facts=s.facts, prompts=s.prompts))
        if not found:
            raise NothingToShow("No fact and no class of pairs fits the model.")
        return found

    def of_task(self, task: Task) -> list[Profile]:
        """The profiles of facts, or of pairs."""
        return [profile for profile in self.profiles if profile.group.task == task]

    def neurons(self, profile: Profile) -> Neurons:
        """The profile's knowledge neurons, by the published rule with its cap.

        Where the rule leaves none, the two of the highest mean attribution.
        """
        return profile.select(Locating()).neurons or frozenset(profile.ranked[:2])

    @cached_property
    def relations(self) -> tuple[str, ...]:
        """Relations and paradigms of the profiles, facts first."""
        ordered = [*self.of_task("fact"), *self.of_task("pair")]
        return tuple(dict.fromkeys(one.group.relation for one in ordered))

    @cached_property
    def task_of(self) -> dict[str, Task]:
        return {case.relation: case.task for case in self.cases}

    def scores(self, profile: Profile, method: str) -> Float[Tensor, "n n_layers d_mlp"]:
        """Scores of the profile's prompts by one of :data:`METHODS`."""
        if method == "integrated gradients":
            return profile.scores
        key = (profile.group.id, len(profile.encoded), method)
        if key not in self._scores:
            if method == "direct ablation":
                neurons = self.ablated(profile)
                scores = direct_ablation(self.lm, profile.encoded, neurons)
            elif method == "activation":
                scores = activation(self.lm, profile.encoded)
            else:
                scores = gradient_x_activation(self.lm, profile.encoded)
            self._scores[key] = scores.detach().cpu()
        return self._scores[key]

    def ablated(self, profile: Profile) -> frozenset[Neuron] | None:
        """Return the neurons that are ablated one by one for ``profile``; None for all.

        Each costs a forward pass a prompt. Where there are many, they are those that another score
        ranks among its :data:`RANKED` highest, for a prompt or in the mean, and the random sample.
        """
        n, d_mlp = self.lm.n_layers * self.lm.d_mlp, self.lm.d_mlp
        if self.settings.ablation == "all" or n <= ABLATED_ALL:
            return None
        chosen = set(self.random_neurons)
        for method in METHODS:
            if method != "direct ablation":
                scores = self.scores(profile, method).flatten(1).float()
                rows = torch.cat([scores, scores.mean(0, keepdim=True)])
                places = set(rows.topk(RANKED, dim=1).indices.flatten().tolist())
                chosen |= {Neuron(*divmod(place, d_mlp)) for place in places}
        return frozenset(chosen)

    @cached_property
    def random_neurons(self) -> tuple[Neuron, ...]:
        """A random sample of all neurons, the same for every profile."""
        n, d_mlp = self.lm.n_layers * self.lm.d_mlp, self.lm.d_mlp
        order = torch.randperm(n, generator=seeded("ablation", self.settings.seed))
        return tuple(Neuron(*divmod(place, d_mlp)) for place in order[:SAMPLED].tolist())

    @cached_property
    def _scores(self) -> dict[tuple[str, int, str], Tensor]:
        return {}

    def mean_activation(self, profile: Profile) -> Float[Tensor, "n_layers d_mlp"]:
        """At the answer positions of the profile's prompts."""
        return self.scores(profile, "activation").double().mean(0)

    @cached_property
    def sample(self) -> list[Profile]:
        """Some groups of each task, from as many relations as can be, with few prompts each.

        For expensive methods: direct ablation runs the model once for every neuron and prompt.
        """
        found = []
        for task in TASKS:
            groups = [profile for profile in self.of_task(task) if len(profile.encoded) > 1]
            rounds: Counter[str] = Counter()
            turns = []
            for one in sorted(groups, key=lambda one: stable_hash("sample", one.group.id)):
                turns.append((rounds[one.group.relation], one))
                rounds[one.group.relation] += 1
            chosen = sorted(turns, key=lambda turn: turn[0])[: self.settings.sampled]
            found += [one.first(self.settings.sampled_prompts) for _, one in chosen]
        return found

    @cached_property
    def gaps(self) -> list[tuple[Cloze, str]]:
        """Prompts with a gap for a determiner, and their nouns."""
        return [(cloze, noun) for cloze, noun in gap_prompts(self.cases) if cloze.left][
            : self.settings.gaps
        ]

    def rejected(self, profile: Profile) -> list[Fitted | None]:
        """The profile's prompts with the answer that is not true: target_new."""
        group = profile.group
        wrong = [r.target_new for r in group.requests]
        if len(wrong) < len(group.queries):
            wrong = wrong * len(group.queries)
        return [
            encode_query(Query(group.queries[i].cloze, wrong[i]), self.lm.tokens, group.task)
            for i in profile.kept
        ]

    def requests(self, task: Task, each: int | None = None) -> list[EditRequest]:
        """The first edit requests of every relation (or paradigm) of a task."""
        counted: dict[str, int] = {}
        found = []
        for case in self.cases:
            n = counted.get(case.relation, 0)
            if case.task == task and n < (each or self.settings.edited):
                counted[case.relation] = n + 1
                found.append(case.request)
        return found


def best_class(profiles_: Sequence[Profile], name: str) -> list[Profile]:
    """The profiles of the classes called ``name``, of all paradigms that ask for it."""
    return [
        profile
        for profile in profiles_
        if profile.group.task == "pair"
        and profile.group.name == name
        and all(r.target_true.lower() == name for r in profile.group.requests)
    ]


def stacked(profiles_: Sequence[Profile]) -> Float[Tensor, "n n_layers d_mlp"]:
    """Scores of all prompts of several profiles."""
    return torch.cat([profile.scores for profile in profiles_])
