"""Kills of what computes a run in parts: shards, jobs of submitit, actors of Ray.

Two shards are killed as whole sessions are, each at least once, resumed, and merged in either
order. Jobs and actors are processes of a run that has to go on by itself: `kn-bench launch --local`
queues a shard again, `--engine ray` gives a unit to another actor. Each has to end with the rows of
the run that nobody touched.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from benchmarks.drills import kills
from benchmarks.drills.row import DrillRow
from benchmarks.drills.toys import COMMAND, SESSIONS, Toys
from kn_bench.results.files import StoreError
from kn_bench.results.merging import merge

KILLS = 20
LAUNCH = (
    *(sys.executable, "-c", "from kn_bench.commands.app import app; app()", "launch", "--local"),
    *("--shards", "2", "--at-once", "2", "--every", "0.2", "--run", "{run}", "--"),
    *("-q", "-p", "no:cacheprovider", "-p", "kn_bench.testing.plugin"),
    *("--pyargs", "kn_bench.suites", "--method", "toy-a", "--method", "toy-b"),
)
ENGINE = (*COMMAND, "--engine", "ray", "--actors", "2", "--run", "{run}")
SLOW_UNITS = {"TOY_UNIT_SECONDS": "1"}
"""So that there is time to kill a process while it computes."""


def shards(share: float, seed: int, folder: Path) -> DrillRow:
    """Kill ``share`` of :data:`KILLS` sessions that measure one of two shards."""
    toys, dice, row = Toys(folder), random.Random(seed), DrillRow("shards")
    number = 0
    while row.tried < max(1, round(KILLS * share)):
        parts = [f"r{number}-{part}" for part in (1, 2)]
        statuses = [_shard(toys, run, part, dice, row) for part, run in enumerate(parts, start=1)]
        dice.shuffle(parts)
        try:
            merge([toys.folder_of(run) for run in parts], folder / "reports", f"r{number}")
        except StoreError as error:
            row.fault("unended", str(error))
        toys.check(f"r{number}", max(statuses), row)
        number += 1
    return row


def _shard(toys: Toys, run: str, part: int, dice: random.Random, row: DrillRow) -> int:
    """Measure one shard, killed at least once and resumed until it ends."""
    status = -1
    for session in range(SESSIONS):
        how = "--resume" if toys.folder_of(run).exists() else "--run"
        process = toys.start(how, run, "--shard", f"{part}/2", f"-n{dice.choice((0, 2))}")
        if session == 0 or dice.random() < 1 / 3:
            moment = dice.uniform(0.1, 0.9) * toys.duration
            kills.kill(process, dice.choice(tuple(kills.SIGNALS)), moment, dice, row)
        status = toys.wait(process, row)
        row.notes["sessions"] += 1
        if status == 0:
            break
    return status


def _by_itself(
    name: str,
    command: Sequence[str],
    victims: str,
    share: float,
    seed: int,
    folder: Path,
) -> DrillRow:
    """Kill ``share`` of :data:`KILLS` processes of runs that go on by themselves.

    Args:
        name: of the drill.
        command: starts a run; ``{run}`` is its name.
        victims: what the command line of a process that is killed holds.
    """
    toys, dice, row = Toys(folder, **SLOW_UNITS), random.Random(seed), DrillRow(name)
    number = 0
    while row.tried < max(1, round(KILLS * share)):
        run = f"r{number}"
        process = toys.start(command=[word.format(run=run) for word in command])
        _kill_one(process, victims, dice, row)
        toys.check(run, toys.wait(process, row), row)
        row.notes["runs"] += 1
        number += 1
    return row


def _kill_one(
    process: subprocess.Popen[bytes], victims: str, dice: random.Random, row: DrillRow
) -> None:
    """Wait for the first victim, then kill one of those there are up to three seconds later."""
    while not _children(process, victims) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(dice.uniform(0.0, 3.0))
    living = _children(process, victims)
    if not living:
        row.notes["after the end"] += 1
        return
    try:
        dice.choice(living).kill()
        row.tried += 1
    except psutil.NoSuchProcess:
        row.notes["after the end"] += 1


def _children(process: subprocess.Popen[bytes], words: str) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []
    matching = []
    for child in children:
        try:
            if words in " ".join(child.cmdline()):
                matching.append(child)
        except psutil.Error:  # it has just ended
            continue
    return matching


jobs: Callable[[float, int, Path], DrillRow] = partial(_by_itself, "jobs", LAUNCH, "--shard")
"""Kills of the sessions that `kn-bench launch --local` has under way."""
actors: Callable[[float, int, Path], DrillRow] = partial(
    _by_itself, "actors", ENGINE, "kn_bench.testing.ray.worker"
)
"""Kills of the workers of Ray's actors."""
