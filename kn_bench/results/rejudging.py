"""Verdicts drawn again from the rows of a log, by the one function that made them at first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kn_bench.cases.case import Exclusion
from kn_bench.measure.criteria import Evidence, gives_rejected, judge_evidence
from kn_bench.measure.measurement import Measurement
from kn_bench.results.files import StoreError
from kn_bench.results.log import rows
from kn_bench.results.rows import ExclusionRow, Key, VerdictRow


def rejudged(log: Path) -> Iterator[VerdictRow]:
    """Yield the verdicts of ``log``, in its order, as today's definitions have them.

    What was not measured (not applicable, errors) stays as it was.

    Raises:
        StoreError: when the log cannot be read, or a verdict does not stand after its measurements.
    """
    measured: defaultdict[Key, list[Measurement]] = defaultdict(list)
    excluded: defaultdict[Key, list[Exclusion]] = defaultdict(list)
    begun: dict[Key, tuple[int, str]] = {}
    judged = 0
    for number, row in enumerate(rows(log), start=1):
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
