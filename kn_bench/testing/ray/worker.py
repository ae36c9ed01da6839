"""A pytest session that runs no tests: it computes units for an actor, one at a time.

A method may ask for any fixture of a conftest or a plug-in, so only pytest can make it. The session
collects one test for each model and method, whatever the run's size, and sets it up again for each
unit: the ``verdict`` fixture computes in place of judging. It is a process of its own, for pytest
and ``--timeout-per-unit`` want the main thread, which in an actor belongs to Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from kn_bench.editing.faults import told
from kn_bench.editing.registry import MethodSpec
from kn_bench.measure.verdict import Verdict
from kn_bench.testing import plugin
from kn_bench.testing.computing import Computed
from kn_bench.testing.options import Options
from kn_bench.testing.plan import TestPlan
from kn_bench.testing.points import Work
from kn_bench.testing.processes import receive, send
from kn_bench.testing.ray.messages import Hello, UnitDone, UnitWork, decode, encode
from kn_bench.testing.sequences import PlannedSequence
from kn_bench.testing.session import SuiteSession, point_of
from kn_bench.testing.worker_config import WORKER_INPUT, WorkerConfig

NEUTRAL: dict[str, Any] = {
    "keyword": "", "markexpr": "", "deselect": None, "lf": False, "failedfirst": False,
    "newfirst": False, "stepwise": False, "maxfail": 0, "collectonly": False, "log_file": None,
    "kn_bench_shard": None,
}  # fmt: skip
"""Options that choose among tests, or write files: they are the controller's."""


class UnitSession(SuiteSession):
    """Computes the unit that is set where another session would judge a test."""

    current: Work | None = None
    computed: Computed | None = None

    def verdict(self, request: pytest.FixtureRequest) -> Verdict:
        """Compute the unit, and end the test here."""
        work = self.current
        assert work is not None
        name = f"{work.method.name} on {work.model}, {len(work.cases)} cases"
        with self._progress.unit(name, len(work.cases)):
            self.computed = self._computer.compute(request, work)
        pytest.skip("computed")


class Worker:
    """A plug-in that makes a pytest session compute units."""

    def __init__(self, hello: Hello, inbox: BinaryIO, outbox: BinaryIO) -> None:
        self._hello, self._inbox, self._outbox = hello, inbox, outbox
        self._session: UnitSession | None = None
        self._failure = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Become a worker, whatever the user chose among tests."""
        hello = self._hello
        config.workerinput = {  # type: ignore[attr-defined]  # as xdist does
            "workerid": hello.name,
            "workercount": hello.worker_config["workers"],
            "testrunuid": hello.name,
            plugin.MESSAGE: os.devnull,
            WORKER_INPUT: hello.worker_config,
        }
        config.stash[plugin.SESSION] = self._make
        for name, value in NEUTRAL.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        config.args = list(dict.fromkeys(arg.partition("::")[0] for arg in config.args))

    def _make(
        self,
        options: Options,
        methods: Sequence[MethodSpec],
        worker_config: WorkerConfig,
        choices: Any,
    ) -> UnitSession:
        hello = self._hello
        progress = worker_config.progress
        if progress and not progress.parent.parent.is_dir():  # a machine without the run's folder
            worker_config = replace(worker_config, progress=None)
        plan = TestPlan(hello.models, {"unit": hello.sample}, (), {}, 1)
        self._session = UnitSession(options, plan, methods, worker_config, choices)
        return self._session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Compute units until the actor is gone."""
        tests: dict[tuple[str, str], pytest.Item] = {}
        for item in session.items:
            point = point_of(item)
            if point is not None and (not tests or _beside(item, tests)):
                tests.setdefault((point.method.name, point.model), item)
        send(self._outbox, b"ready")
        while (message := receive(self._inbox)) is not None:
            work = decode(UnitWork, message)
            test = tests.get((work.method, work.model))
            done = UnitDone(None, failure="no test of it was collected")
            send(self._outbox, _encoded(self._computed(test, work) if test else done))
        return True

    def _computed(self, test: pytest.Item, work: UnitWork) -> UnitDone:
        """Set a test up, whose verdict computes; tear down what belongs to it alone."""
        session, point = self._session, point_of(test)
        assert session is not None
        assert point is not None
        planned = None if work.sequence is None else PlannedSequence(work.sequence, work.cases)
        session.current = Work(point.method, work.model, work.cases, planned)
        session.computed, self._failure = None, ""
        # what is shared by a module or a session stays for the next unit
        test.ihook.pytest_runtest_protocol(item=test, nextitem=test.parent)
        if session.computed is None:
            return UnitDone(None, failure=self._failure or "its test was not set up")
        return UnitDone(*session.computed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._failure:
            self._failure = str(report.longrepr)


def _encoded(done: UnitDone) -> bytes:
    """Return a message with ``done``, or with why there is none that could hold it."""
    try:
        return encode(done)
    except Exception as error:  # what a method leaves may be anything
        return encode(UnitDone(None, failure=told(error)))


def _beside(item: pytest.Item, tests: dict[tuple[str, str], pytest.Item]) -> bool:
    return item.parent is next(iter(tests.values())).parent


def main() -> None:
    """Read units from one descriptor and write results to another."""
    inbox, outbox = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    message = receive(inbox)
    if message is None:
        return
    hello = decode(Hello, message)
    sys.path[:] = list(dict.fromkeys([*hello.sys_path, *sys.path]))
    if Path(hello.folder).is_dir():
        os.chdir(hello.folder)
    sys.exit(pytest.main(hello.arguments, plugins=[Worker(hello, inbox, outbox)]))


if __name__ == "__main__":
    main()
