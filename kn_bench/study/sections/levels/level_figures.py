"""The figures of the levels of localisation: by relation, by attribution, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.study.material import METHODS, Material
from kn_bench.study.plots import (
    BLACK,
    HATCHES,
    TASK,
    bars,
    legend_below,
    panels,
    short,
    ticked,
    whiskers,
)
from kn_bench.study.sections.levels.group_levels import MEASURES, GroupLevels, averaged, null_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

TICKS = ("integrated\ngradients", "gradient x\nactivation", "direct\nablation", "activation")


def draw_levels(material: Material, measured: Sequence[GroupLevels]) -> Drawing:
    shown = ("n_neurons", "tau", "r1_squared", "attribution_share")
    relations = [
        r
        for r in material.relations
        if any(levels.profile.group.relation == r for levels in measured)
    ]
    figure, axes = panels(4, width=9.0, height=1.2 + 0.22 * len(relations), sharey=True)
    places = list(range(len(relations)))[::-1]
    for ax, name in zip(axes, shown, strict=True):
        for place, relation in zip(places, relations, strict=True):
            mine = [levels for levels in measured if levels.profile.group.relation == relation]
            colour, marker, _ = TASK[mine[0].profile.group.task]
            whiskers(
                ax, [place], [averaged(mine, name)], colour=colour, marker=marker, horizontal=True
            )
            null = null_of(mine, name)
            ax.plot([null, null], [place - 0.35, place + 0.35], color=BLACK, linewidth=1.6)
        ax.set_xlabel(MEASURES[name])
    axes[0].set_yticks(places, [short(r) for r in relations])
    axes[0].set_ylim(-0.7, len(relations) - 0.3)
    axes[2].set_xlim(0, 1.02)
    return figure


def draw_methods(compared: Sequence[GroupLevels]) -> Drawing:
    figure, axes = panels(3, width=9.0, height=2.9)
    shown = ("r1_squared", "attribution_share", "participation_ratio")
    for ax, name in zip(axes, shown, strict=True):
        for shift, (task, (colour, marker, label)) in zip((-0.12, 0.12), TASK.items(), strict=True):
            groups = [
                [m for m in compared if m.method == method and m.profile.group.task == task]
                for method in METHODS
            ]
            places = [i + shift for i, group in enumerate(groups) if group]
            values = [averaged(group, name) for group in groups if group]
            whiskers(ax, places, values, colour=colour, marker=marker, label=label)
        ax.set_xticks(range(len(METHODS)), TICKS, fontsize=7)
        ax.set_ylabel(MEASURES[name])
    legend_below(figure, axes[0])
    return figure


def draw_layers(material: Material, measured: Sequence[GroupLevels]) -> Drawing:
    figure, axes = panels(2, width=7.5, height=2.7, sharey=True)
    layers = np.arange(material.lm.n_layers)
    for ax, capped in zip(axes, (True, False), strict=True):
        for shift, hatch, (task, (colour, _, label)) in zip(
            (-0.2, 0.2), HATCHES, TASK.items(), strict=False
        ):
            mine = [levels for levels in measured if levels.profile.group.task == task]
            if mine:
                shares = layer_shares(mine, capped=capped)
                bars(ax, (layers + shift).tolist(), shares, colour=colour, hatch=hatch, width=0.4,
                     label=label)  # fmt: skip
        ax.axhline(1 / len(layers), color=BLACK, linewidth=1.2)
        ax.set_xticks(ticked(len(layers)))
        ax.set_title("2 to 5 neurons" if capped else "no cap")
        ax.set_xlabel("layer")
    axes[0].set_ylabel("share of located neurons")
    axes[0].legend()
    return figure


def layer_shares(measured: Sequence[GroupLevels], *, capped: bool = True) -> list[Interval]:
    """Return the mean share of neurons in each layer, over the groups that have neurons."""
    localised = [levels.capped if capped else levels.uncapped for levels in measured]
    counts = np.array([[layer.value for layer in group.layers] for group in localised])
    has_neurons = counts.sum(1) > 0
    if not has_neurons.any():
        return [Interval(np.nan, np.nan, np.nan, 0)] * counts.shape[1]
    shares = counts[has_neurons] / counts[has_neurons].sum(1, keepdims=True)
    names = [
        levels.profile.group.id for levels, kept in zip(measured, has_neurons, strict=True) if kept
    ]
    return [mean_interval(shares[:, layer], names) for layer in range(counts.shape[1])]
