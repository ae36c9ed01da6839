"""The figures of the modifiers: change, exact probabilities, and co-occurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kn_bench.results.tables import number
from kn_bench.study.plots import BLUE, GREEN, GREY, HATCHES, RED, legend_below, panels
from kn_bench.study.sections.determiners import label, sort_of
from kn_bench.study.sections.modifiers.co_occurrence import NounCounts
from kn_bench.study.sections.modifiers.modifier_shifts import BLOCKS, Block, Shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from kn_bench.study.sections.modifiers.silencing import SilencedNeuron

COLOUR: dict[Block, str] = {"plural": RED, "singular": BLUE, "neutral": GREEN}


def whole(silenced: SilencedNeuron) -> list[Shift]:
    """Return the modifiers that are one token for the model; all of them if none is."""
    return [s for s in silenced.study.shifts if s.tokens == 1] or list(silenced.study.shifts)


def _called(silenced: SilencedNeuron) -> str:
    return f"{sort_of(silenced.name, silenced.neuron)} neuron {label(silenced.neuron)}"


def draw_change(silenced: Sequence[SilencedNeuron]) -> Drawing:
    figure, axes = panels(1, len(silenced), width=8.0, height=2.7 * len(silenced))
    for ax, neuron in zip(axes, silenced, strict=True):
        places = _places(neuron.study.shifts)
        low, high = np.nan_to_num(np.percentile(neuron.random, [2.5, 97.5], axis=0))
        ax.bar(places, high - low, 0.95, bottom=low, color=GREY, alpha=0.3, label="random neurons")
        for block, hatch in zip(BLOCKS, HATCHES, strict=False):
            mine = [
                (x, s)
                for x, s in zip(places, neuron.study.shifts, strict=True)
                if s.modifier.block == block
            ]
            _bars_of_block(ax, block, hatch, mine)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_ylim(*_limits(neuron))
        ax.set_xticks(
            places, [s.modifier.word for s in neuron.study.shifts], rotation=55, ha="right"
        )
        ax.set_ylabel("change of probability")
        ax.set_title(f"{_called(neuron)} set to 0 (n = {neuron.study.shifts[0].n})")
    legend_below(figure, axes[0])
    return figure


def _limits(silenced: SilencedNeuron) -> tuple[float, float]:
    """Return y limits that fit the one-token words: ratios of longer, rare words are extreme."""
    shifts = whole(silenced)
    ends = [end for s in shifts for end in (s.low, s.high, s.change) if np.isfinite(end)]
    room = 0.2 * (max(ends) - min(ends)) + 0.02
    return min(ends) - room, max(ends) + room


def _bars_of_block(
    ax: Axes, block: Block, hatch: str, placed: Sequence[tuple[float, Shift]]
) -> None:
    x = [place for place, _ in placed]
    y = [s.change for _, s in placed]
    arms = np.array([[s.change - s.low, s.high - s.change] for _, s in placed]).T.clip(min=0)
    drawn = ax.bar(x, y, 0.7, color=COLOUR[block], hatch=hatch, edgecolor="black", linewidth=0.4,
                   label=block)  # fmt: skip
    for patch, (_, s) in zip(drawn, placed, strict=True):
        patch.set_alpha(0.9 if s.tokens == 1 else 0.3)
    if placed:
        ax.errorbar(x, y, yerr=arms, fmt="none", ecolor="black", elinewidth=0.9, capsize=1.5)
    for place, s in placed:
        if s.p_holm < 0.05:
            end = s.low if s.change < 0 else s.high
            ax.annotate("*", (place, end), xytext=(0, -9 if s.change < 0 else 0),
                        textcoords="offset points", ha="center", fontsize=9,
                        annotation_clip=True)  # fmt: skip


def _places(shifts: Sequence[Shift]) -> list[float]:
    """Place modifiers side by side, with a gap between blocks."""
    places, at, before = [], 0.0, None
    for shift in shifts:
        block = shift.modifier.block
        at += 1.6 if before not in (None, block) else 1.0
        places.append(at)
        before = block
    return places


def draw_probabilities(silenced: Sequence[SilencedNeuron]) -> Drawing:
    figure, axes = panels(len(silenced), width=8.0, height=3.6, sharey=True)
    for ax, neuron in zip(axes, silenced, strict=True):
        shifts = whole(neuron)
        places = [-x for x in _places(shifts)]
        for place, s in zip(places, shifts, strict=True):
            colour = COLOUR[s.modifier.block]
            ax.plot([s.before, s.after], [place, place], color=colour, linewidth=1.2)
            ax.plot(s.before, place, "o", color=colour, markerfacecolor="white", markersize=5)
            ax.plot(s.after, place, "o", color=colour, markersize=5)
        ax.set_xscale("log")
        ax.set_yticks(places, [s.modifier.word for s in shifts])
        ax.set_xlabel("mean probability")
        ax.set_title(_called(neuron))
    return figure


def compared(silenced: SilencedNeuron, counted: Sequence[NounCounts]) -> list[tuple[float, Shift]]:
    """Return the modifiers that the corpus has before a known noun, with their log odds."""
    known = {counts.word: counts for counts in counted if counts.nouns}
    return [(known[s.modifier.word].bias, s) for s in whole(silenced) if s.modifier.word in known]


def draw_co_occurrence(
    silenced: Sequence[SilencedNeuron], counted: Sequence[NounCounts]
) -> Drawing:
    figure, axes = panels(len(silenced), width=8.0, height=3.4)
    for ax, neuron in zip(axes, silenced, strict=True):
        shifts = compared(neuron, counted)
        for block, marker in zip(BLOCKS, ("s", "o", "^"), strict=True):
            mine = [
                (bias, s.change, s.modifier.word) for bias, s in shifts if s.modifier.block == block
            ]
            if mine:
                x, y, _ = zip(*mine, strict=True)
                ax.plot(x, y, marker, color=COLOUR[block], label=block, markersize=5)
            for at_x, at_y, word in mine:
                ax.annotate(word, (at_x, at_y), xytext=(3, 3), textcoords="offset points",
                            fontsize=6.5)  # fmt: skip
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xlabel("log odds of a plural noun after it")
        ax.set_ylabel("change of probability")
        a, title = neuron.association, _called(neuron)
        if a and np.isfinite(a.spearman):
            title += (
                f": rank r = {a.spearman:.2f},\n"
                f"within blocks {number(a.partial)} (p = {number(a.partial_p)})"
            )
        ax.set_title(title)
    labelled = (ax for ax in axes if ax.get_legend_handles_labels()[0])
    next(labelled, axes[0]).legend()
    return figure
