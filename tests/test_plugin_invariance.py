"""The same measurements whatever computes them, in whatever order, batch and hash seed.

Equal means: the same rows, all that is not a float the same, floats to 1e-5. Which prompts share a
batch depends on what else is asked, and float32 sums are rounded by it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import pytest

from kn_bench.results import log
from kn_bench.results.merging import merge
from kn_bench.results.rows import EditRow, VerdictRow
from tests.conftest import PLUGINS

ASKED = (
    *("--method", "rome", "--method", "kn-edit", "--method", "in-context", "--limit", "2"),
    *("--relation", "P36", "--paradigm", "determiner_noun_agreement_1", "--model", "tiny-gpt2"),
)
TOLERANCE = 1e-5
BACKWARDS = """
def pytest_collection_modifyitems(items):
    items.reverse()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all runs are started."""
    path = tmp_path_factory.mktemp("invariance")
    (path / "backwards.py").write_text(BACKWARDS)
    return path


@pytest.fixture(scope="module")
def measure(folder):
    """Runs the suites and returns the rows in a fixed order, flat."""

    def run(name, *args, **environment):
        command = (sys.executable, "-m", "pytest", *PLUGINS, "--pyargs", "kn_bench.suites")
        process = subprocess.run(
            [*command, *ASKED, "--run", name, "-q", *args],
            cwd=folder,
            env={
                **os.environ,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "HF_HUB_OFFLINE": "1",
                **environment,
            },
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return _rows_of(folder, name)

    return run


def _rows_of(folder, name):
    rows = log.rows(folder / "reports/runs" / name / log.LOG)
    return dict(sorted(_identified(row) for row in rows))


@pytest.fixture(scope="module")
def plain(measure):
    return measure("plain", "-n0", PYTHONHASHSEED="1")


def _identified(row):
    """A row's identity and its values, times left out."""
    values = dataclasses.asdict(row)
    if isinstance(row, EditRow):
        del values["record"]["seconds"]
    names = ("model", "method", "case", "criterion", "probe")
    identity = tuple(str(values.get(name, "")) for name in names)
    exclusion = values.get("exclusion") or {}
    identity += (type(row).__name__, str(exclusion.get("case")), str(exclusion.get("probe")))
    return identity, dict(_flat("", values))


def _flat(name, value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(f"{name}.{index}", item)
    else:
        yield name, value


def differences(ours, theirs):
    """What differs, floats by more than rounding."""
    assert ours.keys() == theirs.keys()
    for identity, values in ours.items():
        other = theirs[identity]
        assert values.keys() == other.keys()
        for name, value in values.items():
            if isinstance(value, float):
                close = math.isclose(value, other[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
                if not close:
                    yield identity, name, value, other[name]
            elif value != other[name]:
                yield identity, name, value, other[name]


@pytest.mark.parametrize(
    ("name", "args", "environment"),
    [
        ("workers", ("-n2",), {"PYTHONHASHSEED": "2"}),
        # shards in other orders have a test of their own
        pytest.param("order", ("-n0", "-p", "backwards"), {}, marks=pytest.mark.slow),
        ("batch", ("-p", "no:xdist", "--memory", "4M"), {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_workers_order_and_batch_size_leave_the_measurements_alone(
    measure, plain, name, args, environment
):
    # three methods and the edits of equal size beside each, four cases, six criteria
    assert sum(key[5] == VerdictRow.__name__ for key in plain) == 2 * 3 * 4 * 6
    assert not list(differences(plain, measure(name, *args, **environment)))


def test_shards_leave_the_measurements_alone(measure, folder, plain):
    parts = [measure(f"part{n}", "-p", "no:xdist", "--shard", f"{n}/2") for n in (2, 1)]
    assert all(0 < len(part) < len(plain) for part in parts)
    reports = folder / "reports"
    merge([reports / "runs/part1", reports / "runs/part2"], reports, "merged")
    assert not list(differences(plain, _rows_of(folder, "merged")))


@pytest.mark.slow
def test_jobs_of_submitit_leave_the_measurements_alone(measure, folder, plain):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    command = (sys.executable, "-c", "from kn_bench.commands.app import app; app()", "launch")
    process = subprocess.run(
        [*command, "--local", "--shards", "2", "--run", "jobs", "--every", "0.5", "--",
         *PLUGINS, "--pyargs", "kn_bench.suites", *ASKED],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert not list(differences(plain, _rows_of(folder, "jobs")))


@pytest.mark.slow
def test_actors_of_ray_leave_the_measurements_alone(measure, plain):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    rows = measure("actors", "-p", "no:xdist", "--engine", "ray", "--actors", "2")
    assert not list(differences(plain, rows))
