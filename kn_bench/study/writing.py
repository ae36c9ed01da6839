"""Sections on disk: tables as CSV, figures as SVG and PNG, and text as JSON."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kn_bench.measure.statistics import Interval
from kn_bench.results import tables
from kn_bench.results.codec import FormatError, decode, encode
from kn_bench.results.files import atomically, write_text
from kn_bench.study.page import Section, SectionTable, Value
from kn_bench.study.plots import render

WORDS = "section.json"


@dataclass(frozen=True)
class WrittenTable:
    """A table as the page shows it, with cells as text."""

    name: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    omitted: int

    @property
    def described(self) -> str:
        """The caption, and how many rows the CSV file alone has."""
        if not self.omitted:
            return self.caption
        return f"{self.caption} {tables.counted(self.omitted, 'more row')}: see {self.name}.csv."


@dataclass(frozen=True)
class WrittenFigure:
    """A figure whose files lie in the section's folder."""

    name: str
    caption: str
    paper: str


@dataclass(frozen=True)
class Origin:
    """What all sections of one run are computed from; empty where it was not yet recorded.

    Attributes:
        model: name of the model.
        weights: its content hash.
        basis: hash of the cases, the settings and the code that all sections share.
    """

    model: str = ""
    weights: str = ""
    basis: str = ""


@dataclass(frozen=True)
class WrittenSection:
    """A section that was written to disk.

    Attributes:
        key: hash of all it depends on: model, cases, settings, code.
        seconds: time it took to compute.
        origin: what it shares with the other sections of its run.
    """

    key: str
    id: str
    title: str
    question: str
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    tables: tuple[WrittenTable, ...]
    figures: tuple[WrittenFigure, ...]
    seconds: float
    origin: Origin = Origin()


def write_section(
    section: Section, folder: Path, key: str, seconds: float, origin: Origin = Origin()
) -> WrittenSection:
    """Write ``section`` to ``folder``; its JSON comes last and marks the rest as complete."""
    for table in section.tables:
        write_text(folder / f"{table.name}.csv", csv_text(table))
    for figure in section.figures:
        drawn = render(figure.draw)
        for suffix, content in (("svg", drawn.svg), ("png", drawn.png)):
            with atomically(folder / f"{figure.name}.{suffix}") as file:
                file.write(content)
    written = WrittenSection(
        key,
        section.id,
        section.title,
        section.question,
        section.findings,
        section.notes,
        tuple(_table(table) for table in section.tables),
        tuple(WrittenFigure(f.name, f.caption, f.paper) for f in section.figures),
        round(seconds, 1),
        origin,
    )
    write_text(folder / WORDS, encode(written, indent=1) + "\n")
    return written


def read_section(folder: Path) -> WrittenSection | None:
    """Read what :func:`write_section` wrote to ``folder``; None if the page cannot show it."""
    try:
        written = decode(WrittenSection, (folder / WORDS).read_text(encoding="utf-8"))
    except (OSError, FormatError):
        return None
    files = [folder / f"{figure.name}.svg" for figure in written.figures]
    return written if all(path.is_file() for path in files) else None


def is_whole(written: WrittenSection, folder: Path) -> bool:
    """Return whether ``folder`` holds all files of a section."""
    files = [f"{table.name}.csv" for table in written.tables]
    files += [f"{f.name}.{ending}" for f in written.figures for ending in ("svg", "png")]
    return all((folder / name).is_file() for name in files)


def data_uri(path: Path) -> str:
    """Return an SVG as a data URI for ``img``, so that ids of several figures cannot collide."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


# --- tables ------------------------------------------------------------------------------------


def cell(value: Value, digits: int = 2) -> str:
    """Format a value as text."""
    if isinstance(value, Interval):
        return tables.interval(value, digits)
    if value is None:
        return tables.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # two significant digits for small numbers: a p of 0.00 says nothing
        small = value and abs(value) < 10.0**-digits / 2
        return f"{value:.1e}" if small else tables.number(value, digits)
    return str(value)


def csv_text(table: SectionTable) -> str:
    """Return all rows of ``table`` as CSV; an interval takes four columns: mean, low, high, n."""
    wide = [
        any(isinstance(row[i], Interval) for row in table.rows) for i in range(len(table.headers))
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = zip(table.headers, wide, strict=True)
    ends = ("", " low", " high", " n")
    writer.writerow([name + end for name, w in names for end in (ends if w else ("",))])
    for row in table.rows:
        cells = zip(row, wide, strict=True)
        writer.writerow([part for value, w in cells for part in _flat(value, w)])
    return out.getvalue()


def _flat(value: Value, wide: bool) -> Sequence[object]:
    if isinstance(value, Interval):
        return [f"{part:.6g}" for part in value[:3]] + [value.n]
    plain: object = f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
    return [plain, "", "", ""] if wide else [plain]


def _table(table: SectionTable) -> WrittenTable:
    return WrittenTable(
        table.name,
        table.caption,
        table.headers,
        tuple(
            tuple(cell(value, table.digits) for value in row) for row in table.rows[: table.shown]
        ),
        table.left,
        max(0, len(table.rows) - table.shown),
    )
