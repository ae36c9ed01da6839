"""A run's scores by case in one small file, to hold later runs against."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kn_bench.cases.case import Criterion, Task
from kn_bench.measure.ranges import POSITIVE_COUNT, SHARE
from kn_bench.results.codec import FormatError, decode, encode
from kn_bench.results.comparison import COLUMNS, grouped, scores_of, several
from kn_bench.results.files import StoreError, write_text
from kn_bench.results.frames import uncoded
from kn_bench.results.loading import SEQUENCE, Runs
from kn_bench.results.manifest import PRESET, TEMPLATE, Manifest

FORMAT = 1
"""Of a baseline's file: the newest that can be read."""
_SETTING = re.compile(r"\s+(?=\S+=)")
"""What parts the settings of a manifest's option ``set``."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One criterion of one method on one model and protocol: three columns of equal length.

    Attributes:
        cases: with the number of their sequence, such as ``CASE#3``, where there are several or it
            is not 0.
        clusters: the sequences where there are several, else the cases' own.
    """

    task: Task
    model: str
    method: str
    criterion: Criterion
    cases: tuple[str, ...]
    clusters: tuple[str, ...]
    scores: tuple[float, ...] = field(metadata=SHARE)
    protocol: str = "single"

    def __post_init__(self) -> None:
        if not len(self.cases) == len(self.clusters) == len(self.scores):
            raise FormatError(
                f"{self.method}, {self.criterion}: {len(self.cases)} cases, "
                f"{len(self.clusters)} clusters and {len(self.scores)} scores"
            )


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a run scored, and what it was made of.

    Attributes:
        runs: names of the runs.
        models, data: name -> SHA-256, as in the manifests.
        versions: package -> version.
        scores: the scored cases.
        format: of this file.
        settings: what ``--set`` and ``--preset`` said, by :func:`settings_of`; None in a file from
            before this was written down.
    """

    runs: tuple[str, ...]
    models: Mapping[str, str]
    data: Mapping[str, str]
    versions: Mapping[str, str]
    scores: tuple[Scores, ...]
    format: int = field(default=FORMAT, metadata=POSITIVE_COUNT)
    settings: Mapping[str, str] | None = None

    def frame(self) -> pd.DataFrame:
        """Return the scores as :func:`kn_bench.results.comparison.compare` takes them."""
        parts = [
            pd.DataFrame({"case": s.cases, "cluster": s.clusters, "score": s.scores}).assign(
                task=s.task,
                model=s.model,
                method=s.method,
                criterion=s.criterion,
                protocol=s.protocol,
            )
            for s in self.scores
        ]
        empty = pd.DataFrame(columns=COLUMNS)
        return _read(pd.concat(parts, ignore_index=True))[COLUMNS] if parts else empty


def _read(scores: pd.DataFrame) -> pd.DataFrame:
    """Return each case and its sequence apart, and no cluster where the file names the sequence."""
    named = scores["case"].str.partition("#")
    numbered, number = named[1] != "", named[2]
    clusters = scores["cluster"]
    return scores.assign(
        case=named[0],
        sequence=number.where(numbered, "0"),
        cluster=clusters.where(~numbered | (clusters != SEQUENCE + number)),
    )


def _stored(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the cases and clusters as the file has them."""
    scores = uncoded(scores)
    number, apart = scores["sequence"], several(scores)
    numbered = apart | (number != "0")
    return scores.assign(
        case=(scores["case"] + "#" + number).where(numbered, scores["case"]),
        cluster=(SEQUENCE + number).where(apart, scores["cluster"]),
    )


def baseline_of(runs: Runs) -> Baseline:
    """Return the scores of ``runs`` as a baseline."""
    return Baseline(
        runs=tuple(m.run for m in runs.manifests),
        models={k: v for m in runs.manifests for k, v in m.models.items()},
        data={k: v for m in runs.manifests for k, v in m.data.items()},
        versions={k: v for m in runs.manifests for k, v in m.versions.items()},
        scores=tuple(
            Scores(
                *group[:4],
                tuple(rows["case"]),
                tuple(rows["cluster"]),
                tuple(rows["score"]),
                group.protocol,
            )
            for group, rows in grouped(_stored(scores_of(runs)).sort_values("case"))
        ),
        settings=settings_of(runs.manifests),
    )


def settings_of(manifests: Iterable[Manifest]) -> dict[str, str]:
    """Return how methods are set, and models asked, as the manifests' options have it.

    ``rome.layer`` -> value, ``preset rome gpt2`` -> its values, ``chat template of ID`` -> digest.
    """
    said: dict[str, str] = {}
    for manifest in manifests:
        options = manifest.options
        said |= {n: text for n, text in options.items() if n.startswith((PRESET, TEMPLATE))}
        for word in _SETTING.split(options.get("set", "")):
            name, equals, value = word.partition("=")
            said |= {name: value} if equals else {}
    return said


def save_baseline(runs: Runs, path: Path) -> Baseline:
    """Write the scores of ``runs`` to ``path``, atomically.

    Raises:
        StoreError: when it cannot be written, or nothing was scored.
    """
    baseline = baseline_of(runs)
    if not baseline.scores:
        raise StoreError(f"no case of this run has a score: {path} is not written")
    write_text(path, encode(baseline) + "\n")
    return baseline


def read_baseline(path: Path) -> Baseline:
    """Return the baseline in ``path``.

    Raises:
        StoreError: when there is none, it is not one, or a newer kn_bench wrote it.
    """
    try:
        return decode(Baseline, path.read_bytes(), source=str(path), newest=FORMAT)
    except FileNotFoundError:
        raise StoreError(
            f"there is no baseline {path}: make one by a run with --save-baseline {path}"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except FormatError as error:
        raise StoreError(f"{error}; make a new one with --save-baseline") from None
