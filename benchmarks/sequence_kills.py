"""Kill sequences of edits at random moments, continue them, and look for rows that differ.

    python benchmarks/sequence_kills.py [--kills 20] [--seed 0]

Each round starts the suites under ``sequence:8`` for ROME, whose steps stand alone, and MEMIT-seq,
which carries a state, and kills the process by SIGKILL at a seeded moment between its start and its
end. What is left is continued, and killed again or not as the dice have it, until it ends. Its rows
must then be those of a run that nobody touched, but for the seconds that edits took.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from tabulate import tabulate

from kn_bench.results import log
from kn_bench.results.manifest import read_manifest
from kn_bench.results.rows import EditRow

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
SESSIONS = 12
"""A run that does not end in so many sessions never will."""


@dataclass
class SequenceTally:
    """Counts of what happened to the runs.

    Attributes:
        after_steps: kills by the number of steps that were stored by then, of both methods.
    """

    kills: int = 0
    too_late: int = 0
    sessions: int = 0
    missing: int = 0
    different: int = 0
    unended: int = 0
    after_steps: Counter[int] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.different or self.unended)


class SequenceRounds:
    """Runs in ``folder``, killed as ``dice`` have it."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice, self.tally = folder, dice, SequenceTally()
        (folder / "conftest.py").write_text(CONFTEST)
        started = time.monotonic()
        if self._start("--run", "whole").wait() != 0:
            raise RuntimeError("the run that nobody touches does not succeed")
        self.duration = time.monotonic() - started
        self.whole = self.rows("whole")

    def round(self, number: int) -> None:
        """Start a run, kill it at least once, and continue it until it is complete."""
        run = f"r{number}"
        runs = self.folder / "reports" / "runs"
        how = ("--run", run)
        status = -1
        for session in range(SESSIONS):
            process = self._start(*how)
            self.tally.sessions += 1
            if session == 0 or self.dice.random() < 0.4:
                self._kill(process, runs / run)
            status = process.wait()
            if status == 0:
                break
            if (runs / run).exists():
                how = ("--resume", run)
        self.tally.unended += not (status == 0 and read_manifest(runs / run).finished)
        rows = self.rows(run)
        self.tally.missing += sum((self.whole - rows).values())
        self.tally.different += sum((rows - self.whole).values())

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, *args],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _kill(self, process: subprocess.Popen[bytes], run: Path) -> None:
        # the start of the process, before the first step, is a third of it
        time.sleep(self.dice.uniform(0.3, 1.0) * self.duration)
        if process.poll() is not None:
            self.tally.too_late += 1
            return
        self.tally.after_steps[len(list(run.glob("edits/*/*.json")))] += 1
        process.send_signal(signal.SIGKILL)
        self.tally.kills += 1

    def rows(self, run: str) -> Counter[str]:
        """Return the rows of a run in comparable form."""
        rows = log.rows(self.folder / "reports" / "runs" / run / log.LOG)
        return Counter(repr(_timeless(row)) for row in rows)


def _timeless(row: object) -> object:
    if isinstance(row, EditRow):
        return replace(row, record=replace(row.record, seconds=0.0))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rounds = SequenceRounds(Path(name), random.Random(asked.seed))
        number = 0
        while rounds.tally.kills < asked.kills:
            rounds.round(number)
            number += 1
    tally = rounds.tally
    table = [("killed", tally.kills), ("after the end", tally.too_late)]
    table += [(f"killed with {n} steps stored", k) for n, k in sorted(tally.after_steps.items())]
    table += [("sessions", tally.sessions), ("rows of the whole run", rounds.whole.total())]
    table += [("rows missing", tally.missing), ("rows that differ", tally.different)]
    table += [("runs without their end", tally.unended)]
    print(tabulate(table, (f"seed {asked.seed}", "n")))
    sys.exit(0 if tally.clean else 1)


if __name__ == "__main__":
    main()
