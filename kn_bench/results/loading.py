"""Runs read back for aggregation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kn_bench.cases.case import Exclusion
from kn_bench.results.codec import FormatError, decode
from kn_bench.results.columns import frame_of, read_frames
from kn_bench.results.files import StoreError
from kn_bench.results.log import LOG
from kn_bench.results.manifest import Manifest, read_manifest
from kn_bench.results.rejudging import rejudged
from kn_bench.results.rows import encode_row
from kn_bench.results.store import EXCLUSIONS

FRAMES = ("verdict", "edit", "exclusion", "crash")
KEY = ["model", "method", "case", "criterion"]


@dataclass(frozen=True, slots=True)
class Runs:
    """The rows of one or several runs, a frame a kind, with a column ``run``.

    Attributes:
        manifests: of the runs, in the order given.
        verdicts: one row a key (model, method, case, criterion): the last run's where several
            have it.
        edits: one row a model, method and case.
        exclusions: probes and cases that did not fit a model, one row a criterion.
        crashes: keys that were lost with their worker and not measured since.
        left_out: what the sources of cases could not offer, each once.
        doubled: verdicts that stand in more than one of the runs.
    """

    manifests: tuple[Manifest, ...]
    verdicts: pd.DataFrame = field(repr=False)
    edits: pd.DataFrame = field(repr=False)
    exclusions: pd.DataFrame = field(repr=False)
    crashes: pd.DataFrame = field(repr=False)
    left_out: tuple[Exclusion, ...] = field(repr=False)
    doubled: int = 0


def load_runs(folders: Sequence[Path], *, judge_again: bool = False) -> Runs:
    """All rows of the runs in ``folders``.

    Args:
        folders: of the runs.
        judge_again: draw the verdicts from the measurements by today's definitions, in place of
            those that the tests reported; slower.

    Raises:
        StoreError: when one of them is no run or cannot be read.
    """
    manifests = tuple(read_manifest(folder) for folder in folders)
    frames = [read_frames(folder / LOG, FRAMES) for folder in folders]
    every, edits, exclusions, crashes = (
        _joined(folders, [frame[kind] for frame in frames]) for kind in FRAMES
    )
    if judge_again:
        every = _judged_again(folders)
    within = every.drop_duplicates(["run", *KEY], keep="last")
    verdicts = within.drop_duplicates(KEY, keep="last").reset_index(drop=True)
    crashes = crashes.drop_duplicates(KEY)
    measured = pd.MultiIndex.from_frame(verdicts[KEY])
    return Runs(
        manifests=manifests,
        verdicts=verdicts,
        edits=edits.drop_duplicates(["model", "method", "case"], keep="last"),
        exclusions=exclusions,
        crashes=crashes[~pd.MultiIndex.from_frame(crashes[KEY]).isin(measured)],
        left_out=tuple(dict.fromkeys(e for folder in folders for e in left_out(folder))),
        doubled=len(within) - len(verdicts),
    )


def _judged_again(folders: Sequence[Path]) -> pd.DataFrame:
    frames = [
        frame_of((encode_row(row).encode() for row in rejudged(folder / LOG)), "verdict")
        for folder in folders
    ]
    return _joined(folders, frames)


def _joined(folders: Sequence[Path], frames: list[pd.DataFrame]) -> pd.DataFrame:
    frames = [frame.assign(run=folder.name) for frame, folder in zip(frames, folders, strict=True)]
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    return pd.concat(filled, ignore_index=True)


def left_out(folder: Path) -> list[Exclusion]:
    """What the sources of a run could not offer.

    Raises:
        StoreError: when the file cannot be read.
    """
    path = folder / EXCLUSIONS
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
        return [
            decode(Exclusion, line, source=f"{path}, line {number}")
            for number, line in enumerate(lines, start=1)
            if line
        ]
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except FormatError as error:
        raise StoreError(str(error)) from None
