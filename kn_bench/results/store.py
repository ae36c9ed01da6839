"""A run's folder, and its log with one writer.

    reports/runs/<run>/
    ├── manifest.json          what the run is made of
    ├── exclusions.jsonl       what the sources of cases had to leave out
    ├── cases.jsonl            what was asked: requests and prompts
    ├── measurements.jsonl     the rows, appended test by test
    └── measurements.parquet   the measurements as columns, once the run is finished

A line is in the kernel's hands before its test is reported, and on the disk at the end of each
unit. What a killed run leaves is cut back to its last complete test when the run is continued.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from kn_bench.cases.case import Exclusion
from kn_bench.model.corpus import SELF
from kn_bench.results.codec import encode
from kn_bench.results.escaping import terminal
from kn_bench.results.files import StoreError, unwritable, write_text
from kn_bench.results.log import (
    CLOSING,
    KEYED,
    LOG,
    Contents,
    closed_tests,
    head,
    lines_of,
    repaired,
)
from kn_bench.results.manifest import (
    FILE,
    Manifest,
    differences,
    now,
    read_manifest,
    write_manifest,
)
from kn_bench.results.rows import EditRow, Key, decode_row, kind_of

RUNS = "runs"
EXCLUSIONS = "exclusions.jsonl"
PARQUET = "measurements.parquet"
LAST = "last"
"""The name that means the newest run."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CREATED = re.compile(r'"created":\s*"(\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]+\+00:00)"')
_CORPUS = re.compile(r"(?P<name>.+), \d+ (?P<of>tokens|texts), SHA-256 (?P<digest>[0-9a-f]{12})")
"""A note of the text that C was taken over, in tokens, or that a method read otherwise."""


class OtherTextError(StoreError):
    """A method has read another text than for the edits before."""


class RunStore:
    """The writer of one run; made by :meth:`create` or :meth:`resume`, a context manager.

    Attributes:
        folder: the run's folder.
        manifest: what the run is made of.
        done: keys of the tests that a continued run has already measured, frozen at the start.
        remedy: what is to be done, in a sentence, when the disk is full.
    """

    def __init__(self, folder: Path, manifest: Manifest, contents: Contents) -> None:
        self.folder = folder
        self.manifest = manifest
        self.done: frozenset[Key] = contents.done
        self.remedy = f"continue with --resume {manifest.run}"
        self._heads = set(contents.heads)
        self._texts: dict[tuple[str, str], str] = {}
        self._log = _open(folder / LOG)

    @classmethod
    def create(cls, reports: Path, manifest: Manifest) -> RunStore:
        """Return a new run ``manifest.run`` under ``reports/runs``.

        Raises:
            StoreError: when the name is taken or none, or the folder cannot be written.
        """
        store = cls.claim(reports, manifest)
        try:
            write_manifest(store.folder, manifest)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def claim(cls, reports: Path, manifest: Manifest) -> RunStore:
        """Take the name ``manifest.run`` for a run that has no manifest yet, and so is none.

        Raises:
            StoreError: as for :meth:`create`.
        """
        folder = reports / RUNS / checked_name(manifest.run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_taken(folder)
            store = cls(folder, manifest, Contents())  # takes the log, and with it the name
        except OSError as error:
            raise unwritable(folder, error) from None
        try:
            _refuse_taken(folder)  # by one that began and ended meanwhile
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def resume(cls, reports: Path, run: str, manifest: Manifest) -> RunStore:
        """Continue ``run`` (or ``last``), which ``manifest`` describes as it would be now.

        Tests that failed with an error or were lost with their worker are to be measured again:
        their rows are removed.

        Raises:
            StoreError: when there is no such run, when it is made of anything else, when another
                process writes it, or when its log is damaged elsewhere than at its end.
        """
        folder = find_run(reports, run)
        then = read_manifest(folder)
        if unlike := differences(then, manifest):
            raise StoreError(
                f"run {then.run!r} cannot be continued, for it was made of something else: "
                f"{'; '.join(unlike)}. Restore what differs, or start a new run"
            )
        manifest = then.going_on()
        store = cls(folder, manifest, Contents())  # takes the log before it is repaired
        try:
            store._continue(repaired(folder / LOG))
        except BaseException:
            store.close()
            raise
        write_manifest(folder, manifest)
        return store

    def _continue(self, contents: Contents) -> None:
        self.done = contents.done
        self._heads = set(contents.heads)
        if contents.rewritten:
            self._log.close()
            self._log = _open(self.folder / LOG)
        self._check_texts(lines_of(self.folder / LOG, "edit"))

    def append(self, text: str) -> None:
        """Add the rows of a test (see :func:`~kn_bench.results.rows.encode_rows`).

        An edit's record comes with each of its tests and is kept once; so is a test's verdict with
        all its rows, should they come twice.

        Raises:
            StoreError: when the disk is full or gone; the log then ends where it ended before.
            OtherTextError: when a method has read another text than before, for C or else.
        """
        lines, heads = self._new(text.encode().splitlines(keepends=True))
        self._check_texts(lines)
        self._write(b"".join(lines))
        self._heads |= heads

    def _check_texts(self, lines: Iterable[bytes]) -> None:
        """Refuse edits of one method that read two texts: where none is named, machines differ.

        Text that a model writes is one text; two kinds of machine may draw other tokens of it.
        """
        for line in lines:
            row = decode_row(line) if kind_of(line) == "edit" and b'"corpus":' in line else None
            note = row.record.notes.get("corpus") if isinstance(row, EditRow) else None
            if not isinstance(row, EditRow) or not (made := _CORPUS.fullmatch(str(note))):
                continue
            text = SELF if made["name"] == SELF else f"{made['name']} (SHA-256 {made['digest']})"
            was = self._texts.setdefault((row.model, row.method), text)
            if was != text:
                what = "C over" if made["of"] == "tokens" else "texts of"
                raise OtherTextError(
                    f"{row.method} on {row.model}: expected {what} {was}, as for the edits before, "
                    f"and found {text}; measure this where that text can be had, or all of it with "
                    "one named by --corpus"
                )

    def _write(self, data: bytes) -> None:
        """Write all of ``data``, or nothing."""
        end = self._log.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._log.write(data) :]
        except OSError as error:
            self._log.truncate(end)
            raise StoreError(
                f"{self.folder / LOG} cannot be written ({error.strerror}): make room and "
                f"{self.remedy}"
            ) from None

    def _new(self, lines: Iterable[bytes]) -> tuple[list[bytes], set[bytes]]:
        """Return ``lines`` without what the log has already, and the heads of the rest."""
        new: list[bytes] = []
        test: list[bytes] = []
        heads: set[bytes] = set()
        for line in lines:
            kind, key = kind_of(line), head(line)
            known = kind in KEYED and (key in self._heads or key in heads)
            if not known:
                test.append(line)
            if kind in CLOSING:
                new += [] if known else test
                heads.update(() if known else (head(row) for row in test if kind_of(row) in KEYED))
                test = []
        return new + test, heads

    def sync(self) -> None:
        """Wait until the rows are on the disk (a few ms: once a unit, not once a test)."""
        os.fsync(self._log.fileno())

    def leave_out(self, exclusions: Iterable[Exclusion]) -> None:
        """Write down what the sources of cases could not offer."""
        text = "".join(encode(exclusion) + "\n" for exclusion in exclusions)
        write_text(self.folder / EXCLUSIONS, text)

    def finish(self, timings: Mapping[str, float]) -> None:
        """Close the log, write the measurements as Parquet and say in the manifest when it ended.

        Args:
            timings: phase -> wall seconds of this session.
        """
        from kn_bench.results.columns import write_parquet

        self.close()
        write_parquet(self.folder / LOG, self.folder / PARQUET)
        self.manifest = self.manifest.ended(timings, closed_tests(self.folder / LOG))
        write_manifest(self.folder, self.manifest)

    def close(self) -> None:
        """Bring the log to the disk and close it; a closed store can be closed again."""
        if not self._log.closed:
            self.sync()
            self._log.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _refuse_taken(folder: Path) -> None:
    """Refuse a folder with a run; one with nothing but an empty log was killed before it began."""
    log = folder / LOG
    if any(path != log for path in folder.iterdir()) or (log.exists() and log.stat().st_size):
        raise StoreError(
            f"there is a run {folder.name!r} in {folder.parent}: continue it with "
            f"--resume {folder.name}, or choose another name"
        )


def checked_name(run: str) -> str:
    """Return ``run`` if it can name a run.

    Raises:
        StoreError: when it cannot.
    """
    if run == LAST or not NAME.fullmatch(run):
        raise StoreError(
            f"{run!r} cannot name a run: letters, digits, '_', '.' and '-', not '.' or '-' first, "
            f"and not {LAST!r}, which means the newest"
        )
    return run


def unused_name(reports: Path) -> str:
    """Return a name for a run that begins now: its time, UTC, with a number where that is taken.

    The time is to the microsecond: the folder is made when the tests are known, maybe minutes
    later, and until then another run would draw the same second.
    """
    name = re.sub(r"\D", "-", now()[: len("2026-01-31T12:00:00.000000")])
    names = (name, *(f"{name}-{i}" for i in range(2, 1000)))
    return next(name for name in names if not (reports / RUNS / name).exists())


def find_run(reports: Path, run: str) -> Path:
    """Return the folder of ``run``: a name under ``reports/runs``, ``last``, or a run's own folder.

    Raises:
        StoreError: when there is none, naming those there are; for ``last`` also when a manifest
            cannot be read and its run may be the newest.
    """
    dated, broken = _dated(reports)
    known = [folder for _, folder in dated]
    if run == LAST:
        _refuse_newer(broken, *(dated[-1] if dated else ("", Path())))
        if known:
            return known[-1]
    for folder in (reports / RUNS / run, Path(run)):
        if run != LAST and (folder / FILE).is_file():
            return folder
    names = ", ".join(terminal(folder.name) for folder in known[-5:]) or "none"
    raise StoreError(f"there is no run {run!r}: {reports / RUNS} has {names}")


def find_runs(reports: Path, names: Iterable[str]) -> list[Path]:
    """Return the folders of several runs; a folder of runs stands for all of them.

    Raises:
        StoreError: for a name that is none, or a folder without runs.
    """
    folders: list[Path] = []
    for name in names:
        folder = Path(name)
        if not folder.is_dir() or (reports / RUNS / name / FILE).is_file():
            folders.append(find_run(reports, name))
            continue
        inside = [folder] if (folder / FILE).is_file() else list(_inside(folder))
        if not inside:
            raise StoreError(f"{folder}: expected a run or a folder of runs; it has no {FILE}")
        folders += inside
    return folders


def _inside(folder: Path) -> Iterator[Path]:
    """Yield the runs in a folder of runs, or in its ``runs``."""
    manifests = sorted({*folder.glob(f"*/{FILE}"), *folder.glob(f"*/*/{FILE}")})
    yield from (path.parent for path in manifests)


def runs(reports: Path) -> list[Path]:
    """Return the folders of the runs under ``reports/runs`` that can be read, oldest first."""
    return [folder for _, folder in _dated(reports)[0]]


def _dated(reports: Path) -> tuple[list[tuple[str, Path]], list[tuple[Path, StoreError]]]:
    """Return when each run began with its folder, oldest first; and the broken manifests."""
    dated, broken = [], []
    for path in sorted((reports / RUNS).glob(f"*/{FILE}")):
        try:
            dated.append((read_manifest(path.parent).created, path.parent))
        except StoreError as error:
            broken.append((path, error))
    return sorted(dated), broken


def _refuse_newer(broken: Iterable[tuple[Path, StoreError]], created: str, newest: Path) -> None:
    """Refuse a manifest that cannot be read, unless it still says that its run is an older one.

    Args:
        broken: the manifests that cannot be read, and why.
        created: when the newest run that can be read began; "" where there is none.
        newest: its folder.
    """
    for path, error in broken:
        if not "" < _created(path) < created:
            raise StoreError(
                f"{LAST!r} may be a run whose manifest cannot be read (mend or remove it, or "
                f"name the run that you mean): {error}"
            )
        older = f"passed over a run that is older than run {newest.name}"
        warnings.warn(f"{LAST!r} {older}: {error}", stacklevel=3)


def _created(path: Path) -> str:
    """Return when a run began as a broken manifest has it, or "" where it does not say so."""
    with suppress(OSError):
        if stated := _CREATED.search(path.read_text("utf-8", "replace")):
            return stated[1]
    return ""


def _open(path: Path) -> BinaryIO:
    """Return the log, for appending, without a buffer of ours, locked against a second writer."""
    try:
        log = path.open("ab", buffering=0)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        return log
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        log.close()
        raise StoreError(
            f"{path.parent} is being written by another process: wait for it"
        ) from None
    return log
