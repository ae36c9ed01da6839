"""What collection costs by the number of facts: seconds, CPU seconds and memory.

    python benchmarks/collecting.py [--facts 2000 20000 200000] [--workers 4] [--profile]

A file of made-up facts that show all six criteria is collected for one model and one method:
`pytest --collect-only`, six tests a fact. The last columns extrapolate nothing; run 200,000 facts
to know what 1,200,000 tests take. --profile prints where the time of the largest goes.

Without --workers one process collects, and the memory is its own. With it a run is begun, which
ends once every worker has told its controller of its tests: CPU seconds are those of all processes,
the memory is the controller's and the largest worker's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

RELATIONS = 40
BASE = ("facts", "tests", "s", "CPU s")
ENDING = """
import os, pathlib, resource
import pytest

collected = []


@pytest.hookimpl(trylast=True)  # once xdist has sent the ids
def pytest_collection_finish(session):
    used = resource.getrusage(resource.RUSAGE_SELF)
    text = f"{used.ru_utime + used.ru_stime} {used.ru_maxrss}"
    pathlib.Path(f"{os.environ['PYTEST_XDIST_WORKER']}.used").write_text(text)


@pytest.hookimpl(trylast=True)
def pytest_xdist_node_collection_finished(node):
    collected.append(node)
    if len(collected) == node.workerinput["workercount"]:
        os._exit(0)  # its workers end with it
"""
"""A plug-in that ends a run where its tests would begin."""


def facts(count: int) -> list[dict[str, object]]:
    """Return made-up facts, each with what every criterion asks."""
    rows: list[dict[str, object]] = []
    for number in range(count):
        relation, city, other = f"R{number % RELATIONS}", f"Place {number}", f"Place {number + 1}"
        rows.append(
            {
                "subject": f"Subject {number}",
                "relation": relation,
                "prompt": "The capital of {} is",
                "target_true": city,
                "target_new": other,
                "paraphrases": ["The seat of government of {} is"],
                "synonyms": ["{} is ruled from"],
                "neighbours": [{"prompt": "The capital of France is", "answer": "Paris"}],
                "inverse": {"prompt": "{} is the capital of", "displaced": "France"},
            }
        )
    return rows


def collect(file: Path, *, workers: int, profile: bool) -> tuple[list[float], str]:
    """Return wall and CPU seconds, peak GB (with workers also of the largest), and the output."""
    # by --tx: -n starts no more workers than the machine has cores
    mode = ["-p", "ending", "-d", "--tx", f"{workers}*popen"] if workers else ["--collect-only"]
    (file.parent / "ending.py").write_text(ENDING)
    command = ["-m", "pytest", "--pyargs", "kn_bench.suites", *mode, "-qqq",
               "-p", "no:cacheprovider", "-p", "xdist", "-p", "kn_bench.testing.plugin",
               "--model", "tiny-gpt2", "--method", "none", "--cases", str(file)]  # fmt: skip
    how = ["-m", "cProfile", "-s", "tottime"] if profile else []
    path = os.pathsep.join([str(file.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
    }
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *how, *command],
        cwd=file.parent,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(output)
    seconds = time.perf_counter() - started
    used = [file.read_text().split() for file in file.parent.glob("*.used")]
    busy = usage.ru_utime + usage.ru_stime + sum(float(cpu) for cpu, _ in used)
    sizes = [usage.ru_maxrss, *sorted(int(kb) for _, kb in used)[-1:]]
    return [seconds, busy, *(kb * 1024 / 1e9 for kb in sizes)], output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    if asked.workers and asked.profile:
        parser.error("--profile: expected without --workers, of one process; leave either out")
    rows, output = [], ""
    with tempfile.TemporaryDirectory() as name:
        for count in asked.facts:
            file = Path(name, f"facts{count}.jsonl")
            file.write_text("".join(json.dumps(fact) + "\n" for fact in facts(count)))
            measured, output = collect(file, workers=asked.workers, profile=asked.profile)
            rows.append((count, count * 6, *measured))
    sizes = ("GB, controller", "GB, a worker") if asked.workers else ("GB",)
    columns = (*BASE, *sizes)
    print(tabulate(rows, columns, floatfmt=("", "", ".1f", ".1f", ".2f", ".2f")))
    if asked.profile:
        lines = output.splitlines()
        start = next(n for n, line in enumerate(lines) if line.lstrip().startswith("ncalls"))
        print("\n".join(lines[start : start + 40]))


if __name__ == "__main__":
    main()
