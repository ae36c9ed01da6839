"""Runs beside one another: which of their results share a name, and which are shown apart.

Two runs mean the same by a name when the model's weights, the data, the settings, the seed and the
benchmark's code are the same. Then the fuller of them counts, and nothing is pooled; otherwise both
stand on the board, each with its run's name. So a run's figures stay what they are, whatever stands
beside it, and do not depend on the order in which runs are named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kn_bench.results import keys
from kn_bench.results.manifest import Manifest

NAMED = ["task", "model", "method", "protocol"]
"""What a name on the board says."""
KEY = ["model", "method", "case", "criterion", "protocol", "sequence", "asked"]
"""What identifies a verdict within a run."""
NOT_SETTINGS = frozenset({"methods", "relations", "limit", "cases"})
"""Options that choose what is measured: the methods are rows of their own, the rest is data."""


class Merged(NamedTuple):
    """Verdicts of several runs.

    Attributes:
        verdicts: with a column ``variant``: the run's name where it is shown apart, else "".
        places: of each name and run, the ``kept`` run that stands for it and the ``variant``.
        repeated: verdicts that are not counted, as the run that is kept has them too.
        apart: sentences on what is shown apart, and why.
        uncounted: sentences on verdicts that are not counted, and that the run kept lacks.
    """

    verdicts: pd.DataFrame
    places: pd.DataFrame
    repeated: int
    apart: tuple[str, ...]
    uncounted: tuple[str, ...]


def canonical(folders: Sequence[Path], manifests: Sequence[Manifest]) -> dict[str, int]:
    """Return label -> index of the runs, oldest first, each once, whatever the order given.

    The label is the run's name; where it is taken, by the first number that makes it free.
    """
    first: dict[Path, int] = {}
    for index, folder in enumerate(folders):
        first.setdefault(folder.resolve(), index)
    # a copy has the name and the age of its original: their folders put them in order
    order = sorted(first, key=lambda f: (manifests[first[f]].created, manifests[first[f]].run, f))
    labels: dict[str, int] = {}
    for folder in order:
        numbered = (f"{folder.name} ({number})" for number in count(2))
        label = next(n for n in chain([folder.name], numbered) if n not in labels)
        labels[label] = first[folder]
    return labels


def merge(verdicts: pd.DataFrame, manifests: Mapping[str, Manifest]) -> Merged:
    """Put the verdicts of several runs beside one another.

    Args:
        verdicts: of all runs, with the columns ``run``, ``protocol``, ``sequence`` and ``asked``,
            one a run and key.
        manifests: by the runs' labels, oldest first.
    """
    by_name: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for *named, run, size in _sizes(verdicts):
        by_name[tuple(named)][run] = size
    rows: list[tuple[str, ...]] = []
    sentences: dict[str, None] = {}
    for name, runs in by_name.items():
        kept_of = _kept(name[1], runs, manifests)
        kept = sorted(set(kept_of.values()), key=[*manifests].index)
        apart = len(kept) > 1
        rows += [(*name, run, best, best if apart else "") for run, best in kept_of.items()]
        if apart:
            sentences[_why(name[1], kept, manifests)] = None
    places = pd.DataFrame(rows, columns=[*NAMED, "run", "kept", "variant"], dtype=object)
    counted = told_apart(verdicts, places)
    repeated, uncounted = _not_counted(verdicts, counted, places)
    return Merged(counted, places, repeated, tuple(sentences), uncounted)


def _sizes(verdicts: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Yield each name with each of its runs and the number of verdicts, as they come first."""
    columns = [*NAMED, "run"]
    number, first = keys.groups(verdicts, columns)
    named = verdicts[columns].iloc[first].itertuples(index=False, name=None)
    for name, size in zip(named, np.bincount(number).tolist(), strict=True):
        yield (*name, size)


def shown(method: str, variant: str) -> str:
    """Return the method as tables and figures name it."""
    return f"{method} ({variant})" if variant else method


def told_apart(rows: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the runs that are kept, with their ``variant``; see :class:`Merged`."""
    kept = places[places["run"] == places["kept"]]
    at = keys.places(rows, kept, [*NAMED, "run"])
    if (at < 0).any():
        rows, at = rows[at >= 0].reset_index(drop=True), at[at >= 0]
    return rows.assign(variant=pd.Categorical(kept["variant"].astype("str")).take(at))


def _not_counted(
    verdicts: pd.DataFrame, counted: pd.DataFrame, places: pd.DataFrame
) -> tuple[int, tuple[str, ...]]:
    """Return how many verdicts the run that is kept has too, and sentences on all others."""
    beside = places[places["run"] != places["kept"]]
    at = keys.places(verdicts, beside, [*NAMED, "run"])
    others = verdicts.loc[at >= 0, ["run", *KEY]]
    others = others.assign(kept=beside["kept"].to_numpy()[at[at >= 0]])
    of_kept = others.drop(columns="run").rename(columns={"kept": "run"})
    repeated = keys.places(of_kept, counted, ["run", *KEY]) >= 0
    lacking = others[~repeated]
    sentences = (
        f"{kept} and {', '.join(dict.fromkeys(group['run']))} are made of the same, and the "
        f"fullest, else the newest, counts: verdicts that {kept} lacks are left out "
        f"({len(group)}); draw a board of each run to see them"
        for kept, group in lacking.groupby("kept", sort=False)
    )
    return int(repeated.sum()), tuple(sentences)


def _kept(model: str, runs: Mapping[str, int], manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """Return run -> the fullest, then newest, of the runs that are made of the same."""
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    age = {run: index for index, run in enumerate(manifests)}
    for run in runs:
        made_of = _made_of(manifests[run], model)
        alike[tuple(f"{aspect} {value}" for aspect, value in made_of.items() if value)].append(run)
    return {
        run: max(same, key=lambda run: (runs[run], age[run]))
        for same in alike.values()
        for run in same
    }


def _made_of(manifest: Manifest, model: str) -> dict[str, str]:
    """Return aspect -> what two runs must share to mean the same by a name."""
    settings = {k: v for k, v in manifest.options.items() if k not in NOT_SETTINGS}
    return {
        "weights": manifest.models.get(model, ""),
        "data": repr(sorted(manifest.data.items())),
        **{name: settings.get(name, "") for name in sorted({*settings, "dtype", "attention"})},
        "seed": str(manifest.seed),
        "code": manifest.code,
    }


def _why(model: str, runs: Sequence[str], manifests: Mapping[str, Manifest]) -> str:
    unlike = differing([manifests[run] for run in runs], model)
    return f"{', '.join(runs)} differ in {', '.join(unlike)} for {model}: shown apart."


def differing(manifests: Iterable[Manifest], model: str) -> tuple[str, ...]:
    """Return the aspects in which runs do not mean the same by the name of ``model``."""
    aspects_of = [_made_of(manifest, model) for manifest in manifests]
    aspects = dict.fromkeys(aspect for each in aspects_of for aspect in each)
    return tuple(a for a in aspects if len({each.get(a, "") for each in aspects_of}) > 1)
