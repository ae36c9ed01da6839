"""Reading a run's log: rows one by one, and what a killed run left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kn_bench.results.codec import FormatError, parsed
from kn_bench.results.files import StoreError, atomically
from kn_bench.results.rows import CrashRow, Key, Row, decode_row, kind_of

LOG = "measurements.jsonl"
FAILED = b'"verdict":{"status":"error"'
"""What the line of a failed verdict has; within a text of JSON the quotes would be escaped."""
CLOSING = frozenset({"verdict", "crash"})
"""The kinds of row that close a test's rows."""
KEYED = frozenset({"verdict", "edit"})
"""The kinds of row of which a log has one a key."""


REMEDY = "remove the lines of its test, down to the verdict, and --resume measures it again"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a log holds.

    Attributes:
        done: keys with a verdict other than an error.
        heads: beginnings of the verdict and edit lines, which hold their keys.
        rewritten: the file was replaced by another in the repair.
    """

    done: frozenset[Key] = frozenset()
    heads: frozenset[bytes] = frozenset()
    rewritten: bool = False


@dataclass(slots=True)
class _Test:
    """The lines of one test: bytes [start, end) of the log."""

    start: int
    end: int
    key: Key
    failed: bool
    heads: list[bytes]


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The complete lines with their numbers, from 1; a torn last line is passed over.

    Raises:
        StoreError: when the file cannot be read, or a line in it is no row.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # only the last line can lack its end: it was cut off
                if not kind_of(line):
                    raise StoreError(
                        f"{path}, line {number} is no row of a log; only the last line of a "
                        f"killed run may be broken: {REMEDY}"
                    )
                yield number, line
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: the run has no log") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def rows(path: Path, kinds: frozenset[str] | None = None) -> Iterator[Row]:
    """The rows of the log in order, of the given kinds only.

    Raises:
        StoreError: as for :func:`lines`, and for a row whose fields are not as they should be.
    """
    for number, line in lines(path):
        if kinds is None or kind_of(line) in kinds:
            yield _row(line, path, number)


def repaired(path: Path) -> Contents:
    """Remove what is to be measured again: the rows of a cut-off test, of errors and crashes.

    Returns:
        What is left in the log.

    Raises:
        StoreError: as for :func:`rows`.
    """
    tests = list(_tests(path))
    kept = [test for test in tests if not test.failed]
    good = kept[-1].end if kept else 0
    rewritten = any(test.failed and test.end < good for test in tests)
    if rewritten:
        _keep(path, kept)
    else:
        with path.open("r+b") as file:
            file.truncate(good)
    return Contents(
        frozenset(test.key for test in kept),
        frozenset(head for test in kept for head in test.heads),
        rewritten,
    )


def _tests(path: Path) -> Iterator[_Test]:
    """The complete tests of the log.

    Each line is known to be JSON; whether its fields are as they should be is found out by those
    who read them, for that takes ten times as long.
    """
    start = end = 0
    heads: list[bytes] = []
    for number, line in lines(path):
        end += len(line)
        kind = kind_of(line)
        _check(line, path, number)
        if kind in KEYED:
            heads.append(head(line))
        if kind not in CLOSING:
            continue
        failed = kind == "crash" or FAILED in line
        yield _Test(start, end, _key(line, kind, path, number), failed, heads)
        start, heads = end, []


def head(line: bytes) -> bytes:
    """The beginning of a verdict or edit line, up to its task: what it is, and its key."""
    return line.partition(b',"task":')[0]


def _key(line: bytes, kind: str, path: Path, number: int) -> Key:
    """The key of a closing line, without reading the rest of it."""
    if kind == "crash":
        row = _row(line, path, number)
        assert isinstance(row, CrashRow)
        return row.key
    try:
        raw = json.loads(head(line) + b"}")
        key = Key(raw["model"], raw["method"], raw["case"], raw["criterion"])
        if all(isinstance(part, str) for part in key):
            return key
        raise ValueError("a key is made of texts")
    except (ValueError, KeyError):
        return _row(line, path, number).key  # type: ignore[union-attr]  # says what is wrong


def _check(line: bytes, path: Path, number: int) -> None:
    try:
        parsed(line)
    except (ValueError, RecursionError):
        _row(line, path, number)  # says what is wrong


def _row(line: bytes, path: Path, number: int) -> Row:
    try:
        return decode_row(line, f"{path}, line {number}")
    except FormatError as error:
        raise StoreError(f"{error}; {REMEDY}") from None


def _keep(path: Path, tests: list[_Test]) -> None:
    """Replace the log by the given tests of it."""
    with path.open("rb") as old, atomically(path) as new:
        for test in tests:
            old.seek(test.start)
            new.write(old.read(test.end - test.start))
