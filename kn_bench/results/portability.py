"""The table of portability: its score and each kind of question, apart from the board's scores."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from kn_bench.measure.statistics import mean_interval
from kn_bench.results import tables
from kn_bench.results.loading import Runs

GROUP = ["method", "model", "protocol", "asked"]
"""Names of a row."""


def portability_section(runs: Runs) -> Iterator[str]:
    """Yield the section of the leaderboard; nothing where portability was not measured."""
    if runs.optional.empty:
        return
    verdicts = runs.optional[runs.optional["criterion"] == "portability"]
    kinds = verdicts[[*GROUP, "cluster"]].assign(kind=verdicts["verdict_kinds"])
    kinds = kinds.explode("kind").dropna(subset=["kind"])
    parts = pd.DataFrame(kinds.pop("kind").tolist(), columns=["kind", "held", "counted"])
    kinds = kinds.reset_index(drop=True).join(parts)
    names = list(dict.fromkeys(kinds["kind"]))
    rows = []
    for key, group in verdicts.groupby(GROUP, sort=False):
        own = kinds[(kinds[GROUP] == list(key)).all(axis=1)]
        of_kinds = (own[own["kind"] == name] for name in names)
        rows.append(
            (
                *map(str, key),
                _interval(group["verdict_score"], group["cluster"]),
                *(_interval(part["held"] / part["counted"], part["cluster"]) for part in of_kinds),
            )
        )
    yield "## Portability\n"
    yield (
        "Questions that follow from the edit, where the unedited model meets their conditions. "
        "They are in no score.\n"
    )
    yield tables.markdown((*GROUP, "portability", *names), rows, left=4)


def _interval(shares: pd.Series, clusters: pd.Series) -> str:
    numbers = shares.astype(float).to_numpy()
    return tables.interval(mean_interval(numbers, clusters.to_numpy(), bounds=(0.0, 1.0)))
