"""Peak memory of a command and all its processes, shared pages counted once (Linux).

    python benchmarks/memory.py pytest suites/ -n 4 --model smollm2-135m --known --limit 1

Pss is a process's private memory plus its share of what it has in common with others, so that the
sum over processes is what the machine holds: weights that four workers map from one file count
once. Printed is the greatest sum seen, with the share of each process at that moment.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

EVERY = 5.0
"""Seconds between two looks, each of which takes the kernel a tenth of a second a process."""


def pss(process: psutil.Process) -> int:
    """Return the bytes of ``process``, its share of shared pages included; 0 where it is gone."""
    try:
        with Path(f"/proc/{process.pid}/smaps_rollup").open(encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    except (OSError, StopIteration):
        return 0


def peak_of(command: list[str]) -> tuple[dict[int, int], float, int]:
    """Run ``command``; return Pss by process at the greatest sum, CPU-seconds, and its status."""
    child = subprocess.Popen(command)
    root = psutil.Process(child.pid)
    greatest: dict[int, int] = {}
    spent: dict[int, float] = {}
    while child.poll() is None:
        try:
            family = [root, *root.children(recursive=True)]
            now = {process.pid: pss(process) for process in family}
            if sum(now.values()) > sum(greatest.values()):
                greatest = now
            for process in family:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    spent[process.pid] = times.user + times.system
            time.sleep(EVERY)
        except psutil.NoSuchProcess:
            break
        except KeyboardInterrupt:  # the command has had it too: what was seen until then is said
            continue
    return greatest, sum(spent.values()), child.wait()


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    started = time.monotonic()
    greatest, cpu, status = peak_of(sys.argv[1:])
    parts = ", ".join(f"{size / 2**20:.0f}" for size in sorted(greatest.values(), reverse=True))
    print(
        f"\npeak {sum(greatest.values()) / 2**30:.2f} GiB Pss in {len(greatest)} processes "
        f"(MiB: {parts}); {cpu:.0f} CPU-seconds, {time.monotonic() - started:.0f} s; exit {status}"
    )


if __name__ == "__main__":
    main()
