"""Logs larger than memory: seconds and memory of the board, the page, a comparison and rescoring.

    python benchmarks/large_logs.py [--rows 200000 2000000] [--only board]

A run of the toy benchmark is measured once and its rows are written again and again as new cases,
as a run of that many rows would have them: a measurement and a verdict a test, an edit a case and
method. Each command then reads that log in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tabulate import tabulate

from kn_bench.results.log import LOG
from tests.conftest import CONFTEST, TOYS

SUBJECTS = 16
ENVIRONMENT = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
COMMANDS = {
    "board": ("leaderboard", "{run}", "-o", "board.md"),
    "page": ("leaderboard", "{run}", "-o", "board.html"),
    "comparison of two methods": ("compare", "{run}", "{run}", "--methods", "toy-a", "toy-b"),
    "board, judged again": ("leaderboard", "{run}", "--judge-again", "-o", "again.md"),
}


def small_run(folder: Path) -> Path:
    """Measure the run whose rows are written again and again."""
    (folder / "toy_bench.py").write_text(TOYS.read_text())
    (folder / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "kn_bench.testing.plugin", "--pyargs", "kn_bench.suites", "--run", "small"]
    asked = ["--model", "toy-gpt", "--relation", "P36", "--limit", str(SUBJECTS)]
    subprocess.run([*command, *asked], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    return folder / "reports/runs/small"


def large_run(small: Path, rows: int) -> Path:
    """Write a run of about ``rows`` rows."""
    large = small.with_name(f"rows{rows}")
    large.mkdir()
    for file in small.iterdir():
        if file.name != LOG and file.is_file():
            shutil.copy(file, large)
    manifest = large / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"small"', f'"{large.name}"'))
    by_case: defaultdict[bytes, list[bytes]] = defaultdict(list)
    lines = (small / LOG).read_bytes().splitlines(keepends=True)
    for line in lines:
        by_case[line.partition(b'"case":"')[2].partition(b'"')[0]].append(line)
    texts = [b"".join(of_case) for of_case in by_case.values()]
    with (large / LOG).open("wb") as log:
        for copy in range(rows // len(lines)):
            number = b"_%d" % (copy * SUBJECTS)
            for text in texts:
                text = text.replace(b"subject_", b"subject" + number + b"_")
                # a cluster each, as another subject has
                log.write(text.replace(b'"subject ', b'"subject' + number + b" "))
    return large


def spend(folder: Path, words: tuple[str, ...], run: str) -> tuple[float, float, float]:
    """Return wall and CPU seconds and peak GB of a command of kn-bench."""
    code = "from kn_bench.commands.app import app; app()"
    command = [sys.executable, "-c", code, *(word.format(run=run) for word in words)]
    started = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError((folder / "output.txt").read_text()[-2000:])
    seconds = time.perf_counter() - started
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = small_run(folder)
        table = []
        for count in asked.rows:
            run = large_run(small, count)
            size = (run / LOG).stat().st_size / 1e9
            for what in asked.only:
                seconds, busy, gigabytes = spend(folder, COMMANDS[what], run.name)
                table.append((f"{count:,}", size, what, seconds, busy, gigabytes))
            shutil.rmtree(run)
    headers = ("rows", "GB of log", "command", "s", "CPU s", "GB of memory")
    print(tabulate(table, headers, floatfmt=("", ".2f", "", ".1f", ".1f", ".2f")))


if __name__ == "__main__":
    main()
