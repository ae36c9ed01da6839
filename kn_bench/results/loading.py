"""Runs read back for aggregation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kn_bench.cases.case import OPTIONAL_CRITERIA, Exclusion
from kn_bench.measure.measurement import CONTROL
from kn_bench.measure.protocols import parse_protocol
from kn_bench.results.beside import KEY, canonical, merge, told_apart
from kn_bench.results.codec import FormatError, decode
from kn_bench.results.columns import chunks, frame_of, read_parts
from kn_bench.results.files import StoreError
from kn_bench.results.frames import (
    EXPLANATION,
    READINGS,
    frame_from,
    numbers,
    read_tables,
    uncoded,
)
from kn_bench.results.keys import are_unique, distinct, numbered, places, repeated
from kn_bench.results.log import LOG, rows
from kn_bench.results.manifest import Manifest, read_manifest
from kn_bench.results.rejudging import rejudged, rejudged_tables
from kn_bench.results.rows import Key, VerdictRow, encode_row
from kn_bench.results.store import EXCLUSIONS

FRAMES = ("verdict", "edit", "exclusion", "crash", "curve", "generation")
SEQUENCE = "sequence "
"""How a cluster is called that is a whole sequence."""
BOUNDS = {
    "verdict_score": (0.0, 1.0),
    "verdict_overturn_shift": (-1.0, 1.0),
    **{f"verdict_readings_{name}": (0.0, 1.0) for name in READINGS},
}
"""What a figure is a mean of, and its range."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The rows of one or several runs: one DataFrame per row type, with a column ``run``.

    The texts of verdicts, controls, edits, exclusions and crashes are categories, see
    :mod:`kn_bench.results.frames`.

    Attributes:
        manifests: of the runs, oldest first.
        verdicts: one row a key (see :data:`kn_bench.results.beside.KEY`), with a ``variant``: the
            run's name where runs of one name are shown apart.
        optional: the verdicts of criteria that only some data asks for; they are in no score.
        controls: the scores of the edits of equal size, under the names of their methods.
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
        judged_again: whether the verdicts are drawn anew.
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
    judged_again: bool = False
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


def load_runs(
    folders: Sequence[Path], *, judge_again: bool = False, explained: bool = True
) -> Runs:
    """Return all rows of the runs in ``folders``, the same whatever their order.

    Args:
        folders: of the runs.
        judge_again: draw the verdicts from the measurements by today's definitions, in place of
            those that the tests reported; slower.
        explained: keep the sentence of each verdict, which takes most of the memory; see
            :func:`explained`.

    Raises:
        StoreError: when one of them is no run, cannot be read, or holds a score that cannot be.
    """
    given = [read_manifest(folder) for folder in folders]
    labels = canonical(folders, given)
    by_label = {label: folders[index] for label, index in labels.items()}
    manifests = {label: given[index] for label, index in labels.items()}
    leave_out = () if explained else (EXPLANATION,)
    tables = {}
    for label, folder in by_label.items():
        if judge_again:
            tables[label] = rejudged_tables(folder / LOG, FRAMES, explained=explained)
        else:
            tables[label] = read_tables(folder / LOG, FRAMES, leave_out=leave_out)
    every, edits, exclusions, crashes, curves, generations = (
        frame_from({label: tables[label][kind] for label in by_label}, kind) for kind in FRAMES
    )
    _check_scores(every, by_label)
    _check_protocols(every, by_label)
    if not are_unique(every, ["run", *KEY]):
        twice = repeated(every, ["run", *KEY])
        raise _doubled_verdict(by_label[every["run"][twice].iloc[0]] / LOG)
    counts = every["run"].value_counts() + crashes["run"].value_counts()
    cut = tuple(_cut_off(manifests, by_label, counts))
    crashes = _once(crashes, KEY, keep="first")
    crashes = crashes[places(crashes, every, ["run", *KEY]) < 0]
    is_control = _of_control(every)
    controls = every.loc[is_control, ["run", *KEY, "verdict_score"]]
    merged = merge(_where(every, ~is_control), manifests)
    del every
    in_no_score = merged.verdicts["criterion"].isin(OPTIONAL_CRITERIA).to_numpy()
    return Runs(
        manifests=tuple(manifests.values()),
        verdicts=_where(merged.verdicts, ~in_no_score),
        controls=_under_methods(controls[~controls["criterion"].isin(OPTIONAL_CRITERIA)]),
        edits=_once(edits, EDIT_KEY),
        exclusions=exclusions[~_of_control(exclusions)],
        crashes=crashes,
        left_out=tuple(dict.fromkeys(e for folder in by_label.values() for e in left_out(folder))),
        doubled=merged.repeated,
        apart=merged.apart,
        cut=(*cut, *merged.uncounted),
        folders=by_label,
        curves=uncoded(told_apart(_once(curves, POINT), merged.places)),
        optional=_where(merged.verdicts, in_no_score),
        generations=uncoded(told_apart(_once(generations, EDIT_KEY), merged.places)),
        judged_again=judge_again,
    )


def explained(runs: Runs, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return verdicts of ``runs`` in plain columns, with their sentences.

    These are read from the logs where ``runs`` was loaded without them.

    Raises:
        StoreError: when a log cannot be read any more.
    """
    frame = uncoded(verdicts)
    if EXPLANATION in frame:
        return frame
    cases = set(frame["case"])
    parts = [frame.iloc[:0].assign(**{EXPLANATION: ""})]
    for label in frame["run"].unique():
        log = runs.folders[label] / LOG
        read = read_parts(log, "verdict", cases=cases)
        if runs.judged_again:
            again = (encode_row(row).encode() for row in rejudged(log, cases))
            read = (frame_of(chunk, "verdict") for chunk in chunks(again))
        parts += [part.assign(run=label) for part in read]
    said = pd.concat(parts, ignore_index=True)
    sentences = np.append(said[EXPLANATION].to_numpy(object), "")
    return frame.assign(**{EXPLANATION: sentences[places(frame, said, ["run", *KEY])]})


def _where(frame: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Return some rows, numbered anew; the frame itself where it is all, which may be gigabytes."""
    return frame if rows.all() and len(frame) else frame[rows].reset_index(drop=True)


def _once(
    frame: pd.DataFrame, key: Sequence[str], keep: Literal["first", "last"] = "last"
) -> pd.DataFrame:
    """Return each run and key once: by its last row, unless ``keep`` says its first."""
    again = repeated(frame, ["run", *key], keep)
    return frame[~again] if again.any() else frame


def _of_control(frame: pd.DataFrame) -> np.ndarray:
    """Tell which rows are of edits of equal size."""
    codes, methods = numbered(frame["method"])
    named = np.array([str(method).startswith(CONTROL) for method in methods], dtype=bool)
    is_control: np.ndarray = named[codes] if len(named) else np.zeros(len(frame), dtype=bool)
    return is_control


def _under_methods(controls: pd.DataFrame) -> pd.DataFrame:
    """Return rows of edits of equal size under the names of their methods."""
    used = controls["method"].cat.remove_unused_categories()
    named = used.cat.rename_categories(lambda name: name.removeprefix(CONTROL))
    return controls.assign(method=named).reset_index(drop=True)


def _cut_off(
    manifests: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    counts: pd.Series[int],
) -> Iterator[str]:
    """Yield a sentence for every run whose log has not the tests that the run ended with.

    Args:
        counts: run -> tests in its log.
    """
    for label, manifest in manifests.items():
        in_log = int(counts[label])
        if manifest.tests is None or in_log == manifest.tests:
            continue
        if in_log < manifest.tests:
            yield (
                f"{label}: the log has {in_log} of the {manifest.tests} tests that the run "
                f"ended with; continue it with --resume {folders[label].resolve().name}"
            )
        else:
            yield (
                f"{label}: the log has {in_log} tests, and the run ended with "
                f"{manifest.tests}; restore the log or measure again"
            )


def control_scores(verdicts: pd.DataFrame, controls: pd.DataFrame) -> pd.Series[float]:
    """Return the score of each verdict's control, NaN where there is none."""
    at = places(verdicts, controls, ["run", *KEY])
    scores = np.append(controls["verdict_score"].to_numpy(float), np.nan)
    return pd.Series(scores[at], index=verdicts.index)


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


def _check_scores(verdicts: pd.DataFrame, folders: Mapping[str, Path]) -> None:
    """Refuse a log whose scores are not scores: it was altered, and no mean of it means anything.

    Raises:
        StoreError: naming the first such verdict.
    """
    for column, (low, high) in BOUNDS.items():
        values = numbers(verdicts[column])
        beyond = (values < low) | (values > high)
        if beyond.any():
            row = verdicts[beyond].iloc[0]
            raise StoreError(
                f"{folders[row['run']] / LOG}: {row['criterion']} of {row['case']} under "
                f"{row['method']} has {column.removeprefix('verdict_')} {row[column]:g}: "
                f"expected {low:g} to {high:g}; the log was altered: use --judge-again, or measure "
                "again"
            )


def _check_protocols(verdicts: pd.DataFrame, folders: Mapping[str, Path]) -> None:
    """Refuse a log whose protocol cannot be: nobody can tell what its figures are.

    Raises:
        StoreError: naming the first such protocol.
    """
    for label, protocol in distinct(verdicts, ["run", "protocol"]).to_numpy():
        try:
            parse_protocol(protocol)
        except ValueError as error:
            raise StoreError(
                f"{folders[label] / LOG}: protocol {error}; the log was altered: measure again"
            ) from None


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
