"""Kill runs at random moments, continue them, and look for anything lost or doubled.

    python benchmarks/kills.py [--kills 100] [--seed 0]

Each round starts a run of the toy benchmark on 0, 1, 2 or 4 workers and kills it at a seeded moment
between its first second and its end, a third of them in its last second: the controller or a
worker by SIGKILL, or the controller by Ctrl-C, SIGTERM or SIGHUP. What is left is continued, and
killed again or not as the dice have it, until it ends; its log must then be that of a run that
nobody touched, row for row, and the run must have its end.
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
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from kn_bench.results import log
from kn_bench.results.manifest import read_manifest

TOYS = Path(__file__).resolve().parents[1] / "tests" / "toy_bench.py"
CONFTEST = """
import toy_bench
from kn_bench.editing.registry import edit_method

toy_bench.install()

@edit_method("toy-a")
def toy_a(language_model):
    return toy_bench.Toy()

@edit_method("toy-b", models="causal")
def toy_b(language_model):
    return toy_bench.Toy()

def pytest_configure(config):
    config.pluginmanager.register(toy_bench.Killer())
"""
COMMAND = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
    *("-p", "xdist", "-p", "kn_bench.testing.plugin", "--pyargs", "kn_bench.suites"),
    *("--method", "toy-a", "--method", "toy-b"),  # whatever else is installed
)
SIGNALS = {
    "Ctrl-C": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "SIGHUP": signal.SIGHUP,
    "controller": signal.SIGKILL,
}
"""What is sent to the controller; a closed terminal sends SIGHUP."""
VICTIMS = (*SIGNALS, "worker")
SESSIONS = 12
"""A run that does not end in so many sessions never will."""


@dataclass
class Tally:
    """What became of the runs."""

    kills: Counter[str] = field(default_factory=Counter)
    too_late: int = 0
    sessions: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    torn: int = 0
    unended: int = 0

    @property
    def clean(self) -> bool:
        bad = (self.lost, self.doubled, self.different, self.torn, self.unended)
        return not any(bad)


class Rounds:
    """Runs in ``folder``, killed as ``dice`` have it."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice, self.tally = folder, dice, Tally()
        (folder / "toy_bench.py").write_text(TOYS.read_text())
        (folder / "conftest.py").write_text(CONFTEST)
        started = time.monotonic()
        if self._start("--run", "whole").wait() != 0:
            raise RuntimeError("the run that nobody touches does not succeed")
        self.duration = time.monotonic() - started
        self.whole = self.rows("whole")

    def round(self, number: int) -> None:
        """One run, killed at least once, continued until it has everything."""
        run, how = f"r{number}", ("--run", f"r{number}")
        for session in range(SESSIONS):
            process = self._start(*how, f"-n{self.dice.choice((0, 1, 2, 4))}")
            self.tally.sessions += 1
            if session == 0 or self.dice.random() < 0.3:
                self._kill(process)
            status = process.wait()
            if status == 0:
                break
            if (self.folder / "reports/runs" / run).exists():
                how = ("--resume", run)
        manifest = read_manifest(self.folder / "reports/runs" / run)
        self.tally.unended += not (status == 0 and manifest.finished)
        self._compare(self.rows(run))

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
            "TOY_SLOW": "0.004",
        }
        return subprocess.Popen(
            [*COMMAND, *args],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        # a third of them in the last second, when the log is closed and the board is written
        last = self.dice.random() < 1 / 3
        moment = self.dice.uniform(0.2, 1.0) * self.duration
        time.sleep(max(0.1, self.duration - self.dice.random()) if last else moment)
        victim = self.dice.choice(VICTIMS)
        children = _children(process.pid)
        if process.poll() is not None:
            self.tally.too_late += 1
            return
        if victim == "worker" and children:
            os.kill(self.dice.choice(children), signal.SIGKILL)
        else:
            victim = "controller" if victim == "worker" else victim
            process.send_signal(SIGNALS[victim])
        self.tally.kills[victim] += 1

    def rows(self, run: str) -> list[str]:
        """The rows of a run in comparable form."""
        path = self.folder / "reports/runs" / run / log.LOG
        self.tally.torn += not path.read_bytes().endswith(b"\n")
        return sorted(map(repr, log.rows(path)))

    def _compare(self, rows: list[str]) -> None:
        ours, theirs = Counter(rows), Counter(self.whole)
        self.tally.lost += sum((theirs - ours).values())
        self.tally.doubled += sum(n - 1 for n in ours.values() if n > 1)
        self.tally.different += sum((ours - theirs).values())


def _children(pid: int) -> list[int]:
    """The workers of a controller (Linux; elsewhere none is found)."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def kill_runs(kills: int, seed: int, folder: Path) -> Tally:
    """Rounds until ``kills`` sessions have been killed."""
    rounds = Rounds(folder, random.Random(seed))
    number = 0
    while rounds.tally.kills.total() < kills:
        rounds.round(number)
        number += 1
    return rounds.tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tally = kill_runs(asked.kills, asked.seed, Path(name))
    rows = [(victim, tally.kills[victim]) for victim in VICTIMS]
    rows += [("after the end", tally.too_late), ("sessions", tally.sessions)]
    rows += [("rows lost", tally.lost), ("rows doubled", tally.doubled)]
    rows += [("rows that differ", tally.different), ("torn lines left", tally.torn)]
    rows += [("runs without their end", tally.unended)]
    print(tabulate(rows, (f"seed {asked.seed}", "n")))
    sys.exit(0 if tally.clean else 1)


if __name__ == "__main__":
    main()
