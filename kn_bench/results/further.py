"""What is measured on demand and is in no score: portability, ripple effects, free generation.

portability       questions of KnowEdit, MQuAKE and others that follow from the edit
ripple effects    RippleEdits' six groups of them
free generation   fluency and reference score, before and after the edit
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.results import tables
from kn_bench.results.board import GROUP, Name, clusters_of
from kn_bench.results.frames import uncoded
from kn_bench.results.loading import Runs

RIPPLE = "ripple"
"""The source whose questions are a table of their own."""
SHOWN = 6
"""Rows of a table in Markdown; the page has all."""


class FurtherRow(NamedTuple):
    """One method on one model: a figure a column, an empty interval where there is none."""

    name: Name
    figures: tuple[Interval, ...]


class FurtherTable(NamedTuple):
    """One table.

    Attributes:
        figure: what the CSV calls it.
        title, note: for readers.
        parts: names of the columns; the first is the figure itself where that is one number.
        digits: of its numbers.
        rows: in the order of the log.
    """

    figure: str
    title: str
    note: str
    parts: tuple[str, ...]
    digits: int
    rows: tuple[FurtherRow, ...]


def further_tables(runs: Runs) -> Iterator[FurtherTable]:
    """Yield the tables that have rows."""
    if len(runs.optional):
        # whether a method has several sequences is told by its verdicts on all criteria
        about = [*GROUP, "sequence", "cluster"]
        every = pd.concat([runs.optional[about], runs.verdicts[about]], ignore_index=True)
        clusters = clusters_of(every)[: len(runs.optional)]
        verdicts = uncoded(runs.optional).assign(cluster=clusters.to_numpy())
        verdicts = verdicts[verdicts["criterion"] == "portability"]
        of_ripple = verdicts["source"] == RIPPLE
        follow = "where the unedited model meets their conditions. They are in no score."
        yield from _questions(
            verdicts[~of_ripple],
            "portability",
            "Portability",
            f"Share of questions answered that follow from the edit, {follow}",
        )
        yield from _questions(
            verdicts[of_ripple],
            "ripple",
            "Ripple effects",
            f"Share of RippleEdits' questions answered, by its six groups, {follow}",
        )
    if len(runs.generations):
        yield _generations(runs.generations)


def _questions(
    verdicts: pd.DataFrame, figure: str, title: str, note: str
) -> Iterator[FurtherTable]:
    """Yield the table of one kind of question: the score, then each group of questions."""
    if verdicts.empty:
        return
    kinds = verdicts[[*GROUP, "cluster"]].assign(kind=verdicts["verdict_kinds"])
    kinds = kinds.explode("kind").dropna(subset=["kind"]).reset_index(drop=True)
    parts = pd.DataFrame(kinds.pop("kind").tolist(), columns=["kind", "held", "counted"])
    kinds = kinds.join(parts).assign(share=parts["held"] / parts["counted"])
    names = list(dict.fromkeys(kinds["kind"]))
    rows = []
    for key, group in verdicts.groupby(GROUP, sort=False):
        own = kinds[(kinds[GROUP] == list(key)).all(axis=1)]
        figures = [_interval(group["verdict_score"], group["cluster"], bounds=(0.0, 1.0))]
        for name in names:
            of_kind = own[own["kind"] == name]
            figures.append(_interval(of_kind["share"], of_kind["cluster"], bounds=(0.0, 1.0)))
        rows.append(FurtherRow(Name._make(key), tuple(figures)))
    yield FurtherTable(figure, title, note, ("all", *map(str, names)), 2, tuple(rows))


GENERATED: Mapping[str, str] = {
    "fluency before": "written_fluency_before",
    "fluency after": "written_fluency_after",
    "reference before": "written_reference_before",
    "reference after": "written_reference_after",
}


def _generations(generations: pd.DataFrame) -> FurtherTable:
    rows = []
    for key, group in generations.groupby(GROUP, sort=False):
        figures = tuple(
            _interval(group[column], group["cluster"], bounds=None) for column in GENERATED.values()
        )
        rows.append(FurtherRow(Name._make(key), figures))
    note = (
        "Fluency: entropy of the words' bigrams and trigrams in bits; low where a model repeats "
        "itself. Reference: likeness to texts about the new target, from 0 to 1."
    )
    return FurtherTable(
        "generation", "Free generation", note, tuple(GENERATED), 2, tuple(rows)
    )  # fmt: skip


def _interval(
    values: pd.Series[float], clusters: pd.Series[str], *, bounds: tuple[float, float] | None
) -> Interval:
    numbers = values.astype(float).to_numpy()
    known = ~np.isnan(numbers)
    return mean_interval(numbers[known], clusters.to_numpy()[known], bounds=bounds)


def title_of(name: Name) -> str:
    """Return ``rome on tiny-gpt2``, with the protocol where it is not ``single``."""
    when = "" if name.protocol == "single" else f", {name.protocol} {name.asked}"
    return f"{name.shown} on {name.model}{when}"


def cells(row: FurtherRow, digits: int) -> tuple[str, ...]:
    """Return a row's figures as text, each with its interval, and n: one or a span."""
    counts = sorted({figure.n for figure in row.figures if figure.n})
    span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
    return (*(tables.mean(figure, digits) for figure in row.figures), span or "0")


def markdown_section(runs: Runs, width: int) -> Iterator[str]:
    """Yield the tables in Markdown: where ``width`` has no room for all columns, the first."""
    for table in further_tables(runs):
        lines = _markdown(table, len(table.parts))
        narrow = max(map(len, lines)) > width
        if narrow:
            lines = _markdown(table, 1)
        more = len(table.rows) - SHOWN
        left = (f"{more} further rows" if more > 0 else "", "the other columns" if narrow else "")
        on_page = " and ".join(filter(None, left))
        yield from (f"## {table.title}", "", *lines, "")
        if on_page:
            yield from (f"On the page: {on_page}.", "")


def _markdown(table: FurtherTable, n: int) -> list[str]:
    """Return the lines of a table with its first ``n`` columns."""
    parts = (table.title.lower() if part == "all" else part for part in table.parts[:n])
    shown = (row._replace(figures=row.figures[:n]) for row in table.rows[:SHOWN])
    body = [(title_of(row.name), *cells(row, table.digits)) for row in shown]
    headers = ("method", *parts, "n")
    return tables.markdown(headers, body).rstrip("\n").split("\n")
