"""What the sections of a study work on, computed once, on first use."""

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
from kn_bench.localise.groups import (
    Group,
    Profile,
    encode_group,
    gap_prompts,
    groups_of,
    profiles,
)
from kn_bench.localise.locating import Locating
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.measure.encoding import encode_query
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.seeding import seeded
from kn_bench.results import tables
from kn_bench.study.page import NothingToShow

ABLATED_ALL = 8192
"""Models with at most this many neurons have all of them ablated, whatever the settings say."""
RANKED = 50
SAMPLED = 200
TASKS: tuple[Task, ...] = ("fact", "pair")
METHODS = ("integrated gradients", "gradient x activation", "direct ablation", "activation")
"""The attributions compared; the method under test comes first."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The settings that affect a study's results.

    Attributes:
        facts: facts per relation.
        prompts: prompts per group.
        gaps: prompts with a gap that modifiers are put into.
        traced: prompts traced per relation or paradigm.
        samples: noise samples per trace.
        window: layers restored at once for MLP and attention; None scales the published 10 of 48
            layers to the depth of the model.
        sampled, sampled_prompts: groups per task, and prompts per group, for expensive methods.
        edited: cases per relation that are edited and measured.
        draws: random sets of neurons to compare each located set with.
        permutations: permutations behind the nulls of the measures of localisation.
        resamples: bootstrap resamples over prompts.
        ablation: "all" ablates every neuron one by one; "ranked" ablates, in a model with many
            neurons, those that another score ranks high and a random sample.
        neurons: the number neurons, plural and singular, to use instead of the located ones.
        corpus: text in which co-occurrence is counted; None for the embedded models' own.
        corpus_lines: lines of the corpus to read.
        seed: seed of all random draws.
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
    """A model and cases, with everything computed from them.

    Args:
        lm: the model.
        cases: facts and pairs from any source.
        settings: how much of them to look at.
    """

    def __init__(
        self, lm: LanguageModel, cases: Sequence[Case], settings: StudySettings | None = None
    ) -> None:
        self.lm, self.cases = lm, tuple(cases)
        self.settings = settings or StudySettings()

    @property
    def window(self) -> int:
        """Layers restored at once: 10 of GPT-2 XL's 48, in proportion for other models."""
        return self.settings.window or max(1, round(self.lm.n_layers * 10 / 48))

    @cached_property
    def groups(self) -> list[Group]:
        """The facts and classes of pairs that are drawn from the cases."""
        s = self.settings
        return groups_of(self.cases, facts=s.facts, prompts=s.prompts)

    @cached_property
    def profiles(self) -> list[Profile]:
        """The attributed groups, with those of their prompts that the model is asked.

        Raises:
            NothingToShow: if there are none.
        """
        attributed = profiles(self.lm, self.groups)
        if not attributed:
            reasons = ("No fact and no class of pairs fits the model.", *self.left_out)
            raise NothingToShow(" ".join(reasons))
        return attributed

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """How many prompts of the groups are left out, and why, in a sentence; none if none is."""
        counted: Counter[str] = Counter()
        for group in self.groups:
            counted += encode_group(self.lm, group).left_out
        if not counted:
            return ()
        prompts = sum(len(group.queries) for group in self.groups)
        reasons = ", ".join(f"{n} {reason}" for reason, n in counted.items())
        asked = tables.counted(prompts, "prompt")
        return (f"Of {asked} of facts and classes these are left out: {reasons}.",)

    def of_task(self, task: Task) -> list[Profile]:
        """Return the profiles of facts, or those of pairs."""
        return [profile for profile in self.profiles if profile.group.task == task]

    def neurons(self, profile: Profile) -> Neurons:
        """Return the profile's knowledge neurons, by the published rule with its cap.

        Where the rule selects none, return the two with the highest mean attribution.
        """
        return profile.select(Locating()).neurons or frozenset(profile.ranked[:2])

    @cached_property
    def without_neurons(self) -> tuple[str, ...]:
        """How many profiles the rule selects no neuron for, in a sentence; none if none is."""
        n = sum(not profile.select(Locating()).neurons for profile in self.profiles)
        if not n:
            return ()
        return (
            f"Facts and classes that the rule selects no neuron for: {n} of {len(self.profiles)}; "
            "the two of highest mean attribution stand in.",
        )

    @cached_property
    def relations(self) -> tuple[str, ...]:
        """Relations and paradigms of the profiles, facts first."""
        ordered = [*self.of_task("fact"), *self.of_task("pair")]
        return tuple(dict.fromkeys(profile.group.relation for profile in ordered))

    @cached_property
    def task_of(self) -> dict[str, Task]:
        return {case.relation: case.task for case in self.cases}

    @cached_property
    def cluster_of(self) -> dict[str, str]:
        """The cluster of every case by its id: what intervals over subjects or nouns resample."""
        return {case.id: case.cluster for case in self.cases}

    def scores(self, profile: Profile, method: str) -> Float[Tensor, "n n_layers d_mlp"]:
        """Return the scores of the profile's prompts by one of :data:`METHODS`."""
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

        Each neuron costs one forward pass per prompt. In a model with many neurons, ablate those
        that another score ranks among its :data:`RANKED` highest, for a prompt or on average, and
        a random sample.
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
        """Return the mean activation at the answer positions of the profile's prompts."""
        return self.scores(profile, "activation").double().mean(0)

    @cached_property
    def sample(self) -> list[Profile]:
        """Some groups of each task, from as many relations as possible, with few prompts each.

        Used by expensive methods: direct ablation runs the model once per neuron and prompt.
        """
        sampled = []
        for task in TASKS:
            groups = [profile for profile in self.of_task(task) if len(profile.encoded) > 1]
            rounds: Counter[str] = Counter()
            turns = []
            for profile in sorted(
                groups, key=lambda profile: stable_hash("sample", profile.group.id)
            ):
                turns.append((rounds[profile.group.relation], profile))
                rounds[profile.group.relation] += 1
            chosen = sorted(turns, key=lambda turn: turn[0])[: self.settings.sampled]
            sampled += [profile.first(self.settings.sampled_prompts) for _, profile in chosen]
        return sampled

    @cached_property
    def gaps(self) -> list[tuple[Cloze, str]]:
        """Prompts with a gap for a determiner, and their nouns."""
        prompts = gap_prompts(self.cases, causal=self.lm.is_causal)
        return [(cloze, noun) for cloze, noun in prompts if cloze.left][: self.settings.gaps]

    def rejected(self, profile: Profile) -> list[Fitted | None]:
        """Encode the profile's prompts with the wrong answer, target_new."""
        group = profile.group
        wrong = [r.target_new for r in group.requests]
        if len(wrong) < len(group.queries):
            wrong = wrong * len(group.queries)
        return [
            encode_query(Query(group.queries[i].cloze, wrong[i]), self.lm.tokens, group.task)
            for i in profile.kept
        ]

    def requests(self, task: Task, each: int | None = None) -> list[EditRequest]:
        """Return the first edit requests of every relation (or paradigm) of a task."""
        counted: dict[str, int] = {}
        requests = []
        for case in self.cases:
            n = counted.get(case.relation, 0)
            if case.task == task and n < (each or self.settings.edited):
                counted[case.relation] = n + 1
                requests.append(case.request)
        return requests


def best_class(profiles_: Sequence[Profile], name: str) -> list[Profile]:
    """Return the profiles of the classes called ``name``, from all paradigms that have it."""
    return [
        profile
        for profile in profiles_
        if profile.group.task == "pair"
        and profile.group.name == name
        and all(r.target_true.lower() == name for r in profile.group.requests)
    ]


def stacked(profiles_: Sequence[Profile]) -> Float[Tensor, "n n_layers d_mlp"]:
    """Return the scores of all prompts of several profiles."""
    return torch.cat([profile.scores for profile in profiles_])
