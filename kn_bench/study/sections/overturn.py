"""Rates of overturned answers against shifted probabilities, for every located set (Figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from kn_bench.editing.edit import NoEdit
from kn_bench.localise.groups import Profile
from kn_bench.localise.interventions import answers, lost_share, suppress
from kn_bench.localise.queries import Fitted
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.results import tables
from kn_bench.study.material import Material
from kn_bench.study.page import Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import TASK, legend_below, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

CAUSAL = (
    "A causal model reads what stands before the gap: where the agreeing word follows it (the "
    "paradigms whose determiner varies), its preference is one at the gap alone."
)
PAPER = 0.052
"""The highest overturn rate that the paper finds on BLiMP."""


@dataclass(frozen=True)
class GroupOverturn:
    """One group with its located neurons suppressed.

    All arrays are over the prompts whose rejected answer can be encoded as well.

    Attributes:
        shift: share of the answer's probability that is lost.
        pair: whether the true answer is no longer preferred to the rejected one; nan for prompts
            where it was not preferred before.
        argmax: the same for the argmax of the vocabulary.
        back: whether the true answer is now preferred; nan for prompts where it already was.
    """

    profile: Profile
    shift: Float[np.ndarray, " prompts"]
    pair: Float[np.ndarray, " prompts"]
    argmax: Float[np.ndarray, " prompts"]
    back: Float[np.ndarray, " prompts"]


def run(material: Material) -> Section:
    """Compute this section of the study."""
    outcomes = overturn(material, material.profiles)
    return Section(
        "overturn",
        "Do shifts overturn answers?",
        "The located neurons of each fact and class are suppressed on its own prompts. Beside the "
        "share of the answer's probability that is lost stand the rates at which an answer that "
        "was right is overturned: within the pair (the true against the rejected answer), and by "
        "the argmax of the vocabulary. The paper: at most 5.2 % of BLiMP's items are overturned.",
        _findings(outcomes),
        tables=(_table(material, outcomes),),
        figures=(
            SectionFigure(
                "overturn",
                "Overturn rate against the mean share of probability lost, each point a fact or a "
                "class of pairs with its located neurons suppressed; the dashed line is the "
                "paper's highest rate on BLiMP.",
                lambda: _draw(outcomes),
                "Figure 8",
            ),
        ),
        notes=(CAUSAL,) if material.lm.is_causal else (),
    )


def overturn(material: Material, profiles: Sequence[Profile]) -> list[GroupOverturn]:
    """Suppress the neurons of each profile on its own prompts, batching all profiles together."""
    places: list[tuple[int, int]] = []
    true: list[Fitted] = []
    wrong: list[Fitted] = []
    for number, profile in enumerate(profiles):
        for place, other in enumerate(material.rejected(profile)):
            if other is not None:
                places.append((number, place))
                true.append(profile.encoded[place])
                wrong.append(other)
    edits = [NoEdit(), *(suppress(material.neurons(profile)) for profile in profiles)]
    under = [1 + number for number, _ in places]
    before, after = answers(material.lm, true), answers(material.lm, true, edits, under)
    preferred = before.log_prob > answers(material.lm, wrong).log_prob
    still = after.log_prob > answers(material.lm, wrong, edits, under).log_prob
    lost = lost_share(before.probability, after.probability)
    columns = (
        lost,
        _turned(preferred, ~still),
        _turned(before.right, ~after.right),
        _turned(~preferred, still),
    )
    owner = np.array([number for number, _ in places])
    return [
        GroupOverturn(profile, *(column[owner == number] for column in columns))
        for number, profile in enumerate(profiles)
        if (owner == number).any()
    ]


def _turned(
    counted: Bool[np.ndarray, " prompts"], turned: Bool[np.ndarray, " prompts"]
) -> Float[np.ndarray, " prompts"]:
    return np.where(counted, turned.astype(float), np.nan)


def _mean(
    outcomes: Sequence[GroupOverturn], name: str, bounds: tuple[float, float] | None
) -> Interval:
    values = np.concatenate([getattr(outcome, name) for outcome in outcomes])
    groups = [outcome.profile.group.id for outcome in outcomes for _ in outcome.shift]
    return mean_interval(values, groups, bounds=bounds)


def _table(material: Material, outcomes: Sequence[GroupOverturn]) -> SectionTable:
    rows: list[TableRow] = []
    for relation in material.relations:
        mine = [outcome for outcome in outcomes if outcome.profile.group.relation == relation]
        if not mine:
            continue
        rows.append((relation, mine[0].profile.group.task, *_rates(mine)))
    for task, (_, _, name) in TASK.items():
        mine = [outcome for outcome in outcomes if outcome.profile.group.task == task]
        if mine:
            rows.append((f"all {name}", task, *_rates(mine)))
    return SectionTable(
        "overturn",
        "Located neurons suppressed, on the prompts they were found over: share of probability "
        "lost, rates of overturned answers among those that were right, and of preferences turned "
        "right among those that were wrong; means over prompts, with 95 % intervals over facts or "
        "classes.",
        (
            "relation",
            "task",
            "probability lost",
            "overturned in the pair",
            "turned right",
            "overturned by argmax",
        ),
        tuple(rows),
        left=2,
    )


def _rates(mine: Sequence[GroupOverturn]) -> tuple[Interval, ...]:
    return (
        _mean(mine, "shift", None),
        *(_mean(mine, name, (0.0, 1.0)) for name in ("pair", "back", "argmax")),
    )


def _findings(outcomes: Sequence[GroupOverturn]) -> tuple[str, ...]:
    sentences = []
    for task, (_, _, name) in TASK.items():
        mine = [outcome for outcome in outcomes if outcome.profile.group.task == task]
        if not mine:
            continue
        shift = _mean(mine, "shift", None)
        rates = (
            (what, _mean(mine, key, (0.0, 1.0)))
            for what, key in (("preferences", "pair"), ("argmax answers", "argmax"))
        )
        turned = [f"{rate.mean:.1%} of the {what} (n={rate.n})" for what, rate in rates if rate.n]
        sentences.append(
            f"Suppressing the located neurons takes {tables.share(shift)} of the answer's "
            f"probability from {name} (n={shift.n})"
            + (f"; {' and '.join(turned)} that were right are overturned." if turned else ".")
        )
    return tuple(sentences)


def _draw(outcomes: Sequence[GroupOverturn]) -> Drawing:
    figure, axes = panels(2, width=7.5, height=3.1, sharey=True)
    for ax, name, title in zip(
        axes, ("pair", "argmax"), ("within the pair", "by the argmax"), strict=True
    ):
        for task, (colour, marker, label) in TASK.items():
            mine = [outcome for outcome in outcomes if outcome.profile.group.task == task]
            points = [
                (outcome.shift.mean(), np.nanmean(values))
                for outcome in mine
                if np.isfinite(values := getattr(outcome, name)).any()
            ]
            if points:
                x, y = zip(*points, strict=True)
                ax.plot(x, y, marker, color=colour, label=label, markersize=4.5, alpha=0.6,
                        markeredgecolor="white", markeredgewidth=0.3)  # fmt: skip
        ax.axhline(PAPER, color="black", linestyle="--", linewidth=0.9)
        ax.set_xlabel("share of probability lost")
        ax.set_title(title)
        ax.set_ylim(-0.04, 1.04)
    axes[0].set_ylabel("overturn rate")
    legend_below(figure, axes[0])
    return figure
