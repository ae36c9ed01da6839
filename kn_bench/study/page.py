"""What a section of a study returns: sentences, tables of values, and figures to draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_bench.measure.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Value = str | int | float | bool | None | Interval
"""A table cell. Intervals are written with their ends and n, None as a dash."""
TableRow = tuple[Value, ...]


@dataclass(frozen=True)
class SectionTable:
    """A table on the page, also written as CSV.

    Attributes:
        name: stem of its file names.
        caption: one sentence that says what a row and the columns are.
        headers: column headers.
        rows: values; numbers are formatted when written.
        left: number of leading columns that are left-aligned.
        digits: digits after the decimal point.
        shown: number of rows on the page; the CSV file has all of them.
    """

    name: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[TableRow, ...]
    left: int = 1
    digits: int = 2
    shown: int = 40


@dataclass(frozen=True)
class SectionFigure:
    """A figure, written as SVG and PNG.

    Attributes:
        name: stem of its file names.
        caption: one or two sentences that describe the figure without the surrounding text.
        draw: returns the matplotlib figure.
        paper: the corresponding figure of Niu et al. (2024), such as ``Figure 5``.
    """

    name: str
    caption: str
    draw: Callable[[], Drawing]
    paper: str = ""


@dataclass(frozen=True)
class Section:
    """One question and its answer.

    Attributes:
        id: name of its folder and anchor on the page.
        title: title of the section.
        question: a short paragraph: what is asked, and how it is answered.
        findings: sentences that state the results with their numbers.
        tables, figures: shown in this order, after the findings; figures come first.
        notes: what was left out, and why.
    """

    id: str
    title: str
    question: str
    findings: tuple[str, ...]
    tables: tuple[SectionTable, ...] = ()
    figures: tuple[SectionFigure, ...] = ()
    notes: tuple[str, ...] = ()


class NothingToShow(Exception):  # noqa: N818 - a finding, not an error
    """A section has no data to work on; the message is shown in its place."""
