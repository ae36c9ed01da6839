"""Outcomes: a missed criterion is a finding, with a word and a letter of its own.

status           outcome    letter
holds            passed     .
missed           missed     m      a failure with --strict-criteria
not_applicable   skipped    s      with the reason
excluded         skipped    s      "excluded: " and the reason
error            error      E
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from kn_bench.measure.verdict import Verdict
from kn_bench.results.escaping import terminal
from kn_bench.results.summary import junit_properties
from kn_bench.testing.items import unit_of

ROWS = "kn_bench rows"
"""Property of a report that holds the rows of its test, as one text."""
STATUS = "kn_bench.status"
"""Property of a report: its verdict's status."""
UNMEASURED = (
    "the test was not measured: something in this session (a fixture called verdict, a plug-in) "
    "takes the place of kn_bench's own; remove or rename it"
)
SECONDS = "kn_bench seconds"
"""Property of the report of the test that computed a unit: where the time went."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a test leaves for its report.

    Attributes:
        verdict: the outcome.
        rows: the rows to be logged, as text.
        seconds: phase -> seconds as JSON text, of the test that computed its unit; else "".
    """

    verdict: Verdict
    rows: str
    seconds: str = ""


RECORD = pytest.StashKey[Record]()


def conclude(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of a test over many cases: it holds when all scored cases hold."""
    if len(verdicts) == 1:
        return verdicts[0]
    for verdict in verdicts:
        if verdict.status == "error":
            return verdict
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    if not scores:
        return verdicts[0]
    held = sum(verdict.holds for verdict in verdicts)
    return replace(
        verdicts[0],
        status="holds" if held == len(scores) else "missed",
        score=sum(scores) / len(scores),
        explanation=f"{held} of {len(scores)} cases hold; {len(verdicts) - len(scores)} not scored",
    )


def stop_unless_scored(verdict: Verdict) -> None:
    """End the test here when there is nothing to assert: skipped with a reason, or an error."""
    reason = terminal(verdict.reason or verdict.explanation)
    if verdict.status == "not_applicable":
        pytest.skip(reason)
    if verdict.status == "excluded":
        pytest.skip(f"excluded: {reason}")
    if verdict.status == "error":
        pytest.fail(terminal(verdict.explanation), pytrace=False)


def shown(verdict: Verdict) -> Verdict:
    """Return the verdict for a suite to assert: pytest prints its explanation as it stands.

    It holds what a model generated and what a method raised, control sequences and all.
    """
    return replace(verdict, explanation=terminal(verdict.explanation))


class ItemOutcomes:
    """Hooks of the process that runs the tests.

    Args:
        strict: whether a missed criterion fails its test.
        junit: whether a JUnit XML file is written, which is to say what the verdicts were.
    """

    def __init__(self, *, strict: bool, junit: bool) -> None:
        self._strict = strict
        self._junit = junit

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
        """Take the failed assertion of a missed criterion for a finding."""
        try:
            return (yield)
        except AssertionError:
            record = pyfuncitem.stash.get(RECORD, None)
            if self._strict or record is None or record.verdict.status != "missed":
                raise
            return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send the rows with the test's one report that says how it went."""
        report = yield
        record = item.stash.get(RECORD, None)
        if record is None:
            # one of ours cannot pass without a record
            if report.when == "call" and report.passed and unit_of(item):
                report.outcome = "failed"
                report.longrepr = UNMEASURED
            return report
        if report.when == "teardown":
            del item.stash[RECORD]  # a worker holds all of its items to the end
            if self._junit:  # its writer reads the properties of this report
                report.user_properties += junit_properties(record.verdict)
        elif report.when == "call" or not report.passed:
            report.user_properties.append((ROWS, record.rows))
            report.user_properties.append((STATUS, record.verdict.status))
            if record.seconds:
                report.user_properties.append((SECONDS, record.seconds))
        return report


def teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Return ``missed``, m, MISSED for a passed test whose verdict is missed."""
    if report.when == "call" and report.passed and (STATUS, "missed") in report.user_properties:
        return "missed", "m", ("MISSED", {"yellow": True})
    return None
