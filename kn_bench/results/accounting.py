"""What the board leaves out, and why: every case offered is measured or counted here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kn_bench.results.beside import KEY
from kn_bench.results.keys import keys, places
from kn_bench.results.loading import Runs

SHOWN = 3
"""Names listed before "and n more"."""


class Account(NamedTuple):
    """A table of what was left out, and what it counts."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def accounts(runs: Runs) -> Iterator[Account]:
    """Yield the tables of what was left out, those that have rows."""
    for account in (
        Account(
            "Cases, and criteria of cases, that the sources could not offer",
            ("source", "reason", "n"),
            _sources(runs),
        ),
        Account(
            "Cases without a figure, by criterion",
            ("task", "model", "criterion", "outcome", "reason", "methods", "cases"),
            _cases(runs),
        ),
        Account(
            "Probes left out of cases that have a figure, or that could not be asked",
            ("model", "criterion", "reason", "methods", "probes"),
            _probes(runs),
        ),
        Account(
            "Errors, and tests lost with their worker",
            ("method", "model", "error", "cases"),
            _errors(runs),
        ),
    ):
        if account.rows:
            yield account


def _sources(runs: Runs) -> list[tuple[Any, ...]]:
    counted = Counter((e.case.split("/")[0], e.reason) for e in runs.left_out)
    return [(*names, n) for names, n in sorted(counted.items())]


def _cases(runs: Runs) -> list[tuple[Any, ...]]:
    verdicts = runs.verdicts
    unscored = verdicts[verdicts["verdict_status"].isin(("excluded", "not_applicable"))]
    unscored = unscored.rename(columns={"verdict_reason": "reason"})
    by = ["task", "model", "criterion", "verdict_status", "reason"]
    return [
        (*key[:3], key[3].replace("_", " "), key[4], _names(group["method"]), cases)
        for key, group, cases in _grouped(unscored, by, "case")
    ]


def _probes(runs: Runs) -> list[tuple[Any, ...]]:
    """Count probes that do not fit the model, and those that the unedited model did not know."""
    key = ["run", *KEY]
    exclusions = runs.exclusions.rename(columns={"exclusion_case": "case"})
    both = (places(exclusions, verdicts, key) >= 0 for verdicts in (runs.verdicts, runs.optional))
    counted = np.logical_or(*both) & exclusions["exclusion_probe"].notna()
    single = exclusions[counted]
    single = single.assign(probe=keys(single, ["case", "exclusion_probe"]))
    rows = [
        (*key, _names(group["method"]), n)
        for key, group, n in _grouped(single, ["model", "criterion", "exclusion_reason"], "probe")
    ]
    return sorted(rows + _unknown(runs.verdicts, single))


def _unknown(
    verdicts: pd.DataFrame, excluded: pd.DataFrame
) -> list[tuple[str, str, str, str, int]]:
    """Count probes of generality and synonym that the unedited model did not know.

    What a verdict left out beyond the probes that did not fit is what was not known.
    """
    key = ["run", *KEY]
    scored = verdicts[
        verdicts["criterion"].isin(("generality", "synonym")) & verdicts["verdict_score"].notna()
    ]
    at = places(excluded, scored, key)
    unfit = np.bincount(at[at >= 0], minlength=len(scored))
    unknown = scored.assign(unknown=scored["verdict_left_out"] - unfit)
    rows = []
    for (model, criterion), group in unknown.groupby(["model", "criterion"]):
        n = int(group.groupby("case")["unknown"].max().sum())
        if n:
            reason = "the unedited model did not answer it correctly"
            rows.append((str(model), str(criterion), reason, _names(group["method"]), n))
    return rows


def _errors(runs: Runs) -> list[tuple[Any, ...]]:
    failed = runs.verdicts[runs.verdicts["verdict_status"] == "error"]
    rows = [
        (*key, cases)
        for key, _, cases in _grouped(failed, ["method", "model", "verdict_reason"], "case")
    ]
    rows += [
        (*key, cases)
        for key, _, cases in _grouped(runs.crashes, ["method", "model", "explanation"], "case")
    ]
    return rows


def _grouped(
    frame: pd.DataFrame, by: list[str], counted: str
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame, int]]:
    """Yield groups in order, with the number of distinct values of ``counted``."""
    for key, group in frame.groupby(by):
        yield tuple(map(str, key)), group, int(group[counted].nunique())


def _names(column: pd.Series[str]) -> str:
    names: Sequence[str] = column.unique().tolist()
    if len(names) <= SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
