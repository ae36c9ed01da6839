"""What the plug-in costs a test: 20,000 tests of the toy benchmark against 20,000 bare ones.

    python benchmarks/pytest_overhead.py [--tests 20000] [--repeat 3]

Both write the same number of files of parametrized tests; the bare ones assert the truth, ours
judge, write rows and keep count. CPU seconds of all processes, the least of the repeats, so that a
busy machine counts less; the difference a test is what the plug-in costs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

TOYS = Path(__file__).resolve().parents[1] / "tests" / "toy_bench.py"
CRITERIA = ("reliability", "generality", "locality", "symmetry", "synonym", "overturn")
BARE = """
import pytest

IDS = [f"kn-gpt-P36/case_{{i}}" for i in range({count})]

@pytest.mark.parametrize("number", range({count}), ids=IDS)
def test_{name}(number):
    assert number >= 0, "explained"
"""
METHOD = """
import toy_bench
from kn_bench.editing.registry import edit_method

toy_bench.install()

@edit_method("toy")
def toy(language_model):
    return toy_bench.Toy()
"""
PLUGINS = ("-p", "no:cacheprovider", "-q")


class Spent(NamedTuple):
    """CPU seconds of a session and its children, and wall seconds."""

    cpu: float
    wall: float


def session(folder: Path, *args: str, cases: int) -> Spent:
    """Run pytest in ``folder``."""
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "TOY_CASES": str(cases),
    }
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, *args],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(cpu, time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    cases = asked.tests // (len(CRITERIA) * 3)  # 3 relations, one model, one method
    tests = cases * len(CRITERIA) * 3
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bare, ours = Path(name, "bare"), Path(name, "ours")
        bare.mkdir()
        ours.mkdir()
        for criterion in CRITERIA:
            text = BARE.format(count=cases * 3, name=criterion)
            (bare / f"test_{criterion}.py").write_text(text)
        (ours / "toy_bench.py").write_text(TOYS.read_text())
        # no conftest: one that does not lie above the suites makes pytest itself slower
        (ours / "toy_method.py").write_text(METHOD)
        plugins = ("-p", "kn_bench.testing.plugin", "-p", "toy_method")
        asked_for = ("--pyargs", "kn_bench.suites", "--model", "toy-gpt", "--limit", "all")
        for label, how in (
            ("one process", ("-p", "xdist", "-n0")),
            ("4 workers", ("-p", "xdist", "-n4")),
            ("no xdist", ()),
        ):
            best = [
                min(session(folder, *how, *what, cases=cases) for _ in range(asked.repeat))
                for folder, what in ((bare, ()), (ours, (*plugins, *asked_for)))
            ]
            more = 1000 * (best[1].cpu - best[0].cpu) / tests
            rows.append((label, *(x for spent in best for x in spent), more))
    headers = ("", "bare CPU s", "wall s", "ours CPU s", "wall s", "ms a test more")
    print(f"{tests} tests")
    print(tabulate(rows, headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
