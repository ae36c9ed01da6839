"""Figures of sequences: what is retained, and what the model can still do, by number of edits.

One figure a protocol, model and task, a line a method, as the board names it. Where there are
several sequences the line is their mean, with a 95 % interval over sequences; the dotted line is
the unedited model, one a run where they differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kn_bench.cases.sampling import slug as plain
from kn_bench.measure.protocols import checkpoints
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.results.beside import shown
from kn_bench.results.loading import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("checkpoint_retained", "edits still retained", "linear"),
    ("checkpoint_known", "known facts still answered", "linear"),
    ("checkpoint_blimp", "BLiMP accuracy", "linear"),
    ("checkpoint_perplexity", "perplexity", "log"),
    ("checkpoint_kl", "KL at neutral prompts (nats)", "linear"),
    ("growth", "|dW| / |W|", "linear"),
)
"""Column, title and scale of each panel."""
SHARES = ("checkpoint_retained", "checkpoint_known", "checkpoint_blimp")
"""The columns that go from 0 to 1."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
"""Of Okabe and Ito (2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


NOT_FINITE = 1e29
"""What a checkpoint states for a perplexity that is not finite lies above it."""


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Write the figures of all sequences into ``folder``, each as SVG and as PNG.

    Raises:
        OSError: when they cannot be written.
    """
    if runs.curves.empty:
        return []
    paths: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for protocol in dict.fromkeys(runs.curves["protocol"]):
        curves = curves_of(runs, protocol)
        for (model, task), group in curves.groupby(["model", "task"], sort=False):
            name = f"curves-{slug(protocol)}-{plain(str(model))}-{task}"
            title = f"{protocol} on {model}, {task}s"
            paths += _written(group, title, folder / name)
    return paths


def _written(curves: pd.DataFrame, title: str, path: Path) -> Iterator[Path]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "kn_bench", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title)
        axes = figure.subplots(2, 3).flat
        for panel, (column, label, scale) in zip(axes, PANELS, strict=True):
            _panel(panel, curves, column, label, scale)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
        for suffix in (".svg", ".png"):
            target = path.with_name(path.name + suffix)
            # no date in the file: the same curves give the same bytes
            about: dict[str, Any] = {"Date": None} if suffix == ".svg" else {}
            figure.savefig(target, dpi=150, metadata=about)
            yield target


def _panel(panel: Axes, curves: pd.DataFrame, column: str, label: str, scale: Any) -> None:
    from matplotlib.ticker import LogFormatter, LogFormatterMathtext, LogLocator

    names = np.array([*map(shown, curves["method"], curves["variant"])], dtype=object)
    for number, (name, group) in enumerate(curves.groupby(names, sort=False)):
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        # a step whose requests were all refused has made no edit, and no place on a log scale
        points = _points(group[group["checkpoint_edits"] > 0], column)
        # what is not finite is off every scale: shown by its absence
        edits, mean, low, high = points[:, np.isfinite(points[1])]
        panel.plot(edits, mean, label=str(name), markersize=4, linewidth=1.3, **style)
        if np.isfinite(low).any():
            panel.fill_between(edits, low, high, color=style["color"], alpha=0.2, linewidth=0)
    unedited = curves[curves["step"] == 0].groupby("run")[column].mean().dropna()
    for before in unedited.unique():
        panel.axhline(float(before), color="#8C8C8C", linestyle=":", linewidth=1)
    panel.set_xscale("log")
    panel.set_yscale(scale)
    most = int(curves["checkpoint_edits"].max())
    ticks = [*checkpoints(most)]
    panel.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=90 if len(ticks) > 8 else 0)
    panel.xaxis.minorticks_off()
    if scale == "log":
        # powers of ten alone would leave a short axis without a tick; with 2 and 5 as well,
        # matplotlib leaves an axis of many decades without one
        low, high = panel.get_ylim()
        wide = high > 1e4 * low
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        written = LogFormatterMathtext if wide else LogFormatter
        panel.yaxis.set_major_formatter(written(minor_thresholds=(np.inf, np.inf)))
        panel.yaxis.minorticks_off()
    if curves[column].isna().all():
        reason = "every paradigm is edited" if column == "checkpoint_blimp" else "not asked"
        panel.text(0.5, 0.5, reason, transform=panel.transAxes, ha="center", color="#595959")
    panel.set_xlabel("edits")
    panel.set_title(label, fontsize=10)
    if column in SHARES:
        panel.set_ylim(-0.03, 1.03)


def _points(curves: pd.DataFrame, column: str) -> np.ndarray:
    """Return edits, mean, and the interval's ends, at every checkpoint."""
    rows = []
    for edits, group in curves.groupby("checkpoint_edits"):
        values = group[column].dropna()
        values = values.where(values < NOT_FINITE, np.inf)
        interval = over_sequences(values, (0.0, 1.0) if column in SHARES else None)
        rows.append((float(str(edits)), interval.mean, interval.low, interval.high))
    return np.array(rows, dtype=float).reshape(-1, 4).T


def slug(protocol: str) -> str:
    """Return ``sequence_100_5`` of ``sequence:100/5``."""
    return protocol.replace(":", "_").replace("/", "_")


def curves_of(runs: Runs, protocol: str) -> pd.DataFrame:
    """Return the checkpoints of one protocol, with the norm growth of the matrix that grew most."""
    curves = runs.curves
    return with_growth(curves[curves["protocol"] == protocol]) if len(curves) else curves


def with_growth(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the checkpoints with a column ``growth``: of the matrix that grew most."""
    growth = [max((n["relative"] for n in norms), default=0.0) for norms in
              curves["checkpoint_norms"]]  # fmt: skip
    return curves.assign(growth=growth)


def curve_rows(runs: Runs) -> list[dict[str, Any]]:
    """Return the checkpoints for the page, a row each; none in logs that have no such rows."""
    if runs.curves.empty:
        return []
    frame = with_growth(runs.curves)
    names = [
        name for name in frame.columns
        if name in ("model", "method", "variant", "protocol", "sequence", "step", "task", "growth")
        or (name.startswith("checkpoint_") and name != "checkpoint_norms")
    ]  # fmt: skip
    rows = frame[names].rename(columns=lambda name: name.removeprefix("checkpoint_"))
    rows = rows.loc[:, ~rows.columns.duplicated()]
    return [
        {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
        for row in rows.to_dict("records")
    ]


def over_sequences(values: pd.Series[float], bounds: tuple[float, float] | None) -> Interval:
    """Return the mean over sequences, with an interval where there are several.

    Args:
        bounds: range of the values, or None if it is unbounded.
    """
    clusters = [str(i) for i in range(len(values))]
    # without bounds the interval of a single sequence is NaN
    bounds = bounds if len(values) > 1 else None
    return mean_interval(values.to_numpy(float), clusters, bounds=bounds)
