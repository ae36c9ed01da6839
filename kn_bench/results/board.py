"""The figures of the board: each a mean over cases with its interval, n, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kn_bench.cases.case import CRITERIA, Criterion, Task
from kn_bench.measure.statistics import (
    Interval,
    by_cluster,
    harmonic_interval,
    mean_interval,
)
from kn_bench.results.loading import Runs

SCORED: tuple[Criterion, ...] = CRITERIA[:5]
"""The criteria in the overall score; overturn stands beside it."""
READINGS = ("prob", "tf_token", "tf_all", "generated")
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
"""(criterion, what M knew, whether it did)."""


class Figure(NamedTuple):
    """A mean with its interval and n, and how many cases had to be left out of it."""

    interval: Interval
    out: int = 0
    not_applicable: int = 0


class Name(NamedTuple):
    """What a line of the board is about."""

    task: Task
    model: str
    method: str


@dataclass(frozen=True, slots=True)
class Line:
    """One method on one model and task.

    Attributes:
        name: which.
        criteria: the six figures.
        score: harmonic mean of the first five, NaN unless all five have cases.
        shift: mean probability shift within the pair, of the cases counted for overturn.
        seconds: wall seconds an edit took, mean over cases; NaN where nothing was edited.
        strata: figures by what M knew, as in ``STRATA``.
        symmetry, overturn: shares of the outcomes, as in ``SYMMETRY`` and ``OVERTURN``.
        neighbours: locality by kind of neighbour.
        kl: mean KL(unedited || edited) over the neighbours, in nats.
        readings: criterion -> the four readings of the literature, as in ``READINGS``.
    """

    name: Name
    criteria: Mapping[Criterion, Figure]
    score: Interval
    shift: Interval
    seconds: float
    strata: tuple[Interval, ...]
    symmetry: tuple[Interval, ...]
    overturn: tuple[Interval, ...]
    neighbours: Mapping[str, Interval]
    kl: Interval
    readings: Mapping[Criterion, tuple[Interval, ...]]


def board(runs: Runs) -> tuple[Line, ...]:
    """The lines, facts before pairs, models as they come, the best score first."""
    seconds = runs.edits.groupby(list(Name._fields))["record_seconds"].mean()
    names, cases, neighbours = _in_numbers(runs.verdicts)
    lines = [
        _line(name, cases[cases["line"] == i], neighbours[neighbours["line"] == i], seconds)
        for i, name in enumerate(names)
    ]
    models = list(dict.fromkeys(runs.verdicts["model"]))
    return tuple(sorted(lines, key=lambda line: _rank(line, models)))


def _in_numbers(verdicts: pd.DataFrame) -> tuple[list[Name], pd.DataFrame, pd.DataFrame]:
    """The verdicts with codes for names, as hundreds of figures are to be drawn from them.

    Returns:
        Names of the lines; the verdicts (criterion as its place in ``CRITERIA``); and the
        neighbours of locality, a row a case and kind.
    """
    by = list(Name._fields)
    grouped = verdicts.groupby(by, sort=False)
    codes = pd.DataFrame(
        {
            "line": grouped.ngroup(),
            "case": pd.factorize(verdicts["case"])[0],
            "cluster": pd.factorize(verdicts["cluster"])[0],
            "criterion": verdicts["criterion"].map(CRITERIA.index).astype(int),
            "out": verdicts["verdict_status"].isin(("excluded", "error")),
            "not_applicable": verdicts["verdict_status"] == "not_applicable",
        }
    ).astype(float)
    numbers = pd.concat([codes, verdicts.select_dtypes("float")], axis=1)
    names = [Name(*key) for key in verdicts[by].drop_duplicates().itertuples(index=False)]
    local = verdicts["criterion"] == "locality"
    kinds = codes.loc[local, ["line", "cluster"]].assign(kind=verdicts["verdict_kinds"])
    return names, numbers, _by_kind(kinds.explode("kind").dropna())


def _by_kind(kinds: pd.DataFrame) -> pd.DataFrame:
    """Each kind's share of unchanged neighbours, a case counting once a kind."""
    parts = pd.DataFrame(kinds["kind"].tolist(), columns=["kind", "held", "counted"])
    return pd.DataFrame(
        {
            "line": kinds["line"].to_numpy(),
            "cluster": kinds["cluster"].to_numpy(),
            "kind": parts["kind"],
            "share": (parts["held"] / parts["counted"]).astype(float),
        }
    )


def _rank(line: Line, models: list[str]) -> tuple[Any, ...]:
    score = line.score.mean
    reliability = line.criteria["reliability"].interval.mean
    return (
        line.name.task,
        models.index(line.name.model),
        -score if score == score else 1.0,
        -reliability if reliability == reliability else 1.0,
        line.name.method,
    )


def _line(name: Name, group: pd.DataFrame, neighbours: pd.DataFrame, seconds: pd.Series) -> Line:
    rows = {c: group[group["criterion"] == i] for i, c in enumerate(CRITERIA)}
    counted = rows["overturn"]["verdict_score"].notna()
    return Line(
        name=name,
        criteria={criterion: _figure(rows[criterion]) for criterion in CRITERIA},
        score=_score(group),
        shift=_mean(rows["overturn"][counted], "verdict_overturn_shift", (-1.0, 1.0)),
        seconds=float(seconds.get(name, np.nan)),
        strata=tuple(
            _mean(rows[criterion][rows[criterion][f"verdict_{what}"] == known])
            for criterion, what, known in STRATA
        ),
        symmetry=tuple(_mean(rows["symmetry"], f"verdict_symmetry_{n}") for n in SYMMETRY),
        overturn=tuple(_overturn(rows["overturn"], n) for n in OVERTURN),
        neighbours={str(k): _mean(part, "share") for k, part in neighbours.groupby("kind")},
        kl=_mean(rows["locality"], "verdict_mean_kl", None),
        readings={
            criterion: tuple(_mean(rows[criterion], f"verdict_readings_{n}") for n in READINGS)
            for criterion in CRITERIA
            if rows[criterion]["verdict_readings_prob"].notna().any()
        },
    )


def _figure(rows: pd.DataFrame) -> Figure:
    return Figure(_mean(rows), int(rows["out"].sum()), int(rows["not_applicable"].sum()))


def _mean(
    rows: pd.DataFrame,
    column: str = "verdict_score",
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Interval:
    return mean_interval(rows[column].to_numpy(), rows["cluster"].to_numpy(), bounds=bounds)


def _score(group: pd.DataFrame) -> Interval:
    """The harmonic mean of the first five criteria; ``n`` is the number of cases."""
    rows = group[group["verdict_score"].notna() & (group["criterion"] < len(SCORED))]
    if not len(rows):
        return Interval(np.nan, np.nan, np.nan, 0)
    cases, first, at = np.unique(rows["case"], return_index=True, return_inverse=True)
    scores = np.full((len(cases), len(SCORED)), np.nan)
    scores[at, rows["criterion"].astype(int)] = rows["verdict_score"]
    data = by_cluster(scores, rows["cluster"].to_numpy()[first])
    return harmonic_interval(data)._replace(n=len(cases))


def _overturn(rows: pd.DataFrame, reading: str) -> Interval:
    """A share of overturned answers; ``reverse`` is counted over the answers M got wrong."""
    if reading == "reverse":
        rows = rows[rows["verdict_score"].isna()]
    return _mean(rows, f"verdict_overturn_{reading}")
