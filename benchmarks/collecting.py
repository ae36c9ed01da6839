"""What collection costs by the number of facts: seconds, CPU seconds and memory of one process.

    python benchmarks/collecting.py [--facts 2000 20000 200000] [--profile]

A file of made-up facts that show all six criteria is collected for one model and one method:
`pytest --collect-only`, six tests a fact. The last columns extrapolate nothing; run 200,000 facts
to know what 1,200,000 tests take. --profile prints where the time of the largest goes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

RELATIONS = 40


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


def collect(file: Path, *, profile: bool) -> tuple[float, float, float, str]:
    """Return wall and CPU seconds, peak GB and the output of one collection."""
    command = ["-m", "pytest", "--pyargs", "kn_bench.suites", "--collect-only", "-qqq",
               "-p", "no:cacheprovider", "-p", "xdist", "-p", "kn_bench.testing.plugin",
               "--model", "tiny-gpt2", "--method", "none", "--cases", str(file)]  # fmt: skip
    how = ["-m", "cProfile", "-s", "tottime"] if profile else []
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
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
    return seconds, usage.ru_utime + usage.ru_stime, _gigabytes(usage), output


def _gigabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    rows, output = [], ""
    with tempfile.TemporaryDirectory() as name:
        for count in asked.facts:
            file = Path(name, f"facts{count}.jsonl")
            file.write_text("".join(json.dumps(fact) + "\n" for fact in facts(count)))
            seconds, busy, gigabytes, output = collect(file, profile=asked.profile)
            rows.append((count, count * 6, seconds, busy, gigabytes))
    print(
        tabulate(
            rows, ("facts", "tests", "s", "CPU s", "GB"), floatfmt=("", "", ".1f", ".1f", ".2f")
        )
    )
    if asked.profile:
        lines = output.splitlines()
        start = next(n for n, line in enumerate(lines) if line.lstrip().startswith("ncalls"))
        print("\n".join(lines[start : start + 40]))


if __name__ == "__main__":
    main()
