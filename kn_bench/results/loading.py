"""Runs read back for aggregation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kn_bench.cases.case import OPTIONAL_CRITERIA, Exclusion
from kn_bench.measure.measurement import CONTROL
from kn_bench.measure.protocols import parse_protocol
from kn_bench.results.beside import KEY, canonical, merge, told_apart
from kn_bench.results.codec import FormatError, decode
from kn_bench.results.columns import frame_of, read_frames
from kn_bench.results.files import StoreError
from kn_bench.results.log import LOG, rows
from kn_bench.results.manifest import Manifest, read_manifest
from kn_bench.results.rejudging import rejudged
from kn_bench.results.rows import Key, VerdictRow, encode_row
from kn_bench.results.store import EXCLUSIONS

FRAMES = ("verdict", "edit", "exclusion", "crash", "curve", "generation")
SEQUENCE = "sequence "
"""How a cluster is called that is a whole sequence."""
OCCASION = {"protocol": "single", "sequence": 0, "asked": "immediate"}
"""When a probe was asked, and what that is in a log from before there were protocols."""
BOUNDS = {
    "verdict_score": (0.0, 1.0),
    "verdict_overturn_shift": (-1.0, 1.0),
    **{f"verdict_readings_{n}": (0.0, 1.0) for n in ("prob", "tf_token", "tf_all", "generated")},
}
"""What a figure is a mean of, and its range."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The rows of one or several runs: one DataFrame per row type, with a column ``run``.

    Attributes:
        manifests: of the runs, oldest first.
        verdicts: one row a key (see :data:`kn_bench.results.beside.KEY`), with a ``variant``: the
            run's name where runs of one name are shown apart.
        optional: the verdicts of criteria that only some data asks for; they are in no score.
        controls: the verdicts of the edits of equal size, under the names of their methods.
        edits: one row a run, model, method and case.
        exclusions: probes and cases that did not fit a model, one row a criterion.
        crashes: keys that were lost with their worker and not measured since.
        left_out: what the sources of cases could not offer, each once.
        doubled: verdicts that another run has too, made of the same.
        apart: sentences on results of one name that are shown apart.
        cut: sentences on runs whose log is not what they ended with, and on verdicts that are
            not counted.
        folders: of the runs, by the name in the column ``run``.
        curves: checkpoints of all sequences, one row each, with a ``variant``.
        generations: what was written freely, one row a model, method and case.
        memo: what was computed from the rows: the terminal, the file and the page show the same.
    """

    manifests: tuple[Manifest, ...]
    verdicts: pd.DataFrame = field(repr=False)
    controls: pd.DataFrame = field(repr=False)
    edits: pd.DataFrame = field(repr=False)
    exclusions: pd.DataFrame = field(repr=False)
    crashes: pd.DataFrame = field(repr=False)
    left_out: tuple[Exclusion, ...] = field(repr=False)
    doubled: int = 0
    apart: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    optional: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    generations: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


def load_runs(folders: Sequence[Path], *, judge_again: bool = False) -> Runs:
    """Return all rows of the runs in ``folders``, the same whatever their order.

    Args:
        folders: of the runs.
        judge_again: draw the verdicts from the measurements by today's definitions, in place of
            those that the tests reported; slower.

    Raises:
        StoreError: when one of them is no run, cannot be read, or holds a score that cannot be.
    """
    given = [read_manifest(folder) for folder in folders]
    labels = canonical(folders, given)
    by_label = {label: folders[index] for label, index in labels.items()}
    manifests = {label: given[index] for label, index in labels.items()}
    frames = {label: read_frames(folder / LOG, FRAMES) for label, folder in by_label.items()}
    if judge_again:
        for label, folder in by_label.items():
            again = (encode_row(row).encode() for row in rejudged(folder / LOG))
            frames[label]["verdict"] = frame_of(again, "verdict")
    for label, folder in by_label.items():
        _check_scores(frames[label]["verdict"], folder / LOG)
    every, edits, exclusions, crashes, curves, generations = (
        _joined(frames, kind) for kind in FRAMES
    )
    _check_protocols(every, by_label)
    repeated = every[every.duplicated(["run", *KEY])]
    if len(repeated):
        raise _doubled_verdict(by_label[repeated["run"].iloc[0]] / LOG)
    is_control = every["method"].str.startswith(CONTROL)
    is_optional = every["criterion"].isin(OPTIONAL_CRITERIA)
    merged = merge(every[~is_control], manifests)
    in_no_score = merged.verdicts["criterion"].isin(OPTIONAL_CRITERIA)
    controls = every[is_control & ~is_optional].drop_duplicates(["run", *KEY], keep="last")
    controls = controls.assign(method=controls["method"].str.removeprefix(CONTROL))
    lost, crashes = crashes, crashes.drop_duplicates(["run", *KEY])
    measured = pd.MultiIndex.from_frame(every[["run", *KEY]])
    return Runs(
        manifests=tuple(manifests.values()),
        verdicts=merged.verdicts[~in_no_score].reset_index(drop=True),
        controls=controls.reset_index(drop=True),
        edits=edits.drop_duplicates(["run", *EDIT_KEY], keep="last"),
        exclusions=exclusions[~exclusions["method"].str.startswith(CONTROL)],
        crashes=crashes[~pd.MultiIndex.from_frame(crashes[["run", *KEY]]).isin(measured)],
        left_out=tuple(dict.fromkeys(e for folder in by_label.values() for e in left_out(folder))),
        doubled=merged.repeated,
        apart=merged.apart,
        cut=(*_cut_off(manifests, by_label, every, lost), *merged.uncounted),
        folders=by_label,
        curves=told_apart(curves.drop_duplicates(["run", *POINT], keep="last"), merged.places),
        optional=merged.verdicts[in_no_score].reset_index(drop=True),
        generations=told_apart(
            generations.drop_duplicates(["run", *EDIT_KEY], keep="last"), merged.places
        ),
    )


def _cut_off(
    manifests: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    verdicts: pd.DataFrame,
    crashes: pd.DataFrame,
) -> Iterator[str]:
    """Yield a sentence for every run whose log has not the tests that the run ended with."""
    in_log = Counter((*verdicts["run"], *crashes["run"]))
    for label, manifest in manifests.items():
        if manifest.tests is None or in_log[label] == manifest.tests:
            continue
        if in_log[label] < manifest.tests:
            yield (
                f"{label}: the log has {in_log[label]} of the {manifest.tests} tests that the run "
                f"ended with; continue it with --resume {folders[label].resolve().name}"
            )
        else:
            yield (
                f"{label}: the log has {in_log[label]} tests, and the run ended with "
                f"{manifest.tests}; restore the log or measure again"
            )


def control_scores(verdicts: pd.DataFrame, controls: pd.DataFrame) -> pd.Series[float]:
    """Return the score of each verdict's control, NaN where there is none."""
    key = ["run", *KEY]
    theirs = controls[[*key, "verdict_score"]]
    return verdicts[key].merge(theirs, on=key, how="left")["verdict_score"]


def _doubled_verdict(log: Path) -> StoreError:
    """Return which verdict stands in a log twice: the writer of a run keeps each once."""
    first: dict[Key, int] = {}
    for number, row in enumerate(rows(log), start=1):
        if isinstance(row, VerdictRow) and first.setdefault(row.key, number) != number:
            return StoreError(
                f"{log}, line {number} is a second verdict on {row.case}, {row.criterion} "
                f"({row.method} on {row.model}), which line {first[row.key]} has already: remove "
                "one of the two tests"
            )
    return StoreError(f"{log} has a verdict twice: remove one of them")


POINT = ["model", "method", "task", "protocol", "sequence", "step"]
EDIT_KEY = ["model", "method", "case", "protocol", "sequence"]


def _check_scores(verdicts: pd.DataFrame, log: Path) -> None:
    """Refuse a log whose scores are not scores: it was altered, and no mean of it means anything.

    Raises:
        StoreError: naming the first such verdict.
    """
    for column, (low, high) in BOUNDS.items():
        beyond = verdicts[(verdicts[column] < low) | (verdicts[column] > high)]
        if len(beyond):
            row = beyond.iloc[0]
            raise StoreError(
                f"{log}: {row['criterion']} of {row['case']} under {row['method']} has "
                f"{column.removeprefix('verdict_')} {row[column]:g}: expected {low:g} to {high:g}; "
                "the log was altered: use --judge-again, or measure again"
            )


def _check_protocols(verdicts: pd.DataFrame, folders: Mapping[str, Path]) -> None:
    """Refuse a log whose protocol cannot be: nobody can tell what its figures are.

    Raises:
        StoreError: naming the first such protocol.
    """
    for label, protocol in verdicts[["run", "protocol"]].drop_duplicates().to_numpy():
        try:
            parse_protocol(protocol)
        except ValueError as error:
            raise StoreError(
                f"{folders[label] / LOG}: protocol {error}; the log was altered: measure again"
            ) from None


def _joined(frames: Mapping[str, Mapping[str, pd.DataFrame]], kind: str) -> pd.DataFrame:
    """Return the rows of all runs of one kind, with ``run`` and when they were asked."""
    parts = [with_occasion(each[kind]).assign(run=label) for label, each in frames.items()]
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled, ignore_index=True)


def with_occasion(frame: pd.DataFrame) -> pd.DataFrame:
    """Return columns ``protocol``, ``sequence`` and ``asked``, filled where a row does not say."""
    columns = {}
    if "occasion_protocol" not in frame and "protocol" in frame:
        return frame  # a checkpoint names its protocol itself
    for name, default in OCCASION.items():
        column = frame.get(f"occasion_{name}")
        blank = pd.Series([default] * len(frame), index=frame.index, dtype=type(default))
        columns[name] = blank if column is None else column.where(column.notna(), default)
    columns["sequence"] = columns["sequence"].astype(int)
    return frame.assign(**columns)


def left_out(folder: Path) -> list[Exclusion]:
    """Return what the sources of a run could not offer.

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
