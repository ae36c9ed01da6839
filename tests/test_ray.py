"""``--engine ray``: units computed by actors, tests reported and recorded as ever."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import subprocess
import sys

import psutil
import pytest

from kn_bench.cases import sources
from kn_bench.measure.measurement import CaseResult, EditRecord, UnitResult
from kn_bench.testing.ray.messages import UnitDone, UnitWork, decode, encode
from tests import toy_bench
from tests.conftest import PLUGINS, comparable, measured, outcomes, wait_for
from tests.test_shards import without_times

CLUSTER = """
import ray
ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
print("cluster", ray.get_runtime_context().gcs_address, flush=True)
input()
"""
RAY = ("--engine", "ray", "--actors", "2", "--limit", "2")
ALONE = ("-p", "no:xdist", "--limit", "2")


@pytest.fixture
def ray():
    if importlib.util.find_spec("ray") is None:  # not imported here: it takes a second
        pytest.skip("the extra ray is not installed")


def assert_same_rows(bench, run, whole):
    rows = comparable(without_times(bench.rows(run)))
    assert rows == comparable(without_times(bench.rows(whole)))
    assert len(rows) == len(set(rows))


def test_a_unit_whose_worker_is_killed_is_given_again(bench, ray):
    """The run is that of one process, row for row, whatever died in the middle."""
    bench.run(*ALONE, "--run", "whole")
    (bench.path / "computed.log").unlink()
    result = bench.run(*RAY, "--run", "r", TOY_KILL_UNIT="toy-gpt toy-b")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["kn_bench: 2 Ray actors with 1 CPU each"])
    assert_same_rows(bench, "r", "whole")
    assert bench.computed.count(("toy-gpt", "toy-b")) == 2
    assert bench.computed.count(("toy-gpt", "toy-a")) == 1


@pytest.mark.slow
def test_an_actor_that_is_killed_is_replaced(bench, ray):
    bench.run(*ALONE, "--run", "whole")
    (bench.path / "computed.log").unlink()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            *PLUGINS,
            "--pyargs",
            "kn_bench.suites",
            *RAY,
            "--run",
            "r",
        ],
        cwd=bench.path,
        env={**os.environ, "TOY_UNIT_SECONDS": "3"},
        stdout=subprocess.DEVNULL,
    )
    log = bench.path / "computed.log"
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"), 120)
    worker = psutil.Process(int(log.read_text().split()[3]))
    worker.parent().send_signal(signal.SIGKILL)
    assert process.wait() == 0
    assert_same_rows(bench, "r", "whole")
    assert len(bench.computed) == 4
    assert not worker.is_running()


@pytest.mark.slow
def test_a_unit_that_kills_every_actor_becomes_errors_and_the_rest_is_measured(bench, ray):
    result = bench.run(*RAY, "--run", "r", TOY_KILL_EACH="toy-gpt toy-b")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert outcomes(result)["errors"] == 36 - 2  # P37 has no symmetry
    errors = [row for row in bench.verdicts("r") if row.verdict.status == "error"]
    assert {(row.model, row.method) for row in errors} == {("toy-gpt", "toy-b")}
    (sentence,) = {row.verdict.reason or row.verdict.explanation for row in errors}
    assert "2 Ray actors died of toy-b on toy-gpt: its process ended with status -9" in sentence
    assert len(bench.verdicts("r")) == 144
    assert bench.run(*RAY[:-2], "--limit", "2", "--resume", "r").ret == 0
    assert all(row.verdict.status != "error" for row in bench.verdicts("r"))


@pytest.mark.slow
def test_x_k_lf_and_resume_are_pytests_own(bench, ray):
    bench.run(*ALONE, "--run", "whole")
    stopped = bench.run(*RAY, "--run", "r", "-x", "--strict-criteria")
    assert stopped.ret == pytest.ExitCode.TESTS_FAILED
    assert outcomes(stopped)["failed"] == 1
    assert 0 < len(bench.verdicts("r")) < 144
    assert bench.run(*RAY, "--resume", "r").ret == 0
    assert_same_rows(bench, "r", "whole")

    cached = ("-p", "cacheprovider", "--strict-criteria")
    chosen = bench.run(*RAY, *cached, "-k", "P36 and toy_gpt")
    assert measured(chosen) == 24
    again = bench.run(*RAY, *cached, "-k", "P36 and toy_gpt", "--lf")
    assert measured(again) == outcomes(chosen)["failed"]


@pytest.mark.slow
def test_the_gate_holds_a_run_by_ray_against_its_baseline(bench, ray):
    bench.run(*ALONE[:2], "--limit", "9", "--save-baseline", "base.json", TOY_BOARD="1")
    gate = ("--engine", "ray", "--limit", "9", "--baseline", "base.json")
    assert bench.run(*gate, TOY_BOARD="1").ret == 0
    assert bench.run(*gate, TOY_BOARD="1", TOY_WORSE="toy-a").ret == 10


@pytest.mark.slow
def test_each_actor_has_the_gpu_that_ray_lends_it(bench, ray):
    """Ray believes in two GPUs; a third actor finds no room, and the toys need none."""
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert cluster.stdout is not None
    try:
        address = next(line.split()[1] for line in cluster.stdout if line.startswith("cluster "))
        asked = ("--limit", "40", "--device", "cuda", "--engine", f"ray:{address}")
        result = bench.run(*asked, "--actors", "3", RAY_AUTH_MODE="token")
    finally:
        cluster.communicate("")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["kn_bench: 2 Ray actors with 1 GPU and 1 CPU each"])
    lines = [line.split() for line in (bench.path / "computed.log").read_text().splitlines()]
    gpu_of = {process: gpu for *_, process, gpu in lines}
    assert sorted(gpu_of.values()) == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "spark"), "'spark': expected pytest, ray or ray:ADDRESS"),
        (("--engine", "ray", "-n", "2"), "-n starts xdist's workers and --engine ray Ray's actors"),
        (
            ("--actors", "2"),
            "--actors: expected with --engine ray only; workers of pytest are given by -n",
        ),
        (("--engine", "ray", "--device", "auto"), "--device auto: expected cpu or cuda with"),
        (("--engine", "ray"), "--engine ray needs Ray: pip install 'kn_bench[[]ray]'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(bench, arguments, message):
    bench.pytester.makepyfile(no_ray="import sys; sys.modules['ray'] = None")
    result = bench.run("-p", "no_ray", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message}*"])
    assert "Traceback" not in result.stderr.str()


def test_a_result_is_the_same_on_the_other_side():
    """NaN too: it is judged where tests are reported."""
    case = toy_bench.case(1)
    measurements = tuple(toy_bench.measurement("m", "a", case, probe) for probe in case.probes)
    record = EditRecord(0.5, "toy", math.inf, {"loss": math.nan, "rank": 1, "kept": True})
    result = UnitResult("m", "a", {case.id: CaseResult(case.id, record, measurements)}, 0.1, 0.2)
    done = UnitDone(result, "{}")
    assert repr(decode(UnitDone, encode(done))) == repr(done)


def test_cases_are_the_same_on_the_other_side():
    """Those of the sources, whose reasons cannot be written to."""
    relations = ["P36", "P101", "determiner_noun_agreement_1"]
    cases = sources.load("embedded", limit=2, relations=relations).cases
    work = UnitWork("rome", "tiny-gpt2", tuple(cases))
    assert decode(UnitWork, encode(work)) == work
