"""Control 5: does the attribution matter?

Neurons are chosen by four attributions on half of the prompts and suppressed on the others:
integrated gradients, activation, gradient x activation, and direct ablation (a search for the
neurons that lower P most when ablated alone). Matched random neurons are the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from kn_bench.editing.edit import NoEdit
from kn_bench.localise.groups import Profile
from kn_bench.localise.interventions import crossed, suppress
from kn_bench.localise.matching import matched
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.measure.statistics import Interval, mean_interval, paired
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.seeding import seeded
from kn_bench.results import tables
from kn_bench.study.material import METHODS, Material
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import TASK, panels, whiskers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Scores = Float[Tensor, "n n_layers d_mlp"]

K = 5
ALL = (*METHODS, "random")


@dataclass(frozen=True)
class Choice:
    """The effect of neurons chosen by one attribution, on prompts not used for the choice.

    Attributes:
        method: name of the attribution.
        neurons: the k neurons with the highest mean score on the first half of the prompts.
        change: mean change of log P on the other half, in nats.
        overlap: share of the neurons that the first method chose as well.
    """

    method: str
    neurons: Neurons
    change: float
    overlap: float


def top(scores: Scores, k: int) -> Neurons:
    """Return the k neurons with the highest mean score."""
    mean = torch.as_tensor(scores).double().mean(0)
    places = mean.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return frozenset(Neuron(*divmod(place, mean.shape[1])) for place in places)


def halves(n: int) -> tuple[list[int], list[int]]:
    """Split the indices of n prompts into every other one and the rest."""
    return list(range(0, n, 2)), list(range(1, n, 2))


def choose(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    scores: Sequence[tuple[str, Scores]],
    *,
    k: int = 5,
    draws: int = 20,
    seed: object = 0,
) -> list[Choice]:
    """Choose k neurons by each of ``scores`` on half of the prompts; suppress them on the rest.

    Args:
        scores: (name, scores of every prompt); the one called ``activation`` also matches the
            random neurons, which are added as ``random``.
        draws: number of random sets.

    Raises:
        ValueError: for fewer than two prompts, or without activations.
    """
    named = dict(scores)
    if len(queries) < 2 or "activation" not in named:
        raise ValueError(
            f"{len(queries)} prompts with scores {', '.join(named)}: expected two prompts or more "
            "and scores called 'activation', on which random neurons are matched"
        )
    seen, unseen = halves(len(queries))
    sets = {name: top(prompt_scores[seen], k) for name, prompt_scores in named.items()}
    first = next(iter(sets.values()))
    mean = named["activation"][seen].double().mean(0)
    generator = seeded("choice", seed)
    random = [matched(mean, first, generator) for _ in range(draws)]
    edits = [NoEdit(), *map(suppress, sets.values()), *map(suppress, random)]
    log_probs = crossed(lm, [queries[i] for i in unseen], edits).log_prob
    changes = (log_probs[1:] - log_probs[0]).mean(1)
    choices = [
        Choice(name, neurons, float(change), len(neurons & first) / k)
        for (name, neurons), change in zip(sets.items(), changes, strict=False)
    ]
    floor = float(np.mean(changes[len(sets) :]))
    return [*choices, Choice("random", frozenset(), floor, 0.0)]


@dataclass(frozen=True)
class GroupChoices:
    """One group with neurons chosen by every attribution.

    Attributes:
        rank_correlation: Spearman's correlation of integrated gradients with direct ablation,
            over a random sample of neurons.
    """

    profile: Profile
    chosen: tuple[Choice, ...]
    rank_correlation: float

    def change(self, method: str) -> float:
        """Return the change of log P on the prompts not used for the choice."""
        return next(choice.change for choice in self.chosen if choice.method == method)


def run(material: Material) -> Section:
    """Compute this section of the study."""
    trials = [
        GroupChoices(
            profile,
            tuple(
                choose(
                    material.lm,
                    profile.encoded,
                    [(method, material.scores(profile, method)) for method in METHODS],
                    k=K,
                    draws=material.settings.draws,
                    seed=(material.settings.seed, profile.group.id),
                )
            ),
            rank_correlation(material, profile),
        )
        for profile in material.sample
    ]
    if not trials:
        raise NothingToShow("No fact or class has two prompts to choose on and test on.")
    return Section(
        "choice",
        "Control 5: does the attribution matter?",
        f"On every other prompt of a fact or class the {K} best neurons are chosen by each "
        "attribution; on the remaining prompts they are suppressed. Direct ablation is a search "
        "for the neurons that lower P most when each is silenced alone. Matched random neurons "
        "are the floor.",
        _findings(trials),
        tables=(_table(trials),),
        figures=(
            SectionFigure(
                "choice",
                f"Change of log P(answer) on unseen prompts when the {K} neurons chosen by each "
                "attribution are suppressed: mean with its 95 % interval over facts or classes.",
                lambda: _draw(trials),
            ),
        ),
    )


def rank_correlation(material: Material, profile: Profile) -> float:
    """Return Spearman's correlation of integrated gradients with direct ablation.

    Take a random sample of all neurons: among those that a score ranks high it would say little.
    """
    layers, units = map(list, zip(*material.random_neurons, strict=True))
    attributed, ablated = (
        material.scores(profile, method).double().mean(0)[layers, units]
        for method in ("integrated gradients", "direct ablation")
    )
    return float(spearmanr(attributed, ablated).statistic)


def _mean(trials: Sequence[GroupChoices], method: str) -> Interval:
    names = [trial.profile.group.id for trial in trials]
    return mean_interval([trial.change(method) for trial in trials], names, bounds=None)


def _table(trials: Sequence[GroupChoices]) -> SectionTable:
    rows: list[TableRow] = []
    for task, (_, _, label) in TASK.items():
        mine = [trial for trial in trials if trial.profile.group.task == task]
        if not mine:
            continue
        names = [trial.profile.group.id for trial in mine]
        first = [trial.change(METHODS[0]) for trial in mine]
        for number, method in enumerate(ALL):
            overlap = mean_interval([trial.chosen[number].overlap for trial in mine], names)
            test = paired(first, [trial.change(method) for trial in mine], names)
            same = method in (METHODS[0], "random")
            rows.append(
                (
                    label,
                    method,
                    _mean(mine, method),
                    None if same else overlap,
                    None if method == METHODS[0] else test.p,
                )
            )
    return SectionTable(
        "choice",
        "Change of log P on unseen prompts, the share of neurons that integrated gradients chose "
        "as well, and p of the paired permutation test against integrated gradients.",
        ("task", "chosen by", "change", "shared", "p"),
        tuple(rows),
        left=2,
        digits=3,
    )


def _findings(trials: Sequence[GroupChoices]) -> tuple[str, ...]:
    sentences = []
    for task, (_, _, label) in TASK.items():
        mine = [trial for trial in trials if trial.profile.group.task == task]
        if mine:
            parts = [f"{method} {_mean(mine, method).mean:+.2f}" for method in ALL]
            sentences.append(f"{label} (n={len(mine)}), change of log P: {', '.join(parts)}.")
            agreement = mean_interval(
                [trial.rank_correlation for trial in mine],
                [trial.profile.group.id for trial in mine],
                bounds=(-1.0, 1.0),
            )
            sentences.append(
                f"{label}: over random neurons integrated gradients and direct ablation have rank "
                f"correlation {tables.mean(agreement)}."
            )
    return tuple(sentences)


def _draw(trials: Sequence[GroupChoices]) -> Drawing:
    figure, (axes,) = panels(1, width=6.5, height=2.8)
    for shift, (task, (colour, marker, label)) in zip((-0.1, 0.1), TASK.items(), strict=True):
        mine = [trial for trial in trials if trial.profile.group.task == task]
        if mine:
            values = [_mean(mine, method) for method in ALL]
            places = [i + shift for i in range(len(ALL))]
            whiskers(axes, places, values, colour=colour, marker=marker, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(ALL)), [name.replace(" ", "\n", 1) for name in ALL])
    axes.set_ylabel("change of log P (nats)")
    axes.legend()
    return figure
