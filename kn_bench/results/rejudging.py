"""Verdicts drawn again from the rows of a log, by the one function that made them at first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kn_bench.cases.case import Exclusion
from kn_bench.measure.criteria import Evidence, gives_rejected, judge_evidence
from kn_bench.measure.measurement import Measurement
from kn_bench.results.log import rows
from kn_bench.results.rows import ExclusionRow, Key, VerdictRow


def rejudged(log: Path) -> Iterator[VerdictRow]:
    """The verdicts of ``log``, in its order, as today's definitions have them.

    What was not measured (not applicable, errors) stays as it was.

    Raises:
        StoreError: when the log cannot be read.
    """
    measured: defaultdict[Key, list[Measurement]] = defaultdict(list)
    excluded: defaultdict[Key, list[Exclusion]] = defaultdict(list)
    for row in rows(log):
        if isinstance(row, Measurement):
            measured[Key(row.model, row.method, row.case, row.criterion, row.occasion)].append(row)
        elif isinstance(row, ExclusionRow):
            excluded[
                Key(row.model, row.method, row.exclusion.case, row.criterion, row.occasion)
            ].append(row.exclusion)  # fmt: skip
        elif isinstance(row, VerdictRow):
            yield _again(row, measured.pop(row.key, []), excluded.pop(row.key, []))


def _again(row: VerdictRow, measured: list[Measurement], excluded: list[Exclusion]) -> VerdictRow:
    if row.verdict.status in ("not_applicable", "error"):
        return row
    given = Evidence(row.task, tuple(measured), tuple(excluded), _known_before(row, measured))
    return replace(row, verdict=judge_evidence(row.criterion, given))


def _known_before(row: VerdictRow, measured: list[Measurement]) -> bool | None:
    """From the edited prompt where this test asked it, else as recorded with the verdict."""
    if row.criterion in ("reliability", "overturn") and measured:
        return gives_rejected(measured[0].before, row.task)
    return row.verdict.known_before
