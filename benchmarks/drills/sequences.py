"""Sequences of edits killed at seeded moments and continued, until they end.

Each round starts the suites under ``sequence:8`` for ROME, whose steps stand alone, and MEMIT-seq,
which carries a state, and kills the process by SIGKILL between its start and its end. What is left
is continued, and killed again or not as the dice have it. Its rows must be those of a run that
nobody touched, but for the seconds that edits took.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.drills.row import DrillRow
from benchmarks.drills.toys import PATIENCE, SESSIONS
from kn_bench.results import log
from kn_bench.results.manifest import read_manifest
from kn_bench.results.rows import EditRow

KILLS = 20
STEPS = 8
COMMAND = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
    *("--pyargs", "kn_bench.suites", "--model", "tiny-gpt2", "-m", "facts"),
    *("--method", "rome", "--method", "memit-seq", "--protocol", f"sequence:{STEPS}"),
    *("--relation", "P36", "--relation", "P37", "--limit", "6"),
)
CONFTEST = """
from kn_bench.measure import ability

ability.A_RELATION, ability.TEXT_LINES, ability.NEUTRAL = 1, 8, 4
"""
"""Few questions at checkpoints, so that most kills fall among the steps."""


def drill(share: float, seed: int, folder: Path) -> DrillRow:
    """Kill ``share`` of :data:`KILLS` runs of sequences."""
    row, runs = DrillRow("sequences"), _Runs(folder)
    dice, number = random.Random(seed), 0
    while row.tried < max(1, round(KILLS * share)):
        runs.round(f"r{number}", dice, row)
        number += 1
    return row


class _Runs:
    """Runs in one folder, and the run that nobody touches."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._output = folder, folder / "output.txt"
        (folder / "conftest.py").write_text(CONFTEST)
        started = time.monotonic()
        if self._start("--run", "whole").wait(PATIENCE) != 0:
            raise RuntimeError("the run that nobody touches does not succeed")
        self.duration = time.monotonic() - started
        self.whole = self._rows("whole")

    def round(self, run: str, dice: random.Random, row: DrillRow) -> None:
        """Start a run, kill it at least once, and continue it until it is complete."""
        folder, status = self._folder(run), -1
        for session in range(SESSIONS):
            process = self._start("--resume" if folder.exists() else "--run", run)
            row.notes["sessions"] += 1
            if session == 0 or dice.random() < 0.4:
                self._kill(process, folder, dice, row)
            try:
                status = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                row.fault("hangs", run)
                process.kill()
                return
            if status == 0:
                break
        if not (status == 0 and read_manifest(folder).finished):
            said = self._output.read_text(errors="replace")[-200:]
            row.fault("unended", f"{run} exits {status}: {said}")
        row.compare(self._rows(run), self.whole, run)

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        with self._output.open("w") as output:
            return subprocess.Popen(
                [*COMMAND, *args],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _kill(
        self, process: subprocess.Popen[bytes], folder: Path, dice: random.Random, row: DrillRow
    ) -> None:
        # the start of the process, before the first step, is a third of it
        time.sleep(dice.uniform(0.3, 0.9) * self.duration)
        if process.poll() is not None:
            row.notes["after the end"] += 1
            return
        stored = len(list(folder.glob("edits/*/*.json")))
        row.notes["among the steps" if stored else "before the first step"] += 1
        process.send_signal(signal.SIGKILL)
        row.tried += 1

    def _folder(self, run: str) -> Path:
        return self.folder / "reports" / "runs" / run

    def _rows(self, run: str) -> list[str]:
        rows = log.rows(self._folder(run) / log.LOG)
        return [repr(_timeless(row)) for row in rows]


def _timeless(row: object) -> object:
    if isinstance(row, EditRow):
        return replace(row, record=replace(row.record, seconds=0.0))
    return row
