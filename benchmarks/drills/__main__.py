"""Run the drills and print their table; exit 1 where anything went wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.drills import clocks, cuts, edits, fuzz, hostile, kills, parts, starved
from benchmarks.drills.row import DrillRow, table

Drill = Callable[[float, int, Path], DrillRow]
DRILLS: dict[str, Drill] = {
    "kills": kills.drill,
    "shards": parts.shards,
    "jobs": parts.jobs,
    "actors": parts.actors,
    "cuts": cuts.drill,
    "disk": starved.full_disk,
    "descriptors": starved.few_descriptors,
    "clocks": clocks.drill,
    "fuzz": fuzz.drill,
    "hostile": hostile.drill,
    "edits": edits.drill,
}


def run(name: str, share: float, seed: int) -> DrillRow:
    """Run one drill in a folder of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        row = DRILLS[name](share, seed, Path(folder))
    row.seconds = time.monotonic() - started
    return row


def _default() -> list[str]:
    """Return all drills, without that of Ray's actors where Ray is not installed."""
    missing = {"actors"} if find_spec("ray") is None else set()
    return [name for name in DRILLS if name not in missing]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="how much of each drill (1.0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=DRILLS, default=_default())
    asked = parser.parse_args()
    rows = []
    for name in asked.only:
        rows.append(run(name, asked.share, asked.seed))
        print(f"{name}: {'clean' if rows[-1].clean else 'NOT CLEAN'}", file=sys.stderr, flush=True)
    print(table(rows))
    sys.exit(0 if all(row.clean for row in rows) else 1)


if __name__ == "__main__":
    main()
