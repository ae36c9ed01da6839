"""What the board leaves out, and why: every case offered is measured or counted here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd

from kn_bench.results import tables
from kn_bench.results.loading import Runs

SHOWN = 3
"""Names listed before "and n more"."""


def accounts(runs: Runs) -> Iterator[str]:
    """The tables of what was left out, each with a line on what it counts."""
    empty = True
    for text, table in (
        ("Cases that the sources could not offer:", _sources(runs)),
        ("Cases without a figure, by criterion:", _cases(runs)),
        ("Probes left out of cases that have a figure, or that could not be asked:", _probes(runs)),
        ("Errors, and tests lost with their worker:", _errors(runs)),
    ):
        if table:
            empty = False
            yield f"{text}\n"
            yield table
    if empty:
        yield "Nothing.\n"


def _sources(runs: Runs) -> str:
    counted = Counter((e.case.split("/")[0], e.reason) for e in runs.left_out)
    rows = [(*names, n) for names, n in sorted(counted.items())]
    return tables.markdown(("source", "reason", "n"), rows, left=2) if rows else ""


def _cases(runs: Runs) -> str:
    verdicts = runs.verdicts
    unscored = verdicts[verdicts["verdict_status"].isin(("excluded", "not_applicable"))]
    unscored = unscored.rename(columns={"verdict_reason": "reason"})
    by = ["task", "model", "criterion", "verdict_status", "reason"]
    rows = [
        (*key[:3], key[3].replace("_", " "), key[4], _names(group["method"]), cases)
        for key, group, cases in _grouped(unscored, by, "case")
    ]
    headers = ("task", "model", "criterion", "outcome", "reason", "methods", "cases")
    return tables.markdown(headers, rows, left=6) if rows else ""


def _probes(runs: Runs) -> str:
    """Count probes that do not fit the model, and those that the unedited model did not know."""
    found = runs.exclusions
    single = found[found["exclusion_probe"].notna()].copy()
    single["probe"] = single["exclusion_case"] + " " + single["exclusion_probe"]
    rows = [
        (*key, _names(group["method"]), n)
        for key, group, n in _grouped(single, ["model", "criterion", "exclusion_reason"], "probe")
    ]
    rows += _unknown(runs.verdicts, single)
    headers = ("model", "criterion", "reason", "methods", "probes")
    return tables.markdown(headers, sorted(rows), left=4) if rows else ""


def _unknown(
    verdicts: pd.DataFrame, excluded: pd.DataFrame
) -> list[tuple[str, str, str, str, int]]:
    """Count generality and synonym probes that were not answered with ``target_true`` before."""
    key = ["model", "method", "case", "criterion"]
    scored = verdicts[
        verdicts["criterion"].isin(("generality", "synonym")) & verdicts["verdict_score"].notna()
    ]
    named = excluded.rename(columns={"exclusion_case": "case"})
    unfit = named.groupby(key).size().rename("unfit").reset_index()
    both = scored.merge(unfit, on=key, how="left")
    both["unknown"] = both["verdict_left_out"] - both["unfit"].fillna(0)
    rows = []
    for (model, criterion), group in both.groupby(["model", "criterion"]):
        n = int(group.groupby("case")["unknown"].max().sum())
        if n:
            reason = "the unedited model did not answer it correctly"
            rows.append((str(model), str(criterion), reason, _names(group["method"]), n))
    return rows


def _errors(runs: Runs) -> str:
    failed = runs.verdicts[runs.verdicts["verdict_status"] == "error"]
    rows = [
        (*key, cases)
        for key, _, cases in _grouped(failed, ["method", "model", "verdict_reason"], "case")
    ]
    rows += [
        (*key, cases)
        for key, _, cases in _grouped(runs.crashes, ["method", "model", "explanation"], "case")
    ]
    headers = ("method", "model", "error", "cases")
    return tables.markdown(headers, rows, left=3) if rows else ""


def _grouped(
    frame: pd.DataFrame, by: list[str], counted: str
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame, int]]:
    """Groups in order, with the number of distinct values of ``counted``."""
    for key, group in frame.groupby(by):
        yield tuple(map(str, key)), group, int(group[counted].nunique())


def _names(column: pd.Series[str]) -> str:
    names: Sequence[str] = list(dict.fromkeys(column))
    if len(names) <= SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
