"""A benchmark in miniature to run pytest on, in a process of its own."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from tabulate import tabulate

from tests.shapes import check_shapes

if os.environ.get("KN_BENCH_SHAPES"):  # before any of those packages is imported
    check_shapes()

from kn_bench.results import log
from kn_bench.results.rows import VerdictRow
from tests.golden import deviation

# no deadlines: a busy machine is no failure
settings.register_profile("default", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=10_000, print_blob=True)
settings.load_profile("default")

PLUGINS = ("-p", "kn_bench.testing.plugin", "-p", "xdist", "-p", "no:cacheprovider")
"""Named one by one, for the others that happen to be installed take a second to be imported."""
TOYS = Path(__file__).with_name("toy_bench.py")
CONFTEST = """
import toy_bench
from kn_bench.editing.registry import edit_method

toy_bench.install()

@edit_method("toy-a")
def toy_a(language_model):
    return toy_bench.Toy()

@edit_method("toy-b", models="causal")
def toy_b(language_model):
    return toy_bench.Toy()

def pytest_configure(config):
    config.pluginmanager.register(toy_bench.Killer())
"""


@dataclass
class Bench:
    """Runs pytest on the toy benchmark in a folder of its own."""

    pytester: pytest.Pytester
    monkeypatch: pytest.MonkeyPatch

    @property
    def path(self) -> Path:
        return self.pytester.path

    def run(self, *args: str, suites: bool = True, **environment: str) -> pytest.RunResult:
        for name, value in environment.items():
            self.monkeypatch.setenv(name, value)
        named = ("--pyargs", "kn_bench.suites") if suites else ()
        result = self.pytester.runpytest_subprocess(*PLUGINS, *named, *args, timeout=300)
        for name in environment:
            self.monkeypatch.delenv(name)
        return result

    def rows(self, run: str = "*"):
        """The rows of the log of ``run``, of the newest run when none is named."""
        folders = sorted((self.path / "reports/runs").glob(run))
        return list(log.rows(folders[-1] / log.LOG))

    def verdicts(self, run: str = "*") -> list[VerdictRow]:
        return [row for row in self.rows(run) if isinstance(row, VerdictRow)]

    @property
    def computed(self) -> list[tuple[str, str]]:
        """Model and method of each unit that was computed."""
        path = self.path / "computed.log"
        if not path.exists():
            return []
        return [(line.split()[0], line.split()[1]) for line in path.read_text().splitlines()]


@pytest.fixture
def bench(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(toy_bench=TOYS.read_text())
    pytester.makeconftest(CONFTEST)
    return Bench(pytester, monkeypatch)


@pytest.fixture
def close_to(request, record_property):
    """Compares with golden numbers, and notes how far off ours are for the table at the end."""

    def check(ours, theirs, tolerance: float, *, absolute: bool = False) -> None:
        off = deviation(ours, theirs, absolute=absolute)
        case = request.node.callspec.params["case"]
        record_property("parity", (case.manifest["experiment"], case.folder.name, off, tolerance))
        assert off <= tolerance

    return check


def pytest_terminal_summary(terminalreporter):
    """How near the golden files we are, where any were compared with."""
    noted = defaultdict(list)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "parity" and report.when == "call":
                    experiment, *rest = value
                    noted[experiment].append(rest)
    if noted:
        rows = [_parity(experiment, rest) for experiment, rest in sorted(noted.items())]
        terminalreporter.section("parity with published implementations")
        headers = ("experiment", "cases", "compared", "worst deviation", "its tolerance")
        terminalreporter.write_line(tabulate(rows, headers, floatfmt=".0e"))


def _parity(experiment, noted):
    """The comparison that used most of its tolerance."""
    _, off, tolerance = max(noted, key=lambda one: one[1] / one[2])
    return experiment, len({case for case, *_ in noted}), len(noted), off, tolerance


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    """The counts of the last line, such as ``{"passed": 3, "missed": 2}``."""
    counted = result.parseoutcomes()
    counted.pop("warnings", None)
    return counted


def measured(result: pytest.RunResult) -> int:
    """Tests that were run; with xdist the others are not counted, without they are deselected."""
    return sum(n for outcome, n in outcomes(result).items() if outcome != "deselected")


def comparable(rows) -> list[str]:
    """Rows in an order that does not depend on who measured them when."""
    return sorted(map(repr, rows))


def wait_for(condition, seconds: float = 30.0) -> None:
    """Wait until ``condition()``; AssertionError after ``seconds``."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def plain(text: str) -> str:
    """Text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture(scope="module")
def material():
    """What a study is made of, in miniature."""
    from tests.made_up_study import made_up_material

    return made_up_material()
