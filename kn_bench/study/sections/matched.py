"""Control 1: do random neurons have the same effect?

Located neurons are compared with as many random ones in the same layers, drawn from those nearest
to them in mean activation; every effect gets a z-score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kn_bench.editing.edit import NoEdit
from kn_bench.localise.groups import Profile
from kn_bench.localise.interventions import crossed, scale
from kn_bench.localise.matching import NEAREST, matched
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neurons
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.seeding import seeded
from kn_bench.results import tables
from kn_bench.study.material import Material
from kn_bench.study.page import Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import GREY, MARKS, TASK, panels, plain_ticks, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


PROMPTS = 8
"""Prompts per group."""
FACTORS = {"suppressed": 0.0, "enhanced": 2.0}
ACTIVATIONS = ("activation", "activation of random")


DRAWS = 20


@dataclass(frozen=True)
class AgainstRandom:
    """The effect of scaling neurons, and the effects of matched random neurons.

    Attributes:
        n_neurons: number of scaled neurons.
        effect: mean change of log P(answer), in nats.
        draws: the same for each random set.
        activation: mean activation of the scaled neurons.
        of_draws: the same, over all random sets.
        z: (effect - mean of draws) / their standard deviation; nan for equal draws.
    """

    n_neurons: int
    effect: float
    draws: tuple[float, ...]
    activation: float = float("nan")
    of_draws: float = float("nan")

    @property
    def z(self) -> float:
        if np.ptp(self.draws) < 1e-12:  # equal but for their last bits
            return float("nan")
        return (self.effect - float(np.mean(self.draws))) / float(np.std(self.draws, ddof=1))

    def p(self, *, falls: bool = True) -> float:
        """Return the one-sided p of an effect at least as low (``falls``) or at least as high.

        It is (b + 1) / (m + 1) for b of m draws at least as extreme.
        """
        extreme = [d <= self.effect if falls else d >= self.effect for d in self.draws]
        return (sum(extreme) + 1) / (len(extreme) + 1)


def against_random(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    neurons: Neurons,
    activation: Float[Tensor, "n_layers d_mlp"],
    *,
    factor: float = 0.0,
    draws: int = DRAWS,
    seed: object = 0,
) -> AgainstRandom:
    """Scale ``neurons``, and as many random ones ``draws`` times, on the same prompts.

    Args:
        activation: mean activation of every neuron at these prompts' answer positions.
        factor: 0 suppresses, 2 enhances.
        seed: seed of the draws; use the group's id, so that groups draw independently.
    """
    generator = seeded("matched", seed)
    sets = [neurons, *(matched(activation, neurons, generator) for _ in range(draws))]
    edits = [NoEdit(), *(scale(scaled, factor) for scaled in sets)]
    log_probs = crossed(lm, queries, edits).log_prob
    changes = (log_probs[1:] - log_probs[0]).mean(1)
    means = [float(np.mean([float(activation[n]) for n in chosen])) for chosen in sets]
    return AgainstRandom(
        len(neurons),
        float(changes[0]),
        tuple(changes[1:].tolist()),
        means[0],
        float(np.mean(means[1:])),
    )


@dataclass(frozen=True)
class GroupComparison:
    """One group's neurons against as many random ones, all scaled."""

    profile: Profile
    how: str
    against: AgainstRandom

    @property
    def p(self) -> float:
        """One-sided p in the expected direction."""
        return self.against.p(falls=self.how == "suppressed")


def run(material: Material) -> Section:
    """Compute this section of the study."""
    comparisons = compare(material)
    return Section(
        "matched",
        "Control 1: do random neurons do the same?",
        "The located neurons of each fact and class, and as many random neurons of the same layers "
        f"({tables.counted(material.settings.draws, 'draw')}), are suppressed and enhanced on "
        f"the same prompts. Each is drawn from the {NEAREST} of its layer that are nearest in mean "
        "activation to a located one; the nearest may still be less active, so the tables have "
        "the mean of both. z is how many standard deviations of the draws the effect lies from "
        "their mean.",
        _findings(comparisons),
        tables=(_table(material, comparisons), _groups(comparisons)),
        figures=(
            SectionFigure(
                "z",
                f"z of every fact ({MARKS['fact']}) and class of pairs ({MARKS['pair']}) when its "
                "located neurons are suppressed (left) and enhanced (right), against matched "
                "random neurons; 95 % of random sets lie in the grey band. The scale is "
                "logarithmic beyond 5.",
                lambda: _draw(material, comparisons),
            ),
        ),
    )


def compare(material: Material) -> list[GroupComparison]:
    """Compare every group with random neurons, under suppression and enhancement."""
    return [
        GroupComparison(
            profile,
            how,
            against_random(
                material.lm,
                profile.encoded[:PROMPTS],
                material.neurons(profile),
                material.mean_activation(profile),
                factor=factor,
                draws=material.settings.draws,
                seed=(material.settings.seed, profile.group.id),
            ),
        )
        for profile in material.profiles
        for how, factor in FACTORS.items()
    ]


def _summary(mine: Sequence[GroupComparison]) -> tuple[Interval | float | None, ...]:
    names = [comparison.profile.group.id for comparison in mine]
    effects = mean_interval([comparison.against.effect for comparison in mine], names, bounds=None)
    random = mean_interval(
        [np.mean(comparison.against.draws) for comparison in mine], names, bounds=None
    )
    z = [comparison.against.z for comparison in mine if np.isfinite(comparison.against.z)]
    return (
        effects,
        random,
        float(np.median(z)) if z else None,
        mean_interval([comparison.p <= 0.05 for comparison in mine], names),
    )


def _activations(mine: Sequence[GroupComparison]) -> tuple[float, float]:
    return (
        float(np.mean([comparison.against.activation for comparison in mine])),
        float(np.mean([comparison.against.of_draws for comparison in mine])),
    )


def _table(material: Material, comparisons: Sequence[GroupComparison]) -> SectionTable:
    rows: list[TableRow] = []
    named = [(relation, {relation}) for relation in material.relations]
    for task, (_, _, name) in TASK.items():
        named.append((f"all {name}", {p.group.relation for p in material.of_task(task)}))
    for name, relations in named:
        for how in FACTORS:
            mine = [
                o for o in comparisons if o.how == how and o.profile.group.relation in relations
            ]
            if mine:
                rows.append((name, how, *_summary(mine), *_activations(mine)))
    return SectionTable(
        "matched",
        "Mean change of log P(answer) in nats, that of matched random neurons, the median z, "
        "the share of groups beyond 95 % of their draws (one-sided; 5 % if they were random), and "
        "the mean activation of the located neurons and of the random ones.",
        ("relation", "neurons", "change", "random", "median z", "p ≤ 0.05", *ACTIVATIONS),
        tuple(rows),
        left=2,
        shown=70,
    )


def _groups(comparisons: Sequence[GroupComparison]) -> SectionTable:
    rows: list[TableRow] = [
        (
            comparison.profile.group.id,
            comparison.how,
            comparison.against.n_neurons,
            comparison.against.effect,
            float(np.mean(comparison.against.draws)),
            float(np.std(comparison.against.draws, ddof=1)),
            comparison.against.z,
            comparison.p,
            *_activations([comparison]),
        )
        for comparison in comparisons
    ]
    return SectionTable(
        "matched_by_group",
        "Every fact and class: neurons scaled, change of log P, mean and standard deviation of the "
        "random draws, z, the one-sided p, and the mean activation of the located neurons and of "
        "the random ones.",
        ("group", "neurons", "|KN|", "change", "random", "sd", "z", "p", *ACTIVATIONS),
        tuple(rows),
        left=2,
        digits=3,
        shown=10,
    )


def _findings(comparisons: Sequence[GroupComparison]) -> tuple[str, ...]:
    sentences = []
    for task, (_, _, name) in TASK.items():
        for how in FACTORS:
            mine = [o for o in comparisons if o.how == how and o.profile.group.task == task]
            if mine:
                effect, random, z, beyond = _summary(mine)
                assert isinstance(effect, Interval)
                assert isinstance(random, Interval)
                assert isinstance(beyond, Interval)
                spread = "no finite z" if z is None else f"median z {z:+.1f}"
                sentences.append(
                    f"{name}, {how}: {effect.mean:+.2f} nats against {random.mean:+.2f} of random "
                    f"neurons, {spread}, {beyond.mean:.0%} of "
                    f"{tables.counted(beyond.n, 'group')} beyond 95 % of their draws."
                )
    return tuple(sentences)


def band(draws: int) -> float:
    """Return the z within which 95 % of further normal draws lie, by Student's t.

    Mean and standard deviation are of few draws: with 20 of them 1.96 would hold 93 %.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, draws - 1)) * float(np.sqrt(1 + 1 / draws))


def _draw(material: Material, comparisons: Sequence[GroupComparison]) -> Drawing:
    relations = [
        r for r in material.relations if any(o.profile.group.relation == r for o in comparisons)
    ]
    figure, axes = panels(2, width=8.0, height=1.2 + 0.22 * len(relations), sharey=True)
    edge = band(material.settings.draws)
    for ax, how in zip(axes, FACTORS, strict=True):
        ax.axvspan(-edge, edge, color=GREY, alpha=0.25, linewidth=0)
        for place, relation in enumerate(relations):
            mine = [o for o in comparisons if o.how == how and o.profile.group.relation == relation]
            colour, marker, _ = TASK[mine[0].profile.group.task]
            z = [o.against.z for o in mine if np.isfinite(o.against.z)]
            spread = np.linspace(-0.2, 0.2, len(z)) if len(z) > 1 else [0.0]
            ax.plot(z, [-place + s for s in spread[: len(z)]], marker, color=colour, markersize=4.5,
                    alpha=0.75, markeredgecolor="white", markeredgewidth=0.3)  # fmt: skip
        ax.set_xscale("symlog", linthresh=5)
        plain_ticks(ax, [-100, -20, -5, 0, 5, 20, 100])
        ax.set_xlabel("z")
        ax.set_title(how)
    axes[0].set_yticks([-i for i in range(len(relations))], [short(r) for r in relations])
    axes[0].set_ylim(0.3 - len(relations), 0.7)
    return figure
