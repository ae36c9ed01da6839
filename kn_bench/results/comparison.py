"""Two sets of scores compared, on the same cases where there are any, Holm across criteria."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kn_bench.cases.case import CRITERIA, OPTIONAL_CRITERIA, Criterion, Task
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.resampling import by_cluster
from kn_bench.measure.statistics import (
    Alternative,
    Interval,
    holm,
    independent_p,
    mean_interval,
    paired,
    sign_flip_p,
)
from kn_bench.results import keys, tables
from kn_bench.results.beside import differing
from kn_bench.results.files import StoreError
from kn_bench.results.keys import numbered
from kn_bench.results.loading import SEQUENCE, Runs

COLUMNS = [
    "task", "model", "method", "criterion", "protocol", "case", "sequence", "cluster", "score",
]  # fmt: skip
NEEDED = [*COLUMNS[:-1], "asked", "verdict_score"]
SAME = ["case", "sequence"]
"""What two scores of one figure share that are paired."""
ALPHA = 0.05
MOST = 32
"""So many sequences are tried: the p of random sign flips falls no further with more."""


class FigureKey(NamedTuple):
    """One criterion of one method on one model and task, under one protocol.

    Attributes:
        protocol: with the time of asking, such as ``sequence:100, retained``.
    """

    task: Task
    model: str
    method: str
    criterion: Criterion
    protocol: str = "single"

    def __str__(self) -> str:
        return f"{self.method} on {self.model}, {self.criterion} ({self.about(self.task + 's')})"

    @property
    def family(self) -> tuple[str, bool]:
        """Whose p are adjusted together: a method's, those of criteria in no score apart."""
        return self.method, self.criterion in OPTIONAL_CRITERIA

    def about(self, task: str) -> str:
        """Return the task, with the protocol where it is not ``single``."""
        return task if self.protocol == "single" else f"{task}, {self.protocol}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One criterion of one method, first against second.

    Attributes:
        group: what is compared.
        first, second: the means, over the same cases where ``paired``.
        difference: second minus first, with its interval (NaN ends where not paired).
        p: of the permutation test: paired by cluster, or of independent cluster means.
        p_holm: adjusted over all figures compared of the family.
        paired: whether the means are over the same cases.
        only_first, only_second: scored cases that the other lacks.
        sequences: where whole sequences are the clusters, how many are compared; else 0.
    """

    group: FigureKey
    first: Interval
    second: Interval
    difference: Interval
    p: float
    p_holm: float
    paired: bool
    only_first: int
    only_second: int
    sequences: int = 0


def scores_of(
    runs: Runs, method: str | None = None, called: str | None = None, *, optional: bool = False
) -> pd.DataFrame:
    """Return the scored cases of ``runs``, in ``COLUMNS``.

    Args:
        runs: the runs.
        method, called: take this method alone, under another name.
        optional: take the criteria that are in no score too.
    """
    verdicts = runs.verdicts[NEEDED]
    if optional and len(runs.optional):
        verdicts = pd.concat([verdicts, runs.optional[NEEDED]], ignore_index=True)
    scored = verdicts[verdicts["verdict_score"].notna()]
    if method is not None:
        scored = scored[scored["method"] == method]
        scored = scored.assign(method=_texts(np.zeros(len(scored), np.int8), [called or method]))
    scored = scored.assign(
        protocol=_protocols(scored), sequence=_texts(*numbered(scored["sequence"]))
    )
    return scored.rename(columns={"verdict_score": "score"})[COLUMNS]


def _protocols(scored: pd.DataFrame) -> Any:
    """Return the protocol of each row, with the time of asking where there are several."""
    (protocol, protocols), (asked, times) = (numbered(scored[n]) for n in ("protocol", "asked"))
    names = [p if p == "single" else f"{p}, {time}" for p in protocols for time in times]
    return _texts(protocol.astype(np.int64) * len(times) + asked, names)


def _texts(codes: np.ndarray, texts: Sequence[object] | pd.Index[Any]) -> Any:
    """Return numbers into ``texts``, some of which may be equal, as a category in their order."""
    named = pd.Categorical([str(text) for text in texts])
    return named.take(codes)


def several(scores: pd.DataFrame) -> pd.Series[bool]:
    """Tell of each row whether its method has several sequences, whatever the criterion."""
    codes, protocols = numbered(scores["protocol"])
    # without the time of asking
    of = _texts(codes, [protocol.split(", ")[0] for protocol in protocols])
    methods = scores.assign(protocol=of)
    names = ["task", "model", "method", "protocol"]
    return pd.Series(keys.several(methods, names, "sequence"), index=scores.index)


def compare(
    first: pd.DataFrame, second: pd.DataFrame, *, alternative: Alternative = "two-sided"
) -> tuple[Comparison, ...]:
    """Return all criteria that both have, facts first, in the order of the board.

    A case is the same in both where its sequence has the same number. Where several sequences are
    compared each is a cluster.

    Args:
        first, second: as :func:`scores_of` gives them.
        alternative: ``less``: whether second is below first.
    """
    ours, theirs = _by_group(first), _by_group(second)
    whole = _by_sequence(first, second)
    comparisons = [
        _compared(group, ours[group], theirs[group], alternative, group in whole)
        for group in sorted(ours.keys() & theirs.keys(), key=_order)
    ]
    return tuple(_adjusted(comparisons))


def missing(first: pd.DataFrame, second: pd.DataFrame) -> tuple[FigureKey, ...]:
    """Return what ``first`` has and ``second`` has not."""
    return tuple(sorted(_groups(first) - _groups(second), key=_order))


def _groups(scores: pd.DataFrame) -> set[FigureKey]:
    names = keys.distinct(scores, FigureKey._fields)
    return {FigureKey(*key) for key in names.itertuples(index=False)}


def _by_group(scores: pd.DataFrame) -> dict[FigureKey, pd.DataFrame]:
    return {group: rows[~keys.repeated(rows, SAME, "last")] for group, rows in grouped(scores)}


def grouped(scores: pd.DataFrame) -> Iterator[tuple[FigureKey, pd.DataFrame]]:
    """Yield the rows of each criterion of each method, in the order of their names."""
    number, _ = pd.factorize(keys.keys(scores, FigureKey._fields), sort=True)
    for rows in keys.split(number):
        of_group = scores.iloc[rows]
        yield FigureKey(*(of_group[name].iloc[0] for name in FigureKey._fields)), of_group


def _by_sequence(first: pd.DataFrame, second: pd.DataFrame) -> set[FigureKey]:
    """Return whose clusters are whole sequences: several are shared, or both have several."""
    both = _groups(first[several(first)]) & _groups(second[several(second)])
    if not both:
        return both
    shared = first[keys.places(first, second, [*FigureKey._fields, *SAME]) >= 0]
    return both - _groups(shared[~several(shared)])


def _order(group: FigureKey) -> tuple[str, str, str, str, int]:
    criterion = (*CRITERIA, *OPTIONAL_CRITERIA).index(group.criterion)
    return group.task, group.method, group.model, group.protocol, criterion


def _compared(
    group: FigureKey,
    first: pd.DataFrame,
    second: pd.DataFrame,
    alternative: Alternative,
    by_sequence: bool,
) -> Comparison:
    at = keys.places(first, second, SAME)
    common = int((at >= 0).sum())
    only = len(first) - common, len(second) - common
    if common:
        first, second = first[at >= 0], second.iloc[at[at >= 0]]
        order = np.argsort(keys.keys(first, SAME))
        first, second = first.iloc[order], second.iloc[order]
        clusters = _clusters(first, second, by_sequence)
        names, _ = numbered(clusters)
        difference, p = paired(first["score"], second["score"], names, alternative=alternative)
        means = [mean_interval(rows["score"], names) for rows in (first, second)]
    else:
        whole = by_sequence or bool(first["cluster"].isna().any())
        clusters, others = (_clusters(rows, None, whole) for rows in (first, second))
        both = [(first["score"], numbered(clusters)[0]), (second["score"], numbered(others)[0])]
        p = independent_p(*(_cluster_means(*each) for each in both), alternative=alternative)
        means = [mean_interval(*each) for each in both]
        gap = float(second["score"].mean() - first["score"].mean())
        difference = Interval(gap, np.nan, np.nan, len(first) + len(second))
    ours, theirs = means
    sequences = _sequences(clusters)
    return Comparison(group, ours, theirs, difference, p, p, bool(common), *only, sequences)


def _clusters(ours: pd.DataFrame, theirs: pd.DataFrame | None, by_sequence: bool) -> pd.Series[str]:
    """Return the clusters of rows: the sequences, or else the cases' own.

    A baseline of several sequences does not hold the cases' own: those of the same cases are
    taken from the second.
    """
    own = ours["cluster"]
    if theirs is not None and own.isna().any():
        other = theirs["cluster"].astype("str").to_numpy()
        own = own.astype("str").where(own.notna(), other)
    if by_sequence or own.isna().any():
        codes, numbers = numbered(ours["sequence"])
        return pd.Series(_texts(codes, [f"{SEQUENCE}{number}" for number in numbers]))
    return own


def _sequences(clusters: pd.Series[str]) -> int:
    """Return how many clusters there are where they are sequences, else 0."""
    names = clusters.unique()
    return len(names) if all(str(name).startswith(SEQUENCE) for name in names) else 0


def _cluster_means(scores: pd.Series[float], clusters: np.ndarray) -> np.ndarray:
    data = by_cluster(scores.to_numpy(float)[:, None], clusters)
    means: np.ndarray = (data.sums / data.counts)[:, 0]
    return means


def _adjusted(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    """Adjust p over all criteria (and models and tasks) of each family."""
    families: defaultdict[tuple[str, bool], list[float]] = defaultdict(list)
    for comparison in comparisons:
        families[comparison.group.family].append(comparison.p)
    adjusted = {family: iter(holm(p)) for family, p in families.items()}
    for comparison in comparisons:
        yield replace(comparison, p_holm=float(next(adjusted[comparison.group.family])))


# --- as text -----------------------------------------------------------------------------------

HEADERS = ("method", "model", "criterion", "first", "second", "difference", "p", "p (Holm)")


def table_rows(comparisons: Iterable[Comparison]) -> list[tuple[str, ...]]:
    """Return one row for each comparison, its cells in the order of ``HEADERS``."""
    return [
        (
            c.group.method,
            c.group.model,
            f"{c.group.criterion} ({c.group.about(c.group.task)})",
            tables.mean(c.first),
            tables.mean(c.second),
            tables.interval(c.difference, signed=True),
            tables.p_value(c.p),
            tables.p_value(c.p_holm),
        )
        for c in comparisons
    ]


def remarks(
    comparisons: Sequence[Comparison], alternative: Alternative = "two-sided"
) -> Iterator[str]:
    """Yield what a reader must know beside the table; ``alternative`` as it was compared."""
    figures = Counter(c.group.family for c in comparisons)
    few: dict[tuple[tuple[str, bool], int, int], None] = {}
    for c in comparisons:
        if not c.paired:
            yield f"{c.group}: no common cases; the two are compared as independent samples."
            continue
        if c.only_first or c.only_second:
            yield (
                f"{c.group}: {c.only_first} cases only in the first and {c.only_second} only in "
                "the second are not compared."
            )
        if 0 < c.sequences < sequences_needed(figures[c.group.family], alternative):
            few[c.group.family, c.sequences, _batch(c.group.protocol)] = None
    change = "fall" if alternative == "less" else "difference"
    for family, sequences, batch in few:
        needed = sequences_needed(figures[family], alternative)
        advice = f"measure --sequences {needed} or more" if needed <= MOST else "compare fewer"
        if batch and needed <= MOST:
            advice += f" ({needed * batch:,} cases: batches share none)"
        yield (
            f"{family[0]}: with {sequences} sequences no {change} can be significant at 5 % among "
            f"{figures[family]} figures; {advice}."
        )


def _batch(protocol: str) -> int:
    """Return how many cases a sequence takes that shares none with another; 0 where it may."""
    parsed = parse_protocol(protocol.split(", ")[0])
    return parsed.edits if parsed.steps == 1 else 0


@lru_cache(maxsize=64)
def sequences_needed(figures: int, alternative: Alternative) -> float:
    """Return the fewest sequences of which a change can be significant, infinity if none suffice.

    No p is smaller than that of all sequences that fall, and Holm multiplies the smallest p by the
    number of figures.
    """
    falls = (np.full(n, -1.0) for n in range(1, MOST + 1))
    smallest = (sign_flip_p(fall, alternative=alternative) for fall in falls)
    return next((n for n, p in enumerate(smallest, start=1) if figures * p < ALPHA), math.inf)


def comparison_text(
    first: Runs,
    second: Runs,
    *,
    methods: tuple[str, str] | None = None,
    as_markdown: bool = False,
) -> str:
    """Return two runs side by side: the table, and what is not in it.

    Args:
        first, second: the runs.
        methods: compare this method of the first with that of the second; else each with itself.
        as_markdown: as Markdown, not for a terminal.

    Raises:
        StoreError: when a method is in neither, or they have nothing in common.
    """
    if methods is None:
        ours, theirs = (scores_of(runs, optional=True) for runs in (first, second))
    else:
        called = " / ".join(dict.fromkeys(methods))
        pairs = zip((first, second), methods, strict=True)
        ours, theirs = (
            scores_of(_with(runs, name), name, called, optional=True) for runs, name in pairs
        )
    comparisons = compare(ours, theirs)
    if not comparisons:
        raise StoreError(_why_nothing(first, second))
    write = tables.markdown if as_markdown else tables.plain
    only = [f"{group}: only in the first." for group in missing(ours, theirs)]
    only += [f"{group}: only in the second." for group in missing(theirs, ours)]
    notes = [*_unlike(first, second, comparisons), *first.cut, *second.cut]
    notes += [*remarks(comparisons), *only]
    table = write(HEADERS, table_rows(comparisons), left=3)
    return "\n".join([table, *dict.fromkeys(notes)]) + "\n"


def _why_nothing(first: Runs, second: Runs) -> str:
    """Return why two runs have nothing to compare, and what would have."""
    ours, theirs = (runs.verdicts["protocol"].unique().tolist() for runs in (first, second))
    if ours and theirs and set(ours).isdisjoint(theirs):
        return (
            f"the first has the protocol {', '.join(ours)} and the second {', '.join(theirs)}, and "
            "only equal protocols are compared: name runs of one protocol"
        )
    return (
        "the two have no criterion of one method on one model in common: name two methods with "
        "--methods, or runs of the same models"
    )


def _unlike(first: Runs, second: Runs, comparisons: Iterable[Comparison]) -> Iterator[str]:
    """Yield in what the runs differ beside the methods: the difference may be due to it."""
    models: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for model in dict.fromkeys(c.group.model for c in comparisons):
        measured = [m for m in (*first.manifests, *second.manifests) if model in m.models]
        models[differing(measured, model)].append(model)
    for aspects, names in models.items():
        if aspects:
            yield f"The first and the second differ in {', '.join(aspects)} for {', '.join(names)}."


def _with(runs: Runs, method: str) -> Runs:
    known = sorted({*runs.verdicts["method"].unique(), *runs.optional["method"].unique()})
    if method not in known:
        raise StoreError(f"--methods {method!r}: expected one of {', '.join(known)}")
    return runs
