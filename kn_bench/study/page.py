"""What a section of a study gives: sentences, tables of values, figures to be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_bench.measure.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Value = str | int | float | bool | None | Interval
"""A cell. Intervals are written with their ends and n; None is a dash."""
Row = tuple[Value, ...]


@dataclass(frozen=True)
class Table:
    """A table on the page, also written as CSV.

    Attributes:
        name: of its files.
        caption: one sentence: what a row is, what the columns are.
        headers: of the columns.
        rows: values; numbers are formatted when written.
        left: columns that are set to the left.
        digits: after the decimal point.
        shown: rows that the page shows; the files have all of them.
    """

    name: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    left: int = 1
    digits: int = 2
    shown: int = 40


@dataclass(frozen=True)
class Figure:
    """A figure, written as SVG and PNG.

    Attributes:
        name: of its files.
        caption: one sentence or two, which says what is to be seen without the text.
        draw: makes the matplotlib figure.
        paper: the figure of Niu et al. (2024) that it stands for, such as ``Figure 5``.
    """

    name: str
    caption: str
    draw: Callable[[], Drawing]
    paper: str = ""


@dataclass(frozen=True)
class Section:
    """One question and its answer.

    Attributes:
        id: of its folder and its place on the page.
        title: of the section.
        question: what is asked, and how it is answered: a short paragraph.
        findings: sentences with the figures in them.
        tables, figures: shown in this order, figures first.
        notes: what was left out, and why.
    """

    id: str
    title: str
    question: str
    findings: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


class NothingToShow(Exception):  # noqa: N818 - a finding, not an error
    """A section has nothing to be computed from; its text is shown in the section's place."""
