"""Verdicts drawn again from the rows of a log.

One by one, by the function that made them at first; or by column, which takes a fiftieth of the
time and leaves out their sentences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kn_bench.cases.case import Exclusion
from kn_bench.measure.criteria import Evidence, gives_rejected, judge_evidence
from kn_bench.measure.judging import judged
from kn_bench.measure.measurement import Measurement
from kn_bench.results.columns import chunks, reading, table_of
from kn_bench.results.files import StoreError
from kn_bench.results.frames import (
    CHUNK,
    EXPLANATION,
    PARSERS,
    Parsing,
    coded,
    read_tables,
    wait_for_all_but,
    with_codes,
)
from kn_bench.results.log import about, lines, parts, row_of
from kn_bench.results.rows import ExclusionRow, Key, VerdictRow, encode_row


def rejudged(log: Path, cases: Collection[str] | None = None) -> Iterator[VerdictRow]:
    """Yield the verdicts of ``log``, in its order, as today's definitions have them.

    What was not measured (not applicable, errors) stays as it was.

    Args:
        log: of a run.
        cases: whose verdicts are drawn; None for all.

    Raises:
        StoreError: when the log cannot be read, or a verdict does not stand after its measurements.
    """
    measured: defaultdict[Key, list[Measurement]] = defaultdict(list)
    excluded: defaultdict[Key, list[Exclusion]] = defaultdict(list)
    begun: dict[Key, tuple[int, str]] = {}
    judged = 0
    may_be = None if cases is None else about(cases)
    for number, line in lines(log):
        if may_be is not None and not may_be(line):
            continue
        row = row_of(line, log, number)
        if isinstance(row, Measurement):
            key = Key(row.model, row.method, row.case, row.criterion, row.occasion)
            begun.setdefault(key, (number, row.probe))
            of_test = measured[key]
            if any(row.probe == other.probe for other in of_test):
                raise StoreError(
                    f"{log}, line {number} measures {row.probe} of {row.case} a second time in one "
                    "test: remove one of the two lines"
                )
            of_test.append(row)
        elif isinstance(row, ExclusionRow):
            excluded[
                Key(row.model, row.method, row.exclusion.case, row.criterion, row.occasion)
            ].append(row.exclusion)  # fmt: skip
        elif isinstance(row, VerdictRow):
            given = measured.pop(row.key, [])
            if not given and row.verdict.scored:
                raise StoreError(
                    f"{log}, line {number} is a verdict on {row.case}, {row.criterion}, with a "
                    "score: expected its measurements before it; restore their lines"
                )
            begun.pop(row.key, None)
            judged = number
            yield _again(row, given, excluded.pop(row.key, []))
    for key, (number, probe) in begun.items():
        if number < judged:  # else it is what a killed run left of its last test
            raise StoreError(
                f"{log}, line {number} measures {probe} of {key.case}, and no verdict on "
                f"{key.criterion} follows: restore the order of the lines"
            )


def _again(row: VerdictRow, measured: list[Measurement], excluded: list[Exclusion]) -> VerdictRow:
    if row.verdict.status in ("not_applicable", "error"):
        return row
    given = Evidence(row.task, tuple(measured), tuple(excluded), _known_before(row, measured))
    return replace(row, verdict=judge_evidence(row.criterion, given))


def _known_before(row: VerdictRow, measured: list[Measurement]) -> bool | None:
    """Read it from the edited prompt where this test asked it, else as the verdict records it."""
    if row.criterion in ("reliability", "overturn") and measured:
        return gives_rejected(measured[0].before, row.task)
    return row.verdict.known_before


# --- by column ---------------------------------------------------------------------------------

JUDGED = ("measurement", "exclusion", "verdict")
TEST = ["model", "method", "case", "criterion", "protocol", "sequence", "asked"]


class _MixedError(Exception):
    """The lines of a log are not in the order in which tests write them."""


@dataclass(slots=True)
class _Tests:
    """The lines of some tests, in their order: those of a test end with its verdict.

    Attributes:
        lines: by kind.
        test: of each measurement and exclusion, the number of its test.
    """

    lines: dict[str, list[bytes]] = field(default_factory=lambda: {kind: [] for kind in JUDGED})
    test: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {kind: [] for kind in JUDGED[:2]}
    )

    def add(self, part: list[bytes], kinds: np.ndarray) -> None:
        """Add lines of the log."""
        is_verdict = kinds == "verdict"
        number = len(self.lines["verdict"]) + np.cumsum(is_verdict) - is_verdict
        for kind in JUDGED:
            of_kind = np.flatnonzero(kinds == kind)
            self.lines[kind] += [part[i] for i in of_kind]
            if kind in self.test:
                self.test[kind].append(number[of_kind])


def rejudged_tables(
    log: Path, kinds: Sequence[str], *, explained: bool
) -> dict[str, list[pa.Table]]:
    """Return the same as :func:`kn_bench.results.frames.read_tables`, with verdicts drawn again.

    They are drawn by column where no sentences are wanted and every row stands before the verdict
    of its test, as tests write them; else one by one.

    Raises:
        StoreError: as :func:`rejudged`.
    """
    others = [kind for kind in kinds if kind != "verdict"]
    if not explained:
        try:
            return _by_column(log, others)
        except _MixedError:
            pass  # it will be said which line is wrong, if any is
    leave_out = () if explained else (EXPLANATION,)
    again = (encode_row(row).encode() for row in rejudged(log))
    verdicts = [coded(chunk, "verdict", leave_out) for chunk in chunks(again)]
    return {**read_tables(log, others), "verdict": verdicts}


def _by_column(log: Path, others: Sequence[str]) -> dict[str, list[pa.Table]]:
    verdicts: list[Future[pa.Table]] = []
    tests = _Tests()
    with reading(log), ThreadPoolExecutor(PARSERS) as pool:
        tables = Parsing(pool, others, ())
        for part, names in parts(log):
            tables.add(part, names)
            kinds = np.array(names)
            end = int(np.flatnonzero(kinds == "verdict")[-1:].sum()) + 1
            tests.add(part[:end], kinds[:end])
            if len(tests.lines["verdict"]) >= CHUNK:
                verdicts.append(pool.submit(_judged, tests))
                wait_for_all_but(PARSERS, verdicts)
                tests = _Tests()
            tests.add(part[end:], kinds[end:])
        verdicts.append(pool.submit(_judged, tests))
        read = {**tables.done(), "verdict": [table.result() for table in verdicts]}
    pa.default_memory_pool().release_unused()
    return read


def _judged(tests: _Tests) -> pa.Table:
    """Return the verdicts of some tests.

    Raises:
        _MixedError: when a row is not of the test whose verdict follows.
    """
    verdicts = table_of(tests.lines["verdict"], "verdict", leave_out=(EXPLANATION,))
    measurements, exclusions = (_numbered(tests, kind, verdicts) for kind in JUDGED[:2])
    measured = np.bincount(measurements["test"].to_numpy(), minlength=len(verdicts)) > 0
    if pc.any(pc.and_(verdicts["verdict_score"].is_valid(), pa.array(~measured))).as_py():
        raise _MixedError
    return with_codes(judged(measurements, exclusions, verdicts))


def _numbered(tests: _Tests, kind: str, verdicts: pa.Table) -> pa.Table:
    """Return the measurements or exclusions of some tests, each with the number of its test."""
    table = table_of(tests.lines[kind], kind)
    test = np.concatenate([np.zeros(0, dtype=np.int64), *tests.test[kind]])
    within = test < len(verdicts)  # else it is what a killed run left of its last test
    table, test = table.filter(pa.array(within)), test[within]
    of_verdict = verdicts.select(TEST).take(pa.array(test))
    for name in TEST:
        own = table[f"exclusion_{name}" if kind == "exclusion" and name == "case" else name]
        if not pc.all(pc.equal(own, of_verdict[name])).as_py() and len(test):
            raise _MixedError
    if kind == "measurement":
        probes = pa.table({"test": test, "probe": table["probe"]}).group_by(["test", "probe"])
        if len(probes.aggregate([])) < len(test):
            raise _MixedError
    return table.append_column("test", pa.array(test))
