"""A section on disk: tables as CSV, figures as SVG and PNG, and its words as JSON."""

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
from kn_bench.study.page import Section, Table, Value
from kn_bench.study.plots import render

WORDS = "section.json"


@dataclass(frozen=True)
class WrittenTable:
    """A table as the page shows it; cells are texts."""

    name: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    omitted: int


@dataclass(frozen=True)
class WrittenFigure:
    """A figure whose files lie beside."""

    name: str
    caption: str
    paper: str


@dataclass(frozen=True)
class Written:
    """A section that was written.

    Attributes:
        key: of all it was made from: model, cases, settings, code.
        seconds: it took.
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


def write_section(section: Section, folder: Path, key: str, seconds: float) -> Written:
    """Write ``section`` to ``folder``; its words come last, so that they vouch for the rest."""
    for table in section.tables:
        write_text(folder / f"{table.name}.csv", csv_text(table))
    for figure in section.figures:
        drawn = render(figure.draw)
        for suffix, content in (("svg", drawn.svg), ("png", drawn.png)):
            with atomically(folder / f"{figure.name}.{suffix}") as file:
                file.write(content)
    written = Written(
        key,
        section.id,
        section.title,
        section.question,
        section.findings,
        section.notes,
        tuple(_table(table) for table in section.tables),
        tuple(WrittenFigure(f.name, f.caption, f.paper) for f in section.figures),
        round(seconds, 1),
    )
    write_text(folder / WORDS, encode(written, indent=1) + "\n")
    return written


def read_section(folder: Path) -> Written | None:
    """What :func:`write_section` wrote to ``folder``; None where it is not, or not whole."""
    try:
        written = decode(Written, (folder / WORDS).read_text(encoding="utf-8"))
    except (OSError, FormatError):
        return None
    files = [folder / f"{figure.name}.svg" for figure in written.figures]
    return written if all(path.is_file() for path in files) else None


def data_uri(path: Path) -> str:
    """An SVG as a text that an ``img`` takes: figures on one page cannot mix up their ids."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


# --- tables ------------------------------------------------------------------------------------


def cell(value: Value, digits: int = 2) -> str:
    """A value as text."""
    if isinstance(value, Interval):
        return tables.interval(value, digits)
    if value is None:
        return tables.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value, digits)
    return str(value)


def _number(value: float, digits: int) -> str:
    """Small numbers with two significant digits: a p of 0.00 says nothing."""
    if value and abs(value) < 10.0**-digits / 2:
        return f"{value:.1e}"
    return tables.number(value, digits)


def csv_text(table: Table) -> str:
    """All rows of ``table``; an interval takes four columns: mean, low, high and n."""
    wide = [
        any(isinstance(row[i], Interval) for row in table.rows) for i in range(len(table.headers))
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = zip(table.headers, wide, strict=True)
    writer.writerow([part for name, w in names for part in (_four(name) if w else [name])])
    for row in table.rows:
        cells = zip(row, wide, strict=True)
        writer.writerow([part for value, w in cells for part in _flat(value, w)])
    return out.getvalue()


def _four(name: str) -> list[str]:
    return [name, f"{name} low", f"{name} high", f"{name} n"]


def _flat(value: Value, wide: bool) -> Sequence[object]:
    if isinstance(value, Interval):
        return [f"{part:.6g}" for part in value[:3]] + [value.n]
    plain: object = f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
    return [plain, "", "", ""] if wide else [plain]


def _table(table: Table) -> WrittenTable:
    return WrittenTable(
        table.name,
        table.caption,
        table.headers,
        _cells(table, table.rows[: table.shown]),
        table.left,
        max(0, len(table.rows) - table.shown),
    )


def _cells(table: Table, rows: Sequence[tuple[Value, ...]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(cell(value, table.digits) for value in row) for row in rows)
