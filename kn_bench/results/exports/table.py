"""All figures as one long table, a row a figure: CSV for spreadsheets, Parquet for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kn_bench.cases.case import CRITERIA
from kn_bench.measure.statistics import Interval
from kn_bench.results import escaping
from kn_bench.results.board import OVERTURN, STRATA, SYMMETRY, Line, board
from kn_bench.results.files import atomically, write_text
from kn_bench.results.frames import READINGS
from kn_bench.results.further import further_tables
from kn_bench.results.loading import Runs
from kn_bench.results.shown import runs_behind

COLUMNS = (
    "task", "model", "method", "protocol", "asked", "run", "rank", "figure", "part", "mean", "low",
    "high", "n", "left_out", "not_applicable", "control_mean", "control_low", "control_high",
    "control_n", "p_holm", "beats_control",
)  # fmt: skip
NOTHING = (0, 0, math.nan, math.nan, math.nan, 0, math.nan, None)
"""The columns from ``left_out`` on of a figure that has no control."""


def figures(runs: Runs) -> pd.DataFrame:
    """Return a row a figure of the board, in ``COLUMNS``; ``part`` is "" for the figure itself."""
    behind = runs_behind(runs)
    lines = board(runs)
    rows = [
        (*line.name[:5], behind[tuple(line.name)], line.rank, *row)
        for line in lines
        for row in _of_line(line)
    ]
    ranks = {line.name: line.rank for line in lines}
    for table in further_tables(runs):
        for row in table.rows:
            about = (*row.name[:5], behind.get(tuple(row.name), ""), ranks.get(row.name, 0))
            for part, value in zip(table.parts, row.figures, strict=True):
                shown = "" if part == "all" else part
                rows.append((*about, table.figure, shown, *value, *NOTHING))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_line(line: Line) -> Iterator[tuple[object, ...]]:
    for criterion in CRITERIA:
        f = line.criteria[criterion]
        beats = None if math.isnan(f.p) else f.beats_control
        yield (criterion, "", *f.interval, f.out, f.not_applicable, *f.control, f.p, beats)
    for name, part, value in _further(line):
        yield (name, part, *value, *NOTHING)
    seconds = Interval(line.seconds, math.nan, math.nan, 0)
    yield ("seconds", "", *seconds, *NOTHING)


def _further(line: Line) -> Iterator[tuple[str, str, Interval]]:
    yield from (
        ("S", "", line.s),
        ("K", "", line.k),
        ("shift", "", line.shift),
        ("KL", "", line.kl),
    )
    for (criterion, what, known), value in zip(STRATA, line.strata, strict=True):
        yield criterion, f"{what.replace('_', ' ')}: {'yes' if known else 'no'}", value
    for part, value in zip(SYMMETRY, line.symmetry, strict=True):
        yield "symmetry", f"outcome {part}", value
    for part, value in zip(OVERTURN, line.overturn, strict=True):
        yield "overturn", f"outcome {part}", value
    for kind, value in line.neighbours.items():
        yield "locality", f"neighbour {kind}", value
    for criterion, values in line.readings.items():
        for part, value in zip(READINGS, values, strict=True):
            yield criterion, f"reading {part}", value


def write_csv(runs: Runs, target: Path) -> None:
    """Write the figures as CSV; no cell is a formula to a spreadsheet.

    Raises:
        StoreError: when it cannot be written.
    """
    frame = figures(runs)
    texts = frame.select_dtypes(exclude="number").columns.difference(["beats_control"])
    for column in texts:
        frame[column] = frame[column].map(lambda cell: escaping.csv(str(cell)))
    write_text(target, frame.to_csv(index=False, lineterminator="\n"))


def write_parquet(runs: Runs, target: Path) -> None:
    """Write the figures as Parquet.

    Raises:
        StoreError: when it cannot be written.
    """
    frame = figures(runs).astype({"beats_control": "boolean"})
    with atomically(target) as file:
        file.write(frame.to_parquet(index=False))
