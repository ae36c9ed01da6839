"""Control 2: how many neurons hold an answer?

Neurons are suppressed from the highest attribution down, and the remaining probability, rank and
accuracy are measured. A mean fall by half can mean that half of the facts are lost, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from kn_bench.localise.groups import Profile
from kn_bench.localise.interventions import crossed, suppress
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.seeding import seeded
from kn_bench.study.material import Material
from kn_bench.study.page import Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import TASK, panels, whiskers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PROMPTS = 8
"""Prompts per group."""


DOSES = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)


@dataclass(frozen=True)
class DoseResponse:
    """What is left after suppressing the first k neurons of an order.

    Attributes:
        doses: the values of k.
        probability: mean P(answer).
        accuracy: share of prompts whose answer is the argmax, every token of it.
        rank: mean rank of the answer's first token, 0 for the argmax.
    """

    doses: tuple[int, ...]
    probability: tuple[float, ...]
    accuracy: tuple[float, ...]
    rank: tuple[float, ...]

    def needed(self, share: float) -> int | None:
        """Return the least dose that causes this share of the greatest loss of probability.

        Return None if no dose causes a loss.
        """
        lost = self.probability[0] - np.asarray(self.probability)
        if lost.max() <= 0:
            return None
        return self.doses[int(np.argmax(lost >= share * lost.max()))]


def dose_response(
    lm: LanguageModel,
    queries: Sequence[Fitted],
    order: Sequence[Neuron],
    *,
    doses: Sequence[int] = DOSES,
) -> DoseResponse:
    """Suppress the first k neurons of ``order`` for each dose k.

    Args:
        doses: 0 first; doses greater than the length of ``order`` are left out.

    Raises:
        ValueError: if the first dose is not 0.
    """
    if not doses or doses[0] != 0:
        raise ValueError(f"doses {list(doses)}: expected 0, the unedited model, as the first")
    taken = [k for k in doses if k <= len(order)]
    left = crossed(lm, queries, [suppress(order[:k]) for k in taken])
    return DoseResponse(
        tuple(taken), _means(left.probability), _means(left.right), _means(left.rank)
    )


def _means(values: Float[np.ndarray, "doses queries"]) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=float).mean(1).tolist())


@dataclass(frozen=True)
class GroupResponses:
    """A group's neurons suppressed in the order of attribution, and in a random order."""

    profile: Profile
    ranked: DoseResponse
    random: DoseResponse


def run(material: Material) -> Section:
    """Compute this section of the study."""
    curves = [_dosed(material, profile) for profile in material.profiles]
    return Section(
        "dose",
        "Control 2: how many neurons hold an answer?",
        "Neurons are suppressed from the highest mean attribution down, and what is left is read "
        "off: the answer's probability, whether it is still given, and the rank of its first "
        "token. A random order over all neurons is the control. Needed for half (90 %) is the "
        "least dose that takes half (90 %) of the greatest loss.",
        _findings(curves),
        tables=(_needed(material, curves), _left(curves)),
        figures=(
            SectionFigure(
                "dose",
                "Share of the answer's probability and of right answers that is left after "
                "suppressing the first k neurons by attribution (filled), and k random ones "
                "(open), with 95 % intervals over facts or classes.",
                lambda: _draw(curves),
            ),
        ),
    )


def _dosed(material: Material, profile: Profile) -> GroupResponses:
    generator = seeded(material.settings.seed, "dose", profile.group.id)
    shape = profile.scores.shape[1:]
    places = torch.randperm(shape.numel(), generator=generator)[: len(profile.ranked)].tolist()
    shuffled = [Neuron(*divmod(place, shape[1])) for place in places]
    doses = [k for k in DOSES if k <= len(profile.ranked)]
    queries = profile.encoded[:PROMPTS]
    return GroupResponses(
        profile,
        *(dose_response(material.lm, queries, o, doses=doses)
          for o in (profile.ranked, shuffled)),
    )  # fmt: skip


def _of(curves: Sequence[GroupResponses], task: str) -> list[GroupResponses]:
    return [curve for curve in curves if curve.profile.group.task == task]


def _curve(
    curves: Sequence[GroupResponses], name: str, *, ranked: bool, relative: bool
) -> list[Interval]:
    rows: list[Float[np.ndarray, " doses"]] = []
    for curve in curves:
        values = np.array(getattr(curve.ranked if ranked else curve.random, name))
        rows.append(values / values[0] if relative and values[0] else values)
    stacked = np.stack(rows)
    names = [curve.profile.group.id for curve in curves]
    bounds = (0.0, 1.0) if name == "accuracy" else None
    return [mean_interval(stacked[:, i], names, bounds=bounds) for i in range(stacked.shape[1])]


def _doses_needed(curves: Sequence[GroupResponses], share: float) -> Interval:
    needed = [curve.ranked.needed(share) for curve in curves]
    names = [curve.profile.group.id for curve in curves]
    return mean_interval([np.nan if n is None else n for n in needed], names, bounds=None)


def _needed(material: Material, curves: Sequence[GroupResponses]) -> SectionTable:
    rows: list[TableRow] = []
    groups = [
        (relation, [curve for curve in curves if curve.profile.group.relation == relation])
        for relation in material.relations
    ]
    groups += [(f"all {label}", _of(curves, task)) for task, (_, _, label) in TASK.items()]
    for name, members in groups:
        if members:
            five = DOSES.index(5)
            rows.append(
                (
                    name,
                    _doses_needed(members, 0.5),
                    _doses_needed(members, 0.9),
                    _curve(members, "probability", ranked=True, relative=True)[five],
                    _curve(members, "accuracy", ranked=True, relative=False)[0],
                    _curve(members, "accuracy", ranked=True, relative=False)[five],
                    _curve(members, "rank", ranked=True, relative=False)[five],
                )
            )
    return SectionTable(
        "needed",
        "Neurons needed for half and for 90 % of the loss, and what is left after the first five: "
        "share of probability, accuracy before and after, and the mean rank of the answer's first "
        "token (0 is the argmax).",
        (
            "relation",
            "for half",
            "for 90 %",
            "probability left",
            "accuracy before",
            "after five",
            "first token's rank after five",
        ),
        tuple(rows),
        shown=50,
    )


def _left(curves: Sequence[GroupResponses]) -> SectionTable:
    rows: list[TableRow] = []
    for task, (_, _, name) in TASK.items():
        members = _of(curves, task)
        for ranked in (True, False):
            if members:
                columns = [
                    _curve(members, key, ranked=ranked, relative=key == "probability")
                    for key in ("probability", "accuracy", "rank")
                ]
                order = "attribution" if ranked else "random"
                doses = members[0].ranked.doses
                rows += [
                    (name, order, k, *values) for k, *values in zip(doses, *columns, strict=True)
                ]
    return SectionTable(
        "left",
        "What is left after the first k neurons of an order: share of probability, accuracy, and "
        "the mean rank of the answer's first token.",
        ("task", "order", "k", "probability", "accuracy", "first token's rank"),
        tuple(rows),
        left=2,
        shown=0,
    )


def _findings(curves: Sequence[GroupResponses]) -> tuple[str, ...]:
    sentences = []
    for task, (_, _, name) in TASK.items():
        members = _of(curves, task)
        if members:
            half, most = _doses_needed(members, 0.5), _doses_needed(members, 0.9)
            five = _curve(members, "probability", ranked=True, relative=True)[DOSES.index(5)]
            right = _curve(members, "accuracy", ranked=True, relative=False)
            needed = (
                f"half of the loss takes {half.mean:.1f} neurons, 90 % takes {most.mean:.1f}"
                if half.n
                else "no dose lowers the probability"
            )
            sentences.append(
                f"{name}: {needed}; after the first five {five.mean:.0%} of the probability is "
                f"left and {right[DOSES.index(5)].mean:.0%} of the answers are still right "
                f"(before: {right[0].mean:.0%})."
            )
    return tuple(sentences)


def _draw(curves: Sequence[GroupResponses]) -> Drawing:
    figure, axes = panels(2, width=7.5, height=3.0, sharex=True)
    for ax, name, label in zip(
        axes, ("probability", "accuracy"), ("probability left", "answers still right"), strict=True
    ):
        for task, (colour, marker, task_name) in TASK.items():
            members = _of(curves, task)
            if not members:
                continue
            places = [k + 0.5 if k == 0 else k for k in members[0].ranked.doses]
            ranked = _curve(members, name, ranked=True, relative=name == "probability")
            random = _curve(members, name, ranked=False, relative=name == "probability")
            whiskers(ax, places, ranked, colour=colour, marker=marker, label=task_name, line=True)
            means = [v.mean for v in random]
            ax.plot(places, means, linestyle=":", marker=marker, color=colour, markersize=4,
                    markerfacecolor="white", label=f"{task_name}, random")  # fmt: skip
        ax.set_xscale("log")
        ticks = [0.5, 1, 2, 5, 13, 34, 89, 233]
        ax.set_xticks(ticks, ["0", *(str(t) for t in ticks[1:])])
        ax.minorticks_off()
        ax.set_xlabel("neurons suppressed")
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
    axes[0].legend()
    return figure
