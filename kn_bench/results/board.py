"""The figures of the board: each a mean over cases with its interval, n, and what was left out.

S    harmonic mean of reliability, generality and locality, over the cases that have all three
K    mean of symmetry and synonym invariance: what an edit of knowledge would have to reach

Every criterion is compared with the control of equal size on the same cases: paired by cluster,
one-sided, Holm over the criteria of a line. Lines are ranked by how many of the five criteria in S
and K beat their control, then S, then K; lines without a control after all others. Lines whose S
and K lie within each other's intervals are tied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from kn_bench.cases.case import CRITERIA, Criterion, Task
from kn_bench.measure.resampling import by_cluster
from kn_bench.measure.statistics import (
    Interval,
    average_interval,
    harmonic_interval,
    holm,
    mean_interval,
    mean_intervals,
    sign_flip_p,
)
from kn_bench.results.beside import shown
from kn_bench.results.frames import READINGS, kinds_in, numbers
from kn_bench.results.keys import groups, keys, numbered, several, split
from kn_bench.results.loading import Runs, control_scores

SCORED: tuple[Criterion, ...] = CRITERIA[:5]
"""The criteria in S and K; overturn stands beside them."""
IN_S, IN_K = SCORED[:3], SCORED[3:]
ALPHA = 0.05
NO_INTERVAL = Interval(np.nan, np.nan, np.nan, 0)
SYMMETRY = ("new_learned", "old_revoked", "displaced_kept", "other")
OVERTURN = ("generated", "within_pair", "argmax", "reverse")
STRATA: tuple[tuple[Criterion, str, bool], ...] = (
    ("reliability", "known_before", True),
    ("reliability", "known_before", False),
    ("generality", "known_before", True),
    ("generality", "known_before", False),
    ("locality", "known_before", True),
    ("locality", "known_before", False),
    ("synonym", "known_before", True),
    ("synonym", "known_before", False),
    ("symmetry", "inverse_known", True),
    ("symmetry", "inverse_known", False),
)
"""(criterion, what the unedited model knew, whether it did)."""


class Figure(NamedTuple):
    """A mean with its interval and n, and how many cases had to be left out of it.

    Attributes:
        interval: over the scored cases.
        out, not_applicable: cases that are excluded or failed, or that cannot have the figure.
        control: of the edits of equal size, over the cases that both have.
        p: that the control scores as well or better, Holm over the line's criteria; NaN without
            a control.
    """

    interval: Interval
    out: int = 0
    not_applicable: int = 0
    control: Interval = NO_INTERVAL
    p: float = np.nan

    @property
    def beats_control(self) -> bool:
        """Whether the figure is significantly better than that of the control."""
        return self.p < ALPHA

    @property
    def no_better(self) -> bool:
        """Whether there is a control, and the figure is not significantly better."""
        return self.p >= ALPHA


class Name(NamedTuple):
    """What a line of the board is about.

    Attributes:
        protocol, asked: such as ``single`` and ``immediate``.
        variant: the run, where results of one name are shown apart.
    """

    task: Task
    model: str
    method: str
    protocol: str = "single"
    asked: str = "immediate"
    variant: str = ""

    @property
    def shown(self) -> str:
        """The method as tables name it."""
        return shown(self.method, self.variant)


@dataclass(frozen=True, slots=True)
class Line:
    """One method on one model, task and protocol.

    Attributes:
        name: which.
        rank: within its model, task and protocol, from 1; tied lines share it.
        criteria: the six figures.
        s: harmonic mean of reliability, generality, locality; NaN unless all three have cases.
        k: mean of symmetry and synonym; NaN unless both have cases.
        shift: mean probability shift within the pair, of the cases counted for overturn.
        seconds: wall seconds an edit took, mean over cases; NaN where nothing was edited.
        strata: figures by what the unedited model knew, as in ``STRATA``.
        symmetry, overturn: shares of the outcomes, as in ``SYMMETRY`` and ``OVERTURN``.
        neighbours: locality by kind of neighbour.
        kl: mean KL(unedited || edited) over the neighbours, in nats.
        readings: criterion -> the four readings of the literature, as in ``READINGS``.
    """

    name: Name
    criteria: Mapping[Criterion, Figure]
    s: Interval
    k: Interval
    shift: Interval
    seconds: float
    strata: tuple[Interval, ...]
    symmetry: tuple[Interval, ...]
    overturn: tuple[Interval, ...]
    neighbours: Mapping[str, Interval]
    kl: Interval
    readings: Mapping[Criterion, tuple[Interval, ...]]
    rank: int = 0

    @property
    def beating(self) -> int:
        """How many of the five criteria are significantly better than the control."""
        return sum(self.criteria[criterion].beats_control for criterion in SCORED)

    @property
    def controlled(self) -> bool:
        """Whether any of the five criteria was compared with the control's."""
        return any(not np.isnan(self.criteria[criterion].p) for criterion in SCORED)


GROUP = [*Name._fields]


def has_control(lines: Iterable[Line]) -> bool:
    """Tell whether any figure was compared with that of a random edit of equal size."""
    return any(not np.isnan(value.p) for line in lines for value in line.criteria.values())


def board(runs: Runs) -> tuple[Line, ...]:
    """Return the lines, facts before pairs, models as they come, the best first; computed once."""
    if "board" not in runs.memo:
        runs.memo["board"] = _lines(runs)
    lines: tuple[Line, ...] = runs.memo["board"]
    return lines


def _lines(runs: Runs) -> tuple[Line, ...]:
    edits = runs.edits.groupby(["run", "task", "model", "method", "protocol"])
    seconds = edits["record_seconds"].mean()
    number, first = by_line(runs.verdicts)
    every = _columns(runs)
    lines = []
    for rows, run, *key in zip(
        split(number), first["run"], *(first[name] for name in GROUP), strict=True
    ):
        name = Name(*key)
        time = float(seconds.get((run, *name[:4]), np.nan))
        lines.append(_line(name, _Rows(every, rows), time))
    models = runs.verdicts["model"].unique().tolist()
    protocols = sorted(runs.verdicts["protocol"].unique(), key=_protocol_order)
    tables: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        n = line.name
        at = (n.task, protocols.index(n.protocol), n.asked, models.index(n.model))
        tables.setdefault(at, []).append(line)
    return tuple(line for at in sorted(tables) for line in ranked(tables[at]))


def _protocol_order(protocol: str) -> tuple[bool, str, int]:
    """Return ``single`` first, then by kind and number of edits."""
    kind, _, size = protocol.partition(":")
    digits = "".join(c for c in size.partition("/")[0] if c.isdigit())
    return protocol != "single", kind, int(digits or 0)


def ranked(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of one table in order, with ranks; tied lines by name."""
    ordered = sorted(lines, key=lambda line: (*_worth(line), line.name))
    result: list[Line] = []
    for position, line in enumerate(ordered, start=1):
        first = next((r for r in result if r.rank == result[-1].rank), None)
        tied = first is not None and _tied(first, line)
        result.append(replace(line, rank=result[-1].rank if tied else position))
    return result


def _worth(line: Line) -> tuple[float, ...]:
    return (
        not line.controlled,
        -line.beating,
        *(-x.mean if x.mean == x.mean else 1.0 for x in (line.s, line.k)),
    )


def _tied(better: Line, line: Line) -> bool:
    """Tell whether as many criteria beat their control, and S and K lie in each other's range."""
    counts = ((n.controlled, n.beating) for n in (better, line))
    return next(counts) == next(counts) and all(
        _alike(*both) for both in ((better.s, line.s), (better.k, line.k))
    )


def _alike(first: Interval, second: Interval) -> bool:
    """Tell whether each mean lies within the other's interval, or neither is there.

    That intervals overlap is not enough: few cases have wide ones, and a method that was measured
    on two would stand beside any other.
    """
    if np.isnan(first.mean) or np.isnan(second.mean):
        return bool(np.isnan(first.mean) and np.isnan(second.mean))
    return first.low <= second.mean <= first.high and second.low <= first.mean <= second.high


def clusters_of(verdicts: pd.DataFrame) -> pd.Series[Any]:
    """Return what is resampled: the cases' clusters, or the sequences where there are several."""
    sequences = in_sequences(verdicts)
    if not sequences.any():
        return verdicts["cluster"]
    return verdicts["cluster"].astype("str").where(~sequences, verdicts["sequence"].astype("str"))


def in_sequences(verdicts: pd.DataFrame) -> pd.Series[bool]:
    """Tell of each verdict whether its method has several sequences, which are then clusters."""
    method = [name for name in GROUP if name != "asked"]
    return pd.Series(several(verdicts, method, "sequence"), index=verdicts.index)


def by_line(verdicts: pd.DataFrame) -> tuple[Int[np.ndarray, " row"], pd.DataFrame]:
    """Return each verdict's line, numbered as they come, and the first verdict of each line."""
    line, first = groups(verdicts, GROUP)
    return line, verdicts.iloc[first]


def _columns(runs: Runs) -> pd.DataFrame:
    """Return the verdicts with numbers for criterion (its place in ``CRITERIA``) and cluster."""
    verdicts = runs.verdicts
    codes, criteria = numbered(verdicts["criterion"])
    places = [CRITERIA.index(c) if c in CRITERIA else -1 for c in criteria]
    # in the order of names, so that resamples do not depend on what else was measured
    clusters, _ = numbered(clusters_of(verdicts))
    return verdicts.assign(
        criterion=np.array(places, dtype=np.int8)[codes],
        cluster=clusters,
        control=control_scores(verdicts, runs.controls),
    )


class _Rows:
    """Some verdicts as arrays by column, made when they are asked for.

    pandas would take most of the time there is, and all columns at once most of the memory.
    """

    def __init__(self, frame: pd.DataFrame, rows: Int[np.ndarray, " row"]) -> None:
        self._frame, self._rows = frame, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, column: str) -> np.ndarray:
        """Return a column of numbers."""
        return numbers(self._frame[column].iloc[self._rows])

    @property
    def clusters(self) -> Any:
        """The number of each row's cluster."""
        return self._frame["cluster"].to_numpy()[self._rows]

    def coded(self, column: str) -> tuple[Int[np.ndarray, " row"], pd.Index[Any]]:
        """Return a column of texts as numbers, and the texts."""
        return numbered(self._frame[column].iloc[self._rows])

    def have(self, column: str, *values: str) -> np.ndarray:
        """Tell which rows have one of some texts."""
        codes, texts = self.coded(column)
        having: np.ndarray = np.isin(codes, np.flatnonzero(texts.isin(values)))
        return having

    def where(self, rows: np.ndarray) -> _Rows:
        """Return some of the rows."""
        return _Rows(self._frame, self._rows[rows])

    def means(
        self, *columns: str, bounds: tuple[float, float] | None = (0.0, 1.0)
    ) -> tuple[Interval, ...]:
        """Return the means of ``columns`` over the cases."""
        scores = np.stack([self[name] for name in columns], axis=1)
        return tuple(mean_intervals(scores, self.clusters, bounds=bounds))

    def cases(self) -> Int[np.ndarray, " row"]:
        """Return a number for each case and sequence."""
        names = ["case", "sequence"]
        return pd.factorize(keys(self._frame[names].iloc[self._rows], names))[0]


def _neighbours(rows: _Rows) -> dict[str, Interval]:
    """Return the mean share of unchanged neighbours of each kind, a case counting once a kind."""
    codes, texts = rows.coded("verdict_kinds")
    shares: dict[str, np.ndarray] = {}
    for code in np.unique(codes[codes >= 0]):
        for kind, held, counted in kinds_in(texts[code]):
            of_texts = shares.setdefault(kind, np.full(len(texts) + 1, np.nan))
            of_texts[code] = held / counted
    result = {}
    for kind, of_texts in sorted(shares.items()):
        share = of_texts[codes]
        known = ~np.isnan(share)
        result[kind] = mean_interval(share[known], rows.clusters[known])
    return result


def _figures(rows: Mapping[Criterion, _Rows]) -> dict[Criterion, Figure]:
    """Return the six figures, each beside its control's."""
    compared = {c: _against(rows[c]) for c in CRITERIA}
    adjusted = holm([p for _, p in compared.values()])
    return {
        c: Figure(
            rows[c].means("verdict_score")[0],
            int(rows[c].have("verdict_status", "excluded", "error").sum()),
            int(rows[c].have("verdict_status", "not_applicable").sum()),
            compared[c][0],
            float(p),
        )
        for c, p in zip(CRITERIA, adjusted, strict=True)
    }


def _against(rows: _Rows) -> tuple[Interval, float]:
    """Return the control's figure, and p that it scores as well, over the cases that both have."""
    ours, theirs = rows["verdict_score"], rows["control"]
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    if not both.any():
        return NO_INTERVAL, np.nan
    clusters = rows.clusters[both]
    change = (theirs - ours)[both]
    sums = by_cluster(change[:, None], clusters).sums[:, 0]
    return mean_interval(theirs[both], clusters), sign_flip_p(sums, alternative="less")


def _line(name: Name, group: _Rows, seconds: float) -> Line:
    rows = {c: group.where(group["criterion"] == i) for i, c in enumerate(CRITERIA)}
    counted = rows["overturn"].where(~np.isnan(rows["overturn"]["verdict_score"]))
    s, k = _composites(group)
    return Line(
        name=name,
        criteria=_figures(rows),
        s=s,
        k=k,
        shift=counted.means("verdict_overturn_shift", bounds=(-1.0, 1.0))[0],
        seconds=seconds,
        strata=tuple(
            rows[c].where(rows[c][f"verdict_{what}"] == known).means("verdict_score")[0]
            for c, what, known in STRATA
        ),
        symmetry=rows["symmetry"].means(*(f"verdict_symmetry_{n}" for n in SYMMETRY)),
        overturn=_overturn(rows["overturn"]),
        neighbours=_neighbours(rows["locality"]),
        kl=rows["locality"].means("verdict_mean_kl", bounds=None)[0],
        readings={
            c: rows[c].means(*(f"verdict_readings_{n}" for n in READINGS))
            for c in CRITERIA
            if (~np.isnan(rows[c]["verdict_readings_prob"])).any()
        },
    )


def _overturn(rows: _Rows) -> tuple[Interval, ...]:
    """Return shares of overturned answers; ``reverse`` counts over those that were wrong before."""
    *right, reverse = (f"verdict_overturn_{n}" for n in OVERTURN)
    wrong = rows.where(np.isnan(rows["verdict_score"]))
    return (*rows.means(*right), *wrong.means(reverse))


def _composites(group: _Rows) -> tuple[Interval, Interval]:
    """Return S and K; ``n`` counts, of S, the cases with all three, of K those with either.

    All clusters stay in both tables, with or without scores: the resamples are then the same.
    """
    rows = group.where(~np.isnan(group["verdict_score"]) & (group["criterion"] < len(SCORED)))
    if not len(rows):
        return NO_INTERVAL, NO_INTERVAL
    at = rows.cases()
    scores = np.full((at.max() + 1, len(SCORED)), np.nan)
    scores[at, rows["criterion"].astype(int)] = rows["verdict_score"]
    clusters = np.zeros(len(scores), dtype=np.int64)
    clusters[at] = rows.clusters
    in_s, in_k = scores[:, : len(IN_S)].copy(), scores[:, len(IN_S) :]
    in_s[np.isnan(in_s).any(axis=1)] = np.nan
    n_s, n_k = (int((~np.isnan(part)).any(axis=1).sum()) for part in (in_s, in_k))
    s = harmonic_interval(by_cluster(in_s, clusters))._replace(n=n_s)
    return s, average_interval(by_cluster(in_k, clusters))._replace(n=n_k)
