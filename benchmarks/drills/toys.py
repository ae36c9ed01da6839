"""Runs of the toy benchmark in processes of their own, for drills that stop or starve them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.drills.row import DrillRow
from kn_bench.results import log
from kn_bench.results.files import StoreError
from kn_bench.results.manifest import read_manifest
from tests.conftest import CONFTEST, TOYS

COMMAND = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
    *("-p", "xdist", "-p", "kn_bench.testing.plugin", "--pyargs", "kn_bench.suites"),
    *("--method", "toy-a", "--method", "toy-b"),  # whatever else is installed
)
PATIENCE = 300.0
"""Seconds after which a session counts as hanging."""
SESSIONS = 12
"""A run that does not end in so many sessions never will."""


def as_in_a_terminal() -> None:
    """Take signals as a program in a terminal does: nohup and ``&`` have children ignore them."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


class Toys:
    """Runs in one folder, and the run that nobody touches.

    Attributes:
        duration: seconds of the whole run.
        whole: its rows in comparable form.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._outputs: dict[int, Path] = {}
        self.environment = {"TOY_SLOW": "0.004", **environment}
        (folder / "toy_bench.py").write_text(TOYS.read_text())
        (folder / "conftest.py").write_text(CONFTEST)
        started = time.monotonic()
        process = self.start("--run", "whole")
        if process.wait(PATIENCE) != 0:
            raise RuntimeError(f"the whole run does not succeed:\n{self.output(process)}")
        self.duration = time.monotonic() - started
        self.whole = self.rows("whole")

    def start(
        self,
        *args: str,
        prepare: Callable[[], None] = as_in_a_terminal,
        command: Sequence[str] = COMMAND,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Start a session; its output goes to a file of its own."""
        number = len(list(self.folder.glob("session-*.txt")))
        with (self.folder / f"session-{number:05}.txt").open("wb") as output:
            process = subprocess.Popen(
                [*command, *args],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                    "OMP_NUM_THREADS": "1",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    **self.environment,
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare,
            )
        self._outputs[process.pid] = Path(output.name)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a session has written so far."""
        return self._outputs[process.pid].read_text("utf-8", "replace")

    def wait(self, process: subprocess.Popen[bytes], row: DrillRow) -> int:
        """Wait for a session to end; one that hangs is counted and killed."""
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            row.fault("hangs", self.output(process)[-200:])
            process.kill()
            return process.wait()

    def folder_of(self, run: str) -> Path:
        return self.folder / "reports/runs" / run

    def rows(self, run: str) -> list[str]:
        """Return the rows of a run in comparable form."""
        return sorted(map(repr, log.rows(self.folder_of(run) / log.LOG)))

    def finish(self, run: str, row: DrillRow, workers: Sequence[str] = ("-n0",)) -> None:
        """Continue a run until it ends, and hold it against the whole one."""
        for session in range(SESSIONS):
            how = "--resume" if self.folder_of(run).exists() else "--run"
            process = self.start(how, run, workers[session % len(workers)])
            if self.wait(process, row) == 0:
                break
        check_text(self.output(process), row)
        self.check(run, process.returncode, row)

    def check(self, run: str, status: int, row: DrillRow) -> None:
        """Hold a run that has ended against the whole one."""
        try:
            ended = status == 0 and bool(read_manifest(self.folder_of(run)).finished)
            row.fault("unended", f"{run} exits {status}", int(not ended))
            torn = not (self.folder_of(run) / log.LOG).read_bytes().endswith(b"\n")
            row.fault("torn", run, int(torn))
            row.compare(self.rows(run), self.whole, run)
        except (StoreError, OSError) as error:
            row.fault("unended", str(error))


def check_text(output: str, row: DrillRow) -> None:
    """Count what a session must never print.

    A Ctrl-C that comes while the interpreter is still importing pytest ends in Python's own
    traceback, which nothing of ours can catch.
    """
    if output.rstrip().endswith("KeyboardInterrupt") and "test session starts" not in output:
        return
    for mark in ("Traceback (most recent call last)", "INTERNALERROR"):
        if mark in output:
            text = output[output.index(mark) :]
            # the error itself stands at the end
            short = len(text) < 4000
            row.fault("tracebacks", text if short else f"{text[:2000]}\n...{text[-2000:]}")
            break
