"""Runs under a wall clock that jumps: hours forwards and back, at every look.

Rows do not depend on the time of day, durations are never negative, and the run has its end.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.drills.row import DrillRow
from benchmarks.drills.toys import Toys, check_text
from kn_bench.results.manifest import read_manifest

ROUNDS = 6
JUMPING = """
import datetime, random, time

_dice, _real, _datetime = random.Random({seed}), time.time, datetime.datetime
_jump = lambda: _dice.choice((-90000, -3600, -1, 0, 1, 3600, 90000))

class Jumping(_datetime):
    @classmethod
    def now(cls, tz=None):
        return _datetime.now(tz) + datetime.timedelta(seconds=_jump())

time.time = lambda: _real() + _jump()
time.time_ns = lambda: int(time.time() * 1e9)
datetime.datetime = Jumping
"""


def drill(share: float, seed: int, folder: Path) -> DrillRow:
    """Measure one criterion, then continue with the others, under a jumping clock."""
    toys, row = Toys(folder), DrillRow("clock jumps")
    for number in range(max(1, round(ROUNDS * share))):
        run = f"c{number}"
        # imported by Python itself, in the controller and in its workers
        (folder / "sitecustomize.py").write_text(JUMPING.format(seed=seed + number))
        for how in (("--run", run, "-k", "generality"), ("--resume", run)):
            process = toys.start(*how, f"-n{2 * (number % 2)}", PYTHONPATH=str(folder))
            status = toys.wait(process, row)
            check_text(toys.output(process), row)
        row.tried += 1
        toys.check(run, status, row)
        timings = read_manifest(toys.folder_of(run)).timings
        negative = [name for name, seconds in timings.items() if seconds < 0]
        row.fault("different", f"{run}: negative {negative}", len(negative))
    return row
