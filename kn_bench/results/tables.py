"""Numbers and tables as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kn_bench.measure.statistics import Interval
from kn_bench.results import escaping

NOTHING = "–"


def interval(value: Interval, digits: int = 2, signed: bool = False) -> str:
    """Return ``0.93 [0.88, 0.97] n=120``: a mean, its interval and n; a dash without cases."""
    return f"{mean(value, digits, signed)} n={value.n}" if value.n else NOTHING


def mean(value: Interval, digits: int = 2, signed: bool = False) -> str:
    """Return ``0.93 [0.88, 0.97]``; a dash where there is no mean."""
    return _with_ends(value, lambda end: number(end, digits, signed))


def share(value: Interval, digits: int = 0) -> str:
    """Return ``54% [48%, 57%]``; a dash where there is no mean."""
    return _with_ends(value, lambda end: f"{number(100 * end, digits)}%")


def percent(value: float) -> str:
    """Return ``53%`` for what :func:`number` writes as ``0.53``: 52.5 alone would round to 52."""
    return NOTHING if math.isnan(value) else f"{float(number(value)):.0%}"


def _with_ends(value: Interval, text: Callable[[float], str]) -> str:
    if math.isnan(value.mean):
        return NOTHING
    middle, low, high = map(text, value[:3])
    return middle if math.isnan(value.low) else f"{middle} [{low}, {high}]"


def number(value: float, digits: int = 2, signed: bool = False) -> str:
    """Return a number with a fixed number of digits, no minus before a zero; a dash for NaN.

    Half of the last digit goes to the even one: a mean of 3/8 may come as 0.375 less 1e-16.
    """
    if math.isnan(value):
        return NOTHING
    value = round(value, max(9, digits + 3))
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text if float(text) or signed else text.lstrip("-")


def counted(n: int, noun: str, several: str = "") -> str:
    """Return ``1 pair`` or ``2 pairs``; ``several`` is a plural that does not only add an s."""
    return f"{n} {noun if n == 1 else several or noun + 's'}"


def short(text: str, width: int) -> str:
    """Cut a long name in its middle: names of one family differ at their ends."""
    text = " ".join(text.split())
    half = width // 2
    return text if len(text) <= width else f"{text[: width - half - 1]}…{text[-half:]}"


def seconds(value: float) -> str:
    """Return a time in seconds to two significant digits, milliseconds at the least."""
    if math.isnan(value):
        return NOTHING
    if value < 0.01:
        return f"{value:.3f}"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def p_value(value: float) -> str:
    """Return a p-value: never 0."""
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown(headers: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Return a Markdown table, the first ``left`` columns to the left, the others to the right.

    Cells are shown literally: no text opens a tag, a link or another cell.
    """
    from tabulate import tabulate

    body = [[escaping.markdown(str(cell)) for cell in row] for row in rows]
    heads = [escaping.markdown(header) for header in headers]
    align = ["left" if i < left else "right" for i in range(len(headers))]
    return tabulate(body, heads, tablefmt="pipe", disable_numparse=True, colalign=align) + "\n"


def plain(headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a table for a terminal; cells may have several lines, and no control characters."""
    from tabulate import tabulate

    align = ["left" if i < left else "right" for i in range(len(headers))]
    return tabulate(
        [[escaping.terminal(cell, lines=True) for cell in row] for row in rows],
        headers,
        tablefmt="simple",
        disable_numparse=True,
        colalign=align,
    )


class Table(Protocol):
    """What :func:`markdown` and :func:`plain` have in common."""

    def __call__(
        self, headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1
    ) -> str: ...
