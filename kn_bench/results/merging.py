"""Shards of a run joined into one run: the same rows as if it had been measured in one place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kn_bench.results.files import StoreError, unwritable
from kn_bench.results.loading import left_out
from kn_bench.results.log import CLOSING, LOG, checked_tests, closed_tests
from kn_bench.results.manifest import Manifest, differences, read_manifest
from kn_bench.results.rows import kind_of
from kn_bench.results.store import OtherTextError, RunStore
from kn_bench.results.texts import join_texts, read_texts

SHARD = "shard"
"""The option of a manifest that says which shard a run is."""
TESTS_AT_ONCE = 2000
"""Tests whose rows are in memory at once: a log may be larger than memory."""


def merge(folders: Sequence[Path], reports: Path, run: str) -> Path:
    """Join the shards in ``folders`` into a run called ``run`` under ``reports/runs``.

    Rows that several shards have (a shard that was run twice) are kept once.

    Args:
        folders: the shards' folders, in any order.
        reports: folder of runs.
        run: name of the merged run.

    Returns:
        The folder of the merged run.

    Raises:
        StoreError: when shards differ in weights, data, settings, code, the tests that they were
            cut from or the text that C was taken over, when one is unfinished, cut off or altered,
            when some are missing (naming them), or when the run cannot be written. Nothing is left
            of the merged run then; what is left by a merge that is killed is no run.
    """
    manifests = [read_manifest(folder) for folder in folders]
    _check_alike(folders, manifests)
    _check_complete(folders, manifests)
    _check_selections(folders, manifests)
    for folder, manifest in zip(folders, manifests, strict=True):
        _check_whole(folder, manifest)
    first = without_shard(manifests[0])
    timings = _added([manifest.timings for manifest in manifests])
    created = min(manifest.created for manifest in manifests)
    new = replace(first, run=run, created=created, resumed=())
    merged = replace(new, finished="", timings={}, tests=None)
    with RunStore.claim(reports, merged) as name:
        # no run's name begins with a dot, and no run is looked for so deep
        apart = name.folder.with_name(f".{run}")
        shutil.rmtree(apart, ignore_errors=True)  # a merge that was killed left it
        try:
            with RunStore.create(apart, merged) as store:
                store.remedy = "merge again"
                _write(store, folders)
                store.finish(timings)
        except BaseException:
            shutil.rmtree(apart, ignore_errors=True)
            raise
        finally:
            _give_back(name)
    try:
        store.folder.replace(name.folder)
    except OSError as error:
        raise unwritable(name.folder, error) from None
    shutil.rmtree(apart, ignore_errors=True)
    return name.folder


def _give_back(name: RunStore) -> None:
    """Leave nothing under a name that was taken."""
    name.close()
    (name.folder / LOG).unlink(missing_ok=True)
    with suppress(OSError):  # something was put there meanwhile
        name.folder.rmdir()


def _write(store: RunStore, folders: Sequence[Path]) -> None:
    store.leave_out(left_out(folders[0]))
    join_texts(folders, store.folder)
    for folder in folders:
        try:
            for text in _tests(folder / LOG):
                store.append(text)
        except OtherTextError as error:
            raise StoreError(f"{folder.name} cannot be merged with the others: {error}") from None


def _check_alike(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    first = without_shard(manifests[0])
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        clauses = differences(first, without_shard(manifest))
        if clauses:
            raise StoreError(
                f"{folder.name} cannot be merged with {folders[0].name}, for they were made of "
                f"different things: {'; '.join(clauses)}"
            )


def _check_complete(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Refuse runs that are no shards, unfinished shards, mixed counts and missing shards."""
    present: dict[str, set[int]] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        index, slash, count = manifest.options.get(SHARD, "").partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise StoreError(f"{folder.name} is a whole run: expected runs made by --shard")
        if not manifest.finished:
            raise StoreError(
                f"{folder.name}, shard {index}/{count}: expected a finished run; go on with it by "
                f"--resume {folder.name}"
            )
        present.setdefault(count, set()).add(int(index))
    if len(present) > 1:
        raise StoreError(
            f"the runs are shards of different cuts, of {' and of '.join(sorted(present))}: merge "
            "those of one cut"
        )
    ((count, indices),) = present.items()
    missing = sorted(set(range(1, int(count) + 1)) - indices)
    if missing:
        named = ", ".join(f"{index}/{count}" for index in missing)
        raise StoreError(f"shards are missing: {named}; measure them and merge again")


def _check_selections(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Refuse shards that were cut from different tests: together they are no run."""
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.selection != manifests[0].selection:
            raise StoreError(
                f"{folder.name} cannot be merged with {folders[0].name}, for they were cut from "
                "different tests: expected the same suites, --grain, -k, -m and --deselect for all "
                "shards; measure one of them again"
            )


def _check_whole(folder: Path, manifest: Manifest) -> None:
    """Refuse a shard whose files cannot be read, or whose log is not what it ended with."""
    left_out(folder)
    for _ in read_texts(folder):
        pass
    in_log = closed_tests(folder / LOG)
    # a run from before the number was written down is at least not empty
    if in_log != manifest.tests and (in_log == 0 or manifest.tests is not None):
        known = "" if manifest.tests is None else f"{manifest.tests} "
        remedy = (
            "restore it or measure it again"
            if in_log > (manifest.tests or 0)
            else f"continue it with --resume {folder.name}"
        )
        raise StoreError(
            f"shard {manifest.options[SHARD]} ({folder.name}): expected the {known}tests it ended "
            f"with, and its log has {in_log}; {remedy}"
        )
    checked_tests(folder / LOG)


def without_shard(manifest: Manifest) -> Manifest:
    """Return what the manifests of all shards of a run have in common."""
    options = {name: value for name, value in manifest.options.items() if name != SHARD}
    return replace(manifest, options=options, selection="")


def _added(timings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    phases = dict.fromkeys(phase for each in timings for phase in each)
    return {phase: sum(each.get(phase, 0.0) for each in timings) for phase in phases}


def _tests(log: Path) -> Iterator[str]:
    """Yield the rows of a log, some thousand whole tests at a time."""
    try:
        with log.open("rb") as lines:
            tests = _whole_tests(lines)
            while block := b"".join(islice(tests, TESTS_AT_ONCE)):
                yield block.decode()
    except OSError as error:
        raise StoreError(f"{log} cannot be read: {error.strerror}") from None


def _whole_tests(lines: Iterator[bytes]) -> Iterator[bytes]:
    test: list[bytes] = []
    for line in lines:
        test.append(line)
        if kind_of(line) in CLOSING:
            yield b"".join(test)
            test = []
