"""Run the drills, two at a time, and print their table; exit 1 where anything went wrong."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from benchmarks.drills.row import table
from benchmarks.drills.running import DRILLS, default, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drills", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="how much of each drill (1.0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=DRILLS, default=default())
    parser.add_argument("--at-once", type=int, default=2, help="how many drills at a time (2)")
    asked = parser.parse_args()
    rows = []
    # a drill mostly waits for its sessions; each has a process of its own
    with ProcessPoolExecutor(asked.at_once, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, name, asked.share, asked.seed): name for name in asked.only}
        for ended in as_completed(running):
            rows.append(ended.result())
            said = "clean" if rows[-1].clean else "NOT CLEAN"
            print(
                f"{running[ended]}: {said} ({rows[-1].seconds:.0f} s)", file=sys.stderr, flush=True
            )
    print(table(rows))
    sys.exit(0 if all(row.clean for row in rows) else 1)


if __name__ == "__main__":
    main()
