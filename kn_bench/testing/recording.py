"""The one writer: every test's rows are in the run's log before its outcome is shown.

Lives in the controller, or in the only process there is. It also counts: each test that was
collected must be heard of again, or the session says so and exits with status 3.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from kn_bench.measure.protocols import occasion_of
from kn_bench.results.files import StoreError
from kn_bench.testing import outcomes, summary, units
from kn_bench.testing.outcomes import ROWS, SECONDS

if TYPE_CHECKING:
    from kn_bench.results.store import RunStore
    from kn_bench.testing.node_ids import NodeId
    from kn_bench.testing.options import Options
    from kn_bench.testing.plan import TestPlan

INCOMPLETE = 3
"""Exit status when a collected test was never heard of again, or rows could not be written."""
_RAN_TO_THE_END = (
    pytest.ExitCode.OK,
    pytest.ExitCode.TESTS_FAILED,
    pytest.ExitCode.NO_TESTS_COLLECTED,
)


class Recorder:
    """A plug-in that is registered once a suite of ours is collected.

    Args:
        store: the run's log.
        options: what the user asked for.
        plan: what is measured: names behind the slugs of test ids.
        methods: names of methods by slug.
    """

    def __init__(
        self, store: RunStore, options: Options, plan: TestPlan, methods: dict[str, str]
    ) -> None:
        self.store = store
        self._options = options
        self.plan = plan
        self._methods = methods
        self._meanings: dict[str, NodeId] = {}
        self._expected: dict[str, None] = {}
        self._accounted: set[str] = set()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._started = time.perf_counter()
        self._last_unit: tuple[str, ...] = ()
        self.lost: list[str] = []
        self.failure = ""
        self.finished = False
        self.missed_before = False
        self.ending: summary.Ending | None = None

    def expect(self, meanings: Mapping[str, NodeId]) -> None:
        """Note the tests that are to be heard of; a second worker's list changes nothing."""
        if not self._meanings:
            self._meanings = dict(meanings)
            self._expected = dict.fromkeys(meanings)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the report's rows and take them off the report."""
        rows = _take(report, ROWS)
        seconds = _take(report, SECONDS)
        if rows is not None:
            self._append(rows)
        if rows is not None or not report.passed:
            self._accounted.add(report.nodeid)
        if seconds:
            for phase, spent in json.loads(seconds).items():
                self._seconds[phase] += spent
        when: str = report.when  # xdist reports a crashed test as "???"
        if when == "???":
            self._append(self._crash_rows(report))
        if when in ("teardown", "???"):
            self._finished(report.nodeid)

    def _append(self, rows: str) -> None:
        try:
            self.store.append(rows)
        except StoreError as error:
            self.failure = str(error)
            pytest.exit(f"stopped: {error}", returncode=INCOMPLETE)

    def _finished(self, nodeid: str) -> None:
        """Bring each unit's rows to the disk when the next one begins.

        A test that ended well without a result stays expected: it was not measured.
        """
        if nodeid not in self._expected or nodeid not in self._accounted:
            return
        self._accounted.remove(nodeid)
        del self._expected[nodeid]
        node_id = self._meanings[nodeid]
        if node_id[1:3] != self._last_unit:
            self._last_unit = node_id[1:3]
            self.store.sync()

    def _crash_rows(self, report: pytest.TestReport) -> str:
        from kn_bench.results.rows import CrashRow, encode_lines

        node_id = self._meanings.get(report.nodeid)
        if node_id is None:
            return ""
        model = self.plan.models.get(node_id.model, node_id.model)
        method = self._methods.get(node_id.method, node_id.method)
        cases = [case.id for case in self.plan.labels.get(node_id.label, ())] or [node_id.label]
        about = (_criterion(node_id.criterion), str(report.longrepr), occasion_of(node_id.occasion))
        return encode_lines(CrashRow(model, method, case, *about) for case in cases)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> Any:
        return outcomes.teststatus(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Close the log; say in the exit status whether anything is missing."""
        units.remove(self.store.folder / units.FOLDER)
        self.store.close()
        asked_to_stop = bool(session.shouldfail or session.shouldstop)
        if self.failure or asked_to_stop or session.exitstatus not in _RAN_TO_THE_END:
            return
        self.lost = list(self._expected)
        if self.lost:
            session.exitstatus = INCOMPLETE
        else:
            self._finish(session)

    def _finish(self, session: pytest.Session) -> None:
        self._seconds["session"] = time.perf_counter() - self._started
        try:
            self.store.finish(self._seconds)
            self.ending = summary.end_run(self.store.folder, self._options)
            self.finished = True
        except StoreError as error:
            self.failure = str(error)
        except KeyboardInterrupt:  # the log is whole: a resumed run writes the board
            session.exitstatus = pytest.ExitCode.INTERRUPTED
            return
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK  # the run had them all
        if self._options.resume and self._options.strict and self.ending and self.ending.missed:
            self.missed_before = session.exitstatus == pytest.ExitCode.OK
            session.exitstatus = pytest.ExitCode.TESTS_FAILED  # as the whole run would have
        if self.failure or (self.ending and self.ending.failure):
            session.exitstatus = INCOMPLETE
        if self.ending and self.ending.gate and not self.ending.gate.passed:
            session.exitstatus = self.ending.gate.status

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.ending is not None:
            counted = self._counted()
            summary.show(terminalreporter, self.ending, self._options, counted)
            if self.missed_before:
                n = self.ending.missed
                terminalreporter.write_line(
                    f"exit status 1 by --strict-criteria: {n} {counted if n > 1 else counted[:-1]} "
                    "missed a criterion before this run was resumed",
                    red=True,
                )
        elif self.failure:
            terminalreporter.write_line(f"kn_bench: {self.failure}", red=True)
        elif self.lost:
            terminalreporter.write_line(f"kn_bench: {self.lost_sentence()}", red=True)
        elif not self.finished:
            run = self.store.manifest.run
            terminalreporter.write_line(f"kn_bench: go on with this run by --resume {run}")

    def _counted(self) -> str:
        """Return what the log has a row of: a test of one case is one verdict."""
        return "tests" if all(len(c) == 1 for c in self.plan.labels.values()) else "verdicts"

    def lost_sentence(self) -> str:
        """Return how many tests were collected and not measured, which, and what to do."""
        examples = ", ".join(self.lost[:3]) + (", ..." if len(self.lost) > 3 else "")
        return (
            f"{len(self.lost)} of the collected tests were not measured ({examples}): measure "
            f"them with --resume {self.store.manifest.run}"
        )


def _take(report: pytest.TestReport, name: str) -> str | None:
    """Return the value of a property, removed so that no other reporter repeats it."""
    for index, (key, value) in enumerate(report.user_properties):
        if key == name:
            del report.user_properties[index]
            return str(value)
    return None


def _criterion(name: str) -> Any:
    return name
