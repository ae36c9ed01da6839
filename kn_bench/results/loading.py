"""Runs read back for aggregation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

FRAMES = ("verdict", "edit", "exclusion", "crash", "curve")
SEQUENCE = "sequence "
"""How a cluster is called that is a whole sequence."""
OCCASION = ["occasion_protocol", "occasion_sequence", "occasion_asked"]
KEY = ["model", "method", "case", "criterion", *OCCASION]


@dataclass(frozen=True, slots=True)
class Runs:
    """Return the rows of one or several runs: one DataFrame per row type, with a column ``run``.

    What is not said to be otherwise is of the protocol ``single``.

    Attributes:
        manifests: of the runs, in the order given.
        verdicts: one row a key (model, method, case, criterion): the last run's where several
            have it.
        edits: one row a model, method and case.
        exclusions: probes and cases that did not fit a model, one row a criterion.
        crashes: keys that were lost with their worker and not measured since.
        left_out: what the sources of cases could not offer, each once.
        doubled: verdicts that stand in more than one of the runs.
        sections: the other protocols, one for each time of asking.
        curves: checkpoints of all sequences, one row each.
    """

    manifests: tuple[Manifest, ...]
    verdicts: pd.DataFrame = field(repr=False)
    edits: pd.DataFrame = field(repr=False)
    exclusions: pd.DataFrame = field(repr=False)
    crashes: pd.DataFrame = field(repr=False)
    left_out: tuple[Exclusion, ...] = field(repr=False)
    doubled: int = 0
    sections: tuple[Section, ...] = ()
    curves: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    @property
    def measured(self) -> bool:
        """Whether there is a verdict under any protocol."""
        return bool(len(self.verdicts)) or bool(self.sections)


@dataclass(frozen=True, slots=True)
class Section:
    """One protocol at one time of asking.

    Attributes:
        protocol: as text, such as ``sequence:100``.
        asked: ``immediate`` or ``retained``.
        sequences: how many there are.
        runs: the rows; where there are several sequences, each is a cluster, and a case is a case
            of its own in each.
    """

    protocol: str
    asked: str
    sequences: int
    runs: Runs


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
    every, edits, exclusions, crashes, curves = (
        _joined(folders, [frame[kind] for frame in frames]) for kind in FRAMES
    )
    if judge_again:
        every = _judged_again(folders)
    rows = {
        "verdicts": _dated(every),
        "edits": _dated(edits),
        "exclusions": _dated(exclusions),
        "crashes": _dated(crashes),
    }
    single = {name: frame[frame["occasion_protocol"] == "single"] for name, frame in rows.items()}
    point = ["model", "method", "task", "protocol", "sequence", "step"]
    return Runs(
        manifests=manifests,
        left_out=tuple(dict.fromkeys(e for folder in folders for e in left_out(folder))),
        sections=tuple(_sections(rows)),
        curves=curves.drop_duplicates(point, keep="last").reset_index(drop=True),
        **_distinct(**single),
    )


def _distinct(
    verdicts: pd.DataFrame, edits: pd.DataFrame, exclusions: pd.DataFrame, crashes: pd.DataFrame
) -> dict[str, Any]:
    """Each key once, the last run's; and how many verdicts stood in several runs."""
    within = verdicts.drop_duplicates(["run", *KEY], keep="last")
    last = within.drop_duplicates(KEY, keep="last").reset_index(drop=True)
    crashes = crashes.drop_duplicates(KEY)
    measured = pd.MultiIndex.from_frame(last[KEY])
    return {
        "verdicts": last,
        "edits": edits.drop_duplicates(["model", "method", "case", *OCCASION], keep="last"),
        "exclusions": exclusions,
        "crashes": crashes[~pd.MultiIndex.from_frame(crashes[KEY]).isin(measured)],
        "doubled": len(within) - len(last),
    }


def _dated(frame: pd.DataFrame) -> pd.DataFrame:
    """The occasion filled in where a log was written before there were protocols."""
    return frame.fillna(dict(zip(OCCASION, ("single", 0, "immediate"), strict=True)))


def _sections(rows: Mapping[str, pd.DataFrame]) -> Iterator[Section]:
    """The protocols other than ``single``, in order of appearance, immediate first."""
    times = rows["verdicts"][["occasion_protocol", "occasion_asked"]].drop_duplicates()
    for protocol in dict.fromkeys(times["occasion_protocol"]):
        if protocol == "single":
            continue
        asked_at = sorted(times.loc[times["occasion_protocol"] == protocol, "occasion_asked"])
        for asked in asked_at:
            of_section = {name: _asked(frame, protocol, asked) for name, frame in rows.items()}
            # each task has sequences of its own
            by_task = of_section["verdicts"].groupby("task")["occasion_sequence"]
            n = int(by_task.nunique().max())
            if n > 1:
                of_section = {name: _by_sequence(frame) for name, frame in of_section.items()}
            yield Section(protocol, asked, n, Runs((), left_out=(), **_distinct(**of_section)))


def _asked(frame: pd.DataFrame, protocol: str, asked: str) -> pd.DataFrame:
    # an edit is recorded once, with the immediate reading
    at = frame["occasion_asked"] == asked if "criterion" in frame.columns else True
    return frame[(frame["occasion_protocol"] == protocol) & at]


def _by_sequence(frame: pd.DataFrame) -> pd.DataFrame:
    """Each sequence as a cluster, and its cases as cases of their own."""
    number = frame["occasion_sequence"].astype(int).astype(str)
    names = {
        name: frame[name] + "#" + number
        for name in ("case", "exclusion_case")
        if name in frame.columns
    }
    if "cluster" in frame.columns:
        names["cluster"] = SEQUENCE + number
    return frame.assign(**names)


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
