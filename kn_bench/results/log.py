"""Reading a run's log: rows one by one, and what a killed run left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kn_bench.results.codec import FormatError
from kn_bench.results.files import StoreError, atomically
from kn_bench.results.rows import CrashRow, Key, Row, VerdictRow, decode_row, kind_of

LOG = "measurements.jsonl"
CLOSING = frozenset({"verdict", "crash"})
"""The kinds of row that close a test's rows."""
KEYED = frozenset({"verdict", "edit", "curve", "generation"})
"""The kinds of row of which a log has one a key; all but a verdict go with a case's first test."""


REMEDY = "remove the lines of its test, down to the verdict, and --resume measures it again"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a log holds.

    Attributes:
        done: keys with a verdict other than an error.
        heads: beginnings of the lines of ``KEYED`` kinds, which hold their keys.
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
    """Yield the complete lines with their numbers, from 1; a torn last line is passed over.

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
                if not line.isascii():
                    line.decode()  # Arrow, which reads many lines at once, takes any bytes for text
                yield number, line
    except UnicodeDecodeError as error:
        raise StoreError(
            f"{path}, line {number} is not UTF-8 text (its byte {error.start}): {REMEDY}"
        ) from None
    except FileNotFoundError:
        raise StoreError(
            f"{path}: expected the run's log, and there is none; restore it or remove the folder"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def lines_of(path: Path, kind: str) -> Iterator[bytes]:
    """Yield the lines of one kind of a log that was read before: nothing is checked again.

    Raises:
        StoreError: when the file cannot be read any more.
    """
    begin = f'{{"row":"{kind}"'.encode()
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.startswith(begin) and line.endswith(b"\n"))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def rows(path: Path, kinds: frozenset[str] | None = None) -> Iterator[Row]:
    """Yield the rows of the log in order, of the given kinds only.

    Raises:
        StoreError: as for :func:`lines`, and for a row whose fields are not as they should be.
    """
    for number, line in lines(path):
        if kinds is None or kind_of(line) in kinds:
            yield _row(line, path, number)


def closed_tests(path: Path) -> int:
    """Return how many tests of the log are closed, by a verdict or by a crash.

    Raises:
        StoreError: as for :func:`lines`.
    """
    return sum(kind_of(line) in CLOSING for _, line in lines(path))


def checked_tests(path: Path) -> int:
    """Return the same of a log that must be whole: every row is read, and none may be left open.

    Raises:
        StoreError: as for :func:`rows`, and for an end that no verdict closes.
    """
    count = end = 0
    for test in _tests(path):
        count, end = count + 1, test.end
    if path.stat().st_size > end:
        raise StoreError(
            f"{path} ends within a test, after {count} whole ones: go on with the run by "
            f"--resume {path.parent.name}"
        )
    return count


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
    """Yield the complete tests of the log; every row is read, so that an error shows at once."""
    start = end = 0
    heads: list[bytes] = []
    for number, line in lines(path):
        end += len(line)
        row = _row(line, path, number)
        if kind_of(line) in KEYED:
            heads.append(head(line))
        if not isinstance(row, CrashRow | VerdictRow):
            continue
        failed = isinstance(row, CrashRow) or row.verdict.status == "error"
        yield _Test(start, end, row.key, failed, heads)
        start, heads = end, []


def head(line: bytes) -> bytes:
    """Return the beginning of a line of a ``KEYED`` kind, up to its task: its kind and key."""
    return line.partition(b',"task":')[0]


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
