"""Reading a run's log: rows one by one, and what a killed run left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kn_bench.results.codec import FormatError, encode
from kn_bench.results.files import StoreError, atomically
from kn_bench.results.rows import CrashRow, Key, Row, VerdictRow, decode_row, kind_of

LOG = "measurements.jsonl"
CLOSING = frozenset({"verdict", "crash"})
"""The kinds of row that close a test's rows."""
KEYED = frozenset({"verdict", "edit", "curve", "generation"})
"""The kinds of row of which a log has one a key; all but a verdict go with a case's first test."""


READ_AT_ONCE = 8_000_000
"""Bytes of a log that are read at once."""
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
    before = 0
    for part, _ in parts(path):
        yield from enumerate(part, start=before + 1)
        before += len(part)


def parts(path: Path) -> Iterator[tuple[list[bytes], list[str]]]:
    """Yield the same lines some thousand at a time, with the kinds of their rows.

    Raises:
        StoreError: as for :func:`lines`, once the lines before have been yielded.
    """
    before = 0
    try:
        with path.open("rb") as file:
            while part := file.readlines(READ_AT_ONCE):
                if not part[-1].endswith(b"\n"):
                    part.pop()  # only the last line can lack its end: it was cut off
                kinds = list(map(kind_of, part))
                # Arrow, which reads many lines at once, takes any bytes for text
                if not all(kinds) or not (all(map(bytes.isascii, part)) or _is_text(part)):
                    whole = next(i for i, line in enumerate(part) if not _is_row(line))
                    yield part[:whole], kinds[:whole]
                    raise _no_row(path, before + whole + 1, part[whole])
                yield part, kinds
                before += len(part)
    except FileNotFoundError:
        raise StoreError(
            f"{path}: expected the run's log, and there is none; restore it or remove the folder"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _is_row(line: bytes) -> bool:
    return bool(kind_of(line)) and _is_text([line])


def _is_text(part: Iterable[bytes]) -> bool:
    try:
        for line in part:
            line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _no_row(path: Path, number: int, line: bytes) -> StoreError:
    """Return the error that names a line which cannot be read as a row."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        if kind_of(line):
            return StoreError(
                f"{path}, line {number} is not UTF-8 text (its byte {error.start}): {REMEDY}"
            )
    return StoreError(
        f"{path}, line {number} is no row of a log; only the last line of a killed run may be "
        f"broken: {REMEDY}"
    )


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


def about(cases: Collection[str]) -> Callable[[bytes], bool]:
    """Return what tells whether a line may be about one of ``cases``, without parsing it.

    A line that another program wrote in another form always may; its row tells.
    """
    wanted = {encode(case).encode() for case in cases}

    def may_be(line: bytes) -> bool:
        _, _, rest = line.partition(b'"case":')
        case, comma, _ = rest.partition(b',"')
        return case in wanted or not comma or b"\\" in case

    return may_be


def rows(path: Path, kinds: frozenset[str] | None = None) -> Iterator[Row]:
    """Yield the rows of the log in order, of the given kinds only.

    Raises:
        StoreError: as for :func:`lines`, and for a row whose fields are not as they should be.
    """
    for number, line in lines(path):
        if kinds is None or kind_of(line) in kinds:
            yield row_of(line, path, number)


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
        row = row_of(line, path, number)
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


def row_of(line: bytes, path: Path, number: int) -> Row:
    """Return the row that a line holds.

    Raises:
        StoreError: naming the line, when it holds none.
    """
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
