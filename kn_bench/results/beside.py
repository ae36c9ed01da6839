"""Runs beside one another: which of their results share a name, and which are shown apart.

Two runs mean the same by a name when the model's weights, the data, the settings, the seed and the
benchmark's code are the same. Then the fuller of them counts, and nothing is pooled; otherwise both
stand on the board, each with its run's name. So a run's figures stay what they are, whatever stands
beside it, and do not depend on the order in which runs are named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

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
        repeated: verdicts that another run has too, made of the same, and that are not counted.
        apart: sentences on what is shown apart, and why.
    """

    verdicts: pd.DataFrame
    repeated: int
    apart: tuple[str, ...]


def canonical(folders: Sequence[Path], manifests: Sequence[Manifest]) -> dict[str, int]:
    """Return label -> index of the runs, oldest first, each once, whatever the order given.

    The label is the run's name; runs of one name in several folders are numbered.
    """
    first: dict[Path, int] = {}
    for index, folder in enumerate(folders):
        first.setdefault(folder.resolve(), index)
    order = sorted(first.values(), key=lambda i: (manifests[i].created, manifests[i].run))
    labels: dict[str, int] = {}
    for index in order:
        name = folders[index].resolve().name
        same = sum(label.partition(" (")[0] == name for label in labels)
        labels[f"{name} ({same + 1})" if same else name] = index
    return labels


def merge(verdicts: pd.DataFrame, manifests: Mapping[str, Manifest]) -> Merged:
    """Put the verdicts of several runs beside one another.

    Args:
        verdicts: of all runs, with the columns ``run``, ``protocol``, ``sequence`` and ``asked``.
        manifests: by the runs' labels, oldest first.
    """
    verdicts = verdicts.drop_duplicates(["run", *KEY], keep="last")
    if verdicts["run"].nunique() <= 1:
        return Merged(verdicts.assign(variant="").reset_index(drop=True), 0, ())
    counts = verdicts.groupby([*NAMED, "run"], sort=False).size()
    by_name: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for key, count in zip(counts.index.to_list(), counts.to_list(), strict=True):
        by_name[tuple(key[:-1])][key[-1]] = int(count)
    variant: dict[tuple[str, ...], str] = {}
    sentences: dict[str, None] = {}
    for name, runs in by_name.items():
        kept = _kept(name[1], runs, manifests)
        variant |= {(*name, run): run if len(kept) > 1 else "" for run in kept}
        if len(kept) > 1:
            sentences[_why(name[1], kept, manifests)] = None
    keys = zip(*(verdicts[column] for column in (*NAMED, "run")), strict=True)
    variants = [variant.get(key) for key in keys]
    counted = pd.Series([v is not None for v in variants], index=verdicts.index)
    result = verdicts.assign(variant=[v or "" for v in variants])[counted]
    return Merged(result.reset_index(drop=True), int((~counted).sum()), tuple(sentences))


def _kept(model: str, runs: Mapping[str, int], manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the fullest, then newest, of runs that are made of the same; oldest first."""
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    age = {run: index for index, run in enumerate(manifests)}
    for run in runs:
        alike[tuple(_made_of(manifests[run], model).values())].append(run)
    best = [max(same, key=lambda run: (runs[run], age[run])) for same in alike.values()]
    return sorted(best, key=age.__getitem__)


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
