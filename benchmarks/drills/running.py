"""All drills by name, and how one is run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.drills import clocks, cuts, edits, fuzz, hostile, kills, parts, sequences, starved
from benchmarks.drills.row import DrillRow

Drill = Callable[[float, int, Path], DrillRow]
DRILLS: dict[str, Drill] = {
    "sequences": sequences.drill,
    "actors": parts.actors,
    "edits": edits.drill,
    "jobs": parts.jobs,
    "kills": kills.drill,
    "cuts": cuts.drill,
    "fuzz": fuzz.drill,
    "shards": parts.shards,
    "disk": starved.full_disk,
    "clocks": clocks.drill,
    "hostile": hostile.drill,
    "descriptors": starved.few_descriptors,
}
"""The longest first, so that two at a time end together."""


def run(name: str, share: float, seed: int) -> DrillRow:
    """Run one drill in a folder of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        row = DRILLS[name](share, seed, Path(folder))
    row.seconds = time.monotonic() - started
    return row


def default() -> list[str]:
    """Return all drills, without that of Ray's actors where Ray is not installed."""
    missing = {"actors"} if find_spec("ray") is None else set()
    return [name for name in DRILLS if name not in missing]
