"""A common style for figures: safe for colour-blind readers, distinct in shape, readable in print.

Colours are those of Okabe and Ito (2008); maps are cividis (one-sided) and PuOr (two-sided). No
global state of matplotlib is read or changed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kn_bench.cases.case import Task
from kn_bench.measure.statistics import Interval
from kn_bench.results.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#8C8C8C"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LABELS = 12
"""As many numbers find room below a panel."""
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "++")
TASK: dict[Task, tuple[str, str, str]] = {
    "fact": (BLUE, "o", "facts"),
    "pair": (RED, "s", "syntax"),
}
"""Colour, marker and label of each task."""
MARKS: dict[Task, str] = {"fact": "blue circles", "pair": "red squares"}
"""How captions describe the marks of each task."""

SHORTER = (
    ("determiner_noun_agreement", "det-noun"),
    ("subject_verb_agreement", "subj-verb"),
    ("distractor_agreement", "distractor"),
    ("with_adjective", "adj"),
    ("with_adj", "adj"),
    ("irregular_plural", "irreg"),
    ("regular_plural", "reg"),
    ("irregular", "irreg"),
    ("_agreement", ""),
    ("relational_noun", "noun"),
    ("relative_clause", "clause"),
)
"""Parts of paradigm names and their abbreviations on axes, applied in this order."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "path",
    "svg.hashsalt": "kn_bench",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class RenderedFigure:
    """A figure rendered in two formats."""

    svg: bytes
    png: bytes


def render(draw: Callable[[], Figure]) -> RenderedFigure:
    """Draw a figure in this module's style."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with mpl.rc_context(STYLE):
        figure = draw()
        FigureCanvasAgg(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        # without the date: the same figure is the same file
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return RenderedFigure(svg.getvalue(), png.getvalue())


def panels(
    columns: int, rows: int = 1, *, width: float = 7.0, height: float = 2.8, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``width`` x ``height`` inches and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def whiskers(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[Interval],
    *,
    colour: str = BLUE,
    marker: str = "o",
    label: str | None = None,
    horizontal: bool = False,
    line: bool = False,
) -> None:
    """Draw means with their intervals; leave out those without a mean."""
    finite = [(place, v) for place, v in zip(places, values, strict=True) if np.isfinite(v.mean)]
    if not finite:
        return
    x = [place for place, _ in finite]
    y = [value.mean for _, value in finite]
    ends = _arms([value for _, value in finite])
    style: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "linestyle": "-" if line else "none",
        "markersize": 5,
        "capsize": 2.5,
        "elinewidth": 1.1,
        "label": label,
    }
    if horizontal:
        axes.errorbar(y, x, xerr=ends, **style)
    else:
        axes.errorbar(x, y, yerr=ends, **style)


def bars(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[Interval],
    *,
    colour: str = BLUE,
    hatch: str = "",
    width: float = 0.8,
    label: str | None = None,
) -> None:
    """Draw bars with intervals, hatched so that they are distinct without colour."""
    heights = [value.mean if np.isfinite(value.mean) else 0.0 for value in values]
    axes.bar(
        places,
        heights,
        width,
        color=colour,
        alpha=0.85,
        hatch=hatch,
        edgecolor="white" if not hatch else "black",
        linewidth=0.5,
        label=label,
    )
    axes.errorbar(
        places, heights, yerr=_arms(values), fmt="none", ecolor=BLACK, elinewidth=1, capsize=2
    )


def _arms(values: Sequence[Interval]) -> Float[np.ndarray, "2 n"]:
    ends = np.array([[v.mean - v.low, v.high - v.mean] for v in values], dtype=float).T
    # the bootstrap's interval of a ratio may lie to one side of it
    arms: Float[np.ndarray, "2 n"] = np.nan_to_num(ends, posinf=0.0, neginf=0.0).clip(min=0)
    return arms


def ticked(n: int) -> list[int]:
    """Return the places from 0 to below ``n`` that get a label: all, or every few of many."""
    return list(range(0, n, math.ceil(n / LABELS) or 1))


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "rows columns"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    two_sided: bool = False,
    limit: float | None = None,
    label: str = "",
    numbers: int | None = None,
    rotate: float = 0.0,
) -> None:
    """Draw a matrix in colours with a colour bar; ``numbers`` is the digits shown in each cell."""
    top = limit or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="PuOr_r" if two_sided else "cividis",
        vmin=-top if two_sided else min(0.0, float(np.nanmin(values, initial=0.0))),
        vmax=top,
        aspect="auto",
        interpolation="nearest",
    )
    axes.grid(visible=False)
    slanted: dict[str, Any] = {"rotation": rotate, "ha": "right", "rotation_mode": "anchor"}
    places = range(len(columns)) if rotate else ticked(len(columns))
    labels = [columns[place] for place in places]
    axes.set_xticks(places, labels, **(slanted if rotate else {}))
    axes.set_yticks(range(len(rows)), rows)
    if axes.figure:
        axes.figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    if numbers is not None:
        _numbers(axes, values, numbers, top, two_sided)


def _numbers(
    axes: Axes, values: Float[np.ndarray, "rows columns"], digits: int, top: float, two_sided: bool
) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            # white on the dark ends of the map, black elsewhere
            dark = abs(value) > 0.65 * top if two_sided else value < 0.55 * top
            axes.text(
                column,
                row,
                number(value, digits),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )


def short(relation: str) -> str:
    """Abbreviate a paradigm's name for an axis, as in ``det-noun adj irreg 2``."""
    for long, brief in SHORTER:
        relation = relation.replace(long, brief)
    return relation.replace("_", " ")


def plain_ticks(axes: Axes, candidates: Sequence[float]) -> None:
    """Label a logarithmic x axis with plain numbers, at the visible ones of ``candidates``."""
    low, high = axes.get_xlim()
    shown = [value for value in candidates if low <= value <= high]
    axes.set_xticks(shown, [f"{value:g}".replace("-", "\u2212") for value in shown])
    axes.minorticks_off()


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Draw one legend under all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
