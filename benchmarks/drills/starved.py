"""Runs without room: a disk that is full at some byte, and 24 file descriptors.

A run that finds no room says so in one sentence, keeps what it has, and is continued once there is
room again.
"""

from __future__ import annotations

import random
import resource
from pathlib import Path

from benchmarks.drills.row import DrillRow
from benchmarks.drills.toys import Toys, as_in_a_terminal, check_text
from kn_bench.results.log import LOG

ROUNDS = 12
DESCRIPTORS = 24
SMALLEST = 8000
"""Bytes that a session may write at least: what it prints goes to a file too."""
STATED = (0, 3)
"""Exit statuses of a run that ended, and of one that says what it could not write."""


def full_disk(share: float, seed: int, folder: Path) -> DrillRow:
    """Let no file grow past a seeded size, then continue without that limit."""
    toys, dice, row = Toys(folder), random.Random(seed), DrillRow("disk full")
    size = (toys.folder_of("whole") / LOG).stat().st_size
    for number in range(max(2, round(ROUNDS * share))):
        # the last ones leave room for the log, not for the board
        limit = dice.randrange(SMALLEST, size) if number % 3 else dice.randrange(size, 2 * size)

        def prepare(limit: int = limit) -> None:
            as_in_a_terminal()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        run, workers = f"d{number}", f"-n{dice.choice((0, 2))}"
        process = toys.start("--run", run, workers, prepare=prepare, TOY_BOARD="1")
        status = toys.wait(process, row)
        output = toys.output(process)
        check_text(output, row)
        row.tried += 1
        row.notes["stopped with a sentence"] += "cannot be written" in output
        if status not in STATED:
            row.fault("unended", f"exit {status} at {limit} bytes: {output[-200:]}")
        toys.finish(run, row)
    return row


def few_descriptors(share: float, seed: int, folder: Path) -> DrillRow:
    """Run on 24 file descriptors, with and without workers."""
    toys, row = Toys(folder), DrillRow("24 descriptors")

    def prepare() -> None:
        as_in_a_terminal()
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))

    for number, workers in enumerate(("-n0", "-n1")[: max(1, round(2 * share))]):
        run = f"f{seed}{number}"
        process = toys.start("--run", run, workers, prepare=prepare)
        status = toys.wait(process, row)
        check_text(toys.output(process), row)
        row.tried += 1
        row.notes["ended at once"] += status == 0
        toys.finish(run, row)
    return row
