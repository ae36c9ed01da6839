"""The log: written before a test is shown, complete or known to be incomplete, continued."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys

import psutil
import pytest

from kn_bench.results.manifest import read_manifest
from kn_bench.results.rows import CrashRow, VerdictRow
from tests.conftest import PLUGINS, comparable, measured, outcomes, wait_for

ONE = "test_overturn[toy_b-toy_gpt-P37/subject_1]"
TESTS = 288


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_test_that_is_never_heard_of_is_missed(bench, workers):
    result = bench.run("-q", workers, "--run", "r", TOY_SWALLOW=ONE)
    assert result.ret == 3
    result.stdout.fnmatch_lines(
        ["kn_bench: 1 of the collected tests were not measured (*test_overturn.py::test_overturn*"]
    )
    assert "measure them with --resume r" in result.stdout.str()
    again = bench.run(workers, "--resume", "r")
    assert (again.ret, measured(again), len(bench.verdicts())) == (0, 1, TESTS)
    again.stdout.fnmatch_lines([f"kn_bench: run r has {TESTS - 1} tests already"])


@pytest.mark.parametrize(
    ("workers", "written"),
    [("-n0", "kn_bench.results.store.RunStore.finish"), ("-n2", "summary.end_run")],
)
def test_ctrl_c_while_the_board_is_written_is_no_failed_test(bench, workers, written):
    bench.pytester.makepyfile(
        interrupting=f"""
import kn_bench.results.store
from kn_bench.testing import summary

def interrupted(*_):
    raise KeyboardInterrupt

{written} = interrupted
"""
    )
    result = bench.run("-p", "interrupting", "-q", workers, "--run", "r", TOY_BOARD="1")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(["kn_bench: go on with this run by --resume r"])
    again = bench.run(workers, "--resume", "r")
    assert (again.ret, len(bench.verdicts())) == (0, TESTS)
    again.stdout.fnmatch_lines([f"kn_bench: run r has {TESTS} tests already"])


def test_a_value_that_xdist_cannot_send_is_no_success(bench):
    """With -n1 xdist ends such a session with status 0 and the words "no tests ran"."""
    result = bench.run("-q", "-n1", TOY_ODD=ONE)
    assert result.ret not in (0, 5)


def test_rows_are_on_the_disk_before_the_test_is_shown(bench):
    bench.pytester.makepyfile(
        watcher="""
from pathlib import Path
import os
import pytest

@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.when == "call" and not os.environ.get("PYTEST_XDIST_WORKER"):
        log = max(Path("reports/runs").glob("*/measurements.jsonl"))
        last = log.read_text().splitlines()[-1]
        case = report.nodeid.rpartition("-")[2].removesuffix("]")
        assert f'"case":"{case}"' in last and '"row":"verdict"' in last, last
        assert not [key for key, _ in report.user_properties if key.startswith("kn_bench ")]
"""
    )
    for workers in ("-n0", "-n2"):
        run = ("--run", f"r{workers[2]}")
        assert bench.run("-q", "-p", "watcher", workers, *run, "--method", "toy-a").ret == 0


def test_junit_xml_has_the_verdict_and_not_the_rows(bench):
    bench.run("-q", "--junitxml", "out.xml", "-k", "P36/subject_1 and reliability")
    text = (bench.path / "out.xml").read_text()
    assert '<property name="kn_bench.status" value="' in text
    assert "log_prob" not in text


@pytest.mark.parametrize("workers", [pytest.param("-n0", marks=pytest.mark.slow), "-n2"])
def test_resume_after_the_controller_is_killed(bench, workers):
    assert bench.run("-q", "--run", "whole").ret == 0
    command = [sys.executable, "-m", "pytest", *PLUGINS, "--pyargs", "kn_bench.suites", workers]
    environment = {**os.environ, "TOY_SLOW": "0.01"}
    process = subprocess.Popen(
        [*command, "--run", "r"], cwd=bench.path, env=environment, stdout=subprocess.DEVNULL
    )
    log = bench.path / "reports/runs/r/measurements.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size > 50_000)
    workers_alive = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # a worker in the middle of a long unit does not go on for nobody
    assert not psutil.wait_procs(workers_alive, timeout=10)[1]
    before = len(bench.verdicts("r"))
    assert 0 < before < TESTS
    result = bench.run("-q", workers, "--resume", "last")
    assert (result.ret, measured(result)) == (0, TESTS - before)
    assert comparable(bench.rows("r")) == comparable(bench.rows("whole"))
    nothing_left = bench.run("-q", workers, "--resume", "r")
    assert nothing_left.ret == 0
    assert comparable(bench.rows("r")) == comparable(bench.rows("whole"))


@pytest.mark.parametrize("workers", ["-n0", pytest.param("-n2", marks=pytest.mark.slow)])
def test_a_run_that_lacks_only_its_end_is_ended(bench, workers):
    """Killed between its last row and its board, or not allowed to write it."""
    asked = ("-q", workers, "--limit", "1", "--save-baseline", "base.json", "--strict-criteria")
    board, baseline = bench.path / "reports/leaderboard.md", bench.path / "base.json"
    board.mkdir(parents=True)
    blocked = bench.run(*asked, "--run", "r", TOY_BOARD="1")
    assert blocked.ret == 3
    board.rmdir()
    rows = bench.rows("r")
    ended = bench.run(*asked, "--resume", "r", TOY_BOARD="1")
    assert ended.ret == 1  # some were missed: as the whole run would have ended
    ended.stdout.fnmatch_lines([SAYS_WHY.format(f"{outcomes(blocked)['failed']} tests")])
    assert board.is_file()
    assert baseline.is_file()
    assert (bench.path / "reports/runs/r/measurements.parquet").is_file()
    assert read_manifest(bench.path / "reports/runs/r").finished
    assert bench.rows("r") == rows
    assert bench.run("-q", workers, "--limit", "1", "--resume", "r", "-k", "typo").ret == 5


SAYS_WHY = "exit status 1 by --strict-criteria: {} missed a criterion before this run was resumed"


@pytest.mark.parametrize(("now", "said"), [("holds", True), ("missed", False)])
@pytest.mark.parametrize("workers", ["-n0", pytest.param("-n2", marks=pytest.mark.slow)])
def test_a_resumed_run_says_why_it_ends_as_a_failure(bench, now, said, workers):
    """All that it had left passed, the exit status was 1, and nothing said why."""
    bench.run("-q", "--run", "whole")
    rows = [row for row in bench.verdicts("whole") if row.criterion == "reliability"]
    named = [
        " and ".join(("reliability", row.method.replace("-", "_"), row.model.replace("-", "_"),
                      *row.case.split("/")))
        for row in (
            next(row for row in rows if row.verdict.status == "missed"),
            [row for row in rows if row.verdict.status == now][-1],
        )
    ]  # fmt: skip
    asked = ("-q", "-rN", workers, "--strict-criteria")
    assert bench.run(*asked, "--run", "r", "-k", named[0], "-x").ret == 1
    result = bench.run(
        *asked, "--resume", "r", "-k", f"({named[0]}) or ({named[1]})", TOY_BOARD="1"
    )
    assert result.ret == 1
    assert outcomes(result).get("passed", 0) == said
    assert (SAYS_WHY.format("1 test") in result.stdout.str()) == said
    assert ("exit status" in result.stdout.str()) == said


def test_resume_after_ctrl_c(bench):
    command = [sys.executable, "-m", "pytest", *PLUGINS, "--pyargs", "kn_bench.suites", "-n2"]
    environment = {**os.environ, "TOY_SLOW": "0.01"}
    process = subprocess.Popen(
        [*command, "--run", "r"],
        cwd=bench.path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    log = bench.path / "reports/runs/r/measurements.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size > 50_000)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "go on with this run by --resume r" in output
    assert bench.run("-q", "-n2", "--resume", "r").ret == 0
    assert len(bench.verdicts("r")) == TESTS


def test_resume_measures_a_crashed_test_again(bench):
    assert bench.run("-q", "-n2", "--run", "r", TOY_KILL_AT=ONE).ret == 1
    assert sum(isinstance(row, CrashRow) for row in bench.rows("r")) == 1
    result = bench.run("-q", "-n2", "--resume", "r")
    assert (result.ret, measured(result)) == (0, 1)
    assert sum(isinstance(row, VerdictRow) for row in bench.rows("r")) == TESTS
    assert not any(isinstance(row, CrashRow) for row in bench.rows("r"))


def test_a_run_of_something_else_is_not_continued(bench):
    assert bench.run("-q", "--run", "r", "-k", "P36").ret == 0
    result = bench.run("-q", "--resume", "r", "--seed", "1", "--limit", "3")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["ERROR: run 'r' cannot be continued, for it was made of something else: seed: 0 then, 1*"]
    )


def test_a_name_that_is_taken(bench):
    assert bench.run("-q", "--run", "r", "-k", "subject_0").ret == 0
    for workers in ("-n0", "-n2"):
        result = bench.run("-q", "--run", "r", workers)
        assert result.ret == 4
        result.stderr.fnmatch_lines(["ERROR: there is a run 'r' in *: continue it with --resume*"])


def test_a_full_disk_stops_the_run_with_a_sentence(bench, monkeypatch):
    """A limit on the size of files takes the place of the disk."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    size = 60_000
    code = f"{limit} resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    bench.pytester.makepyfile(small_disk=code)
    for workers in ("-n0", "-n2"):
        run = f"r{workers[2]}"
        result = bench.run("-q", "-p", "small_disk", workers, "--run", run)
        assert result.ret == 3
        result.stdout.fnmatch_lines([f"*cannot be written (File too large): make room and*{run}*"])
        assert bench.run("-q", workers, "--resume", run).ret == 0
        assert len(bench.verdicts(run)) == TESTS
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != size


def test_no_room_for_what_a_worker_tells_of_its_tests_is_one_sentence(bench):
    """The file by which workers tell the controller is written to the folder of temporary files."""
    size = 4000
    bench.pytester.makepyfile(
        small_disk="import resource, signal\n"
        "def pytest_configure(config):\n"
        "    if hasattr(config, 'workerinput'):\n"
        "        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    )
    result = bench.run("-q", "-p", "small_disk", "-n2", "--run", "r")
    assert result.ret == 3
    result.stdout.fnmatch_lines(["*stopped: *.json cannot be written (no room for*set TMPDIR*"])
    assert "INTERNALERROR" not in result.stdout.str()
    assert bench.run("-q", "-n2", "--run", "s").ret == 0


def test_a_reports_folder_that_cannot_be_written(bench):
    (bench.path / "reports").write_text("a file")
    for workers in ("-n0", "-n2"):
        result = bench.run("-q", workers)
        assert result.ret == 4
        result.stderr.fnmatch_lines(["ERROR: *reports/runs/* cannot be written (Not a directory)*"])


def test_the_gate_passes_on_itself_and_fails_on_a_fall(bench):
    """The second run is of a method that never succeeds under the first one's name."""
    asked = ("--method", "toy-a", "--limit", "12", "-n2")
    saved = bench.run("--save-baseline", "base.json", *asked, TOY_BOARD="1")
    assert saved.ret == 0
    saved.stdout.fnmatch_lines([f"baseline written to {bench.path}/base.json"])
    against = ("--baseline", "base.json", *asked)
    same = bench.run(*against, TOY_BOARD="1", GITHUB_STEP_SUMMARY="page.md")
    assert same.ret == 0
    same.stdout.fnmatch_lines(["*= gate =*", "The gate passes: none of * figures fell*"])
    assert "The gate passes" in (bench.path / "page.md").read_text()
    worse = bench.run(*against, TOY_BOARD="1", TOY_WORSE="toy-a")
    assert worse.ret == 10
    worse.stdout.fnmatch_lines(["The gate fails: * figures fell significantly*"])
    gate = ("--gate", "reliability:1,overturn:1,generality:1", "--gate", "synonym:1,symmetry:1")
    tolerant = bench.run(*against, *gate, TOY_BOARD="1", TOY_WORSE="toy-a")
    assert tolerant.ret == 0


def test_a_page_that_cannot_be_written_hides_no_board(bench):
    result = bench.run("-q", "-k", "P36", TOY_BOARD="1", GITHUB_STEP_SUMMARY="nowhere/page.md")
    assert result.ret == 3
    result.stdout.fnmatch_lines(["Facts: *", "kn_bench: nowhere/page.md cannot be written (*"])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--baseline", "none.json"), "there is no baseline *none.json: make one by*"),
        (("--save-baseline", "conftest.py/b.json"), "--save-baseline *b.json cannot be written*"),
        (("--baseline", "conftest.py"), "*conftest.py holds no Baseline: *"),
        (
            ("--baseline", "none.json", "--gate", "symetry:0.1"),
            "--gate 'symetry:0.1': expected CRITERION:FALL*",
        ),
    ],
    ids=["missing", "no-folder", "malformed", "tolerance"],
)
def test_a_gate_that_cannot_be_is_refused_before_the_run(bench, args, sentence):
    result = bench.run(*args)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {sentence}"])
    assert not bench.computed


ODD = """
import os
from dataclasses import replace

import toy_bench

real = toy_bench.Engine.measure
deep = []
for _ in range(5000):
    deep = [deep]
CHANGES = {
    "norm": lambda r: replace(r, edit=replace(r.edit, norm=float("nan"))),
    "note": lambda r: replace(r, edit=replace(r.edit, notes={"at": object()})),
    "deep": lambda r: replace(r, edit=replace(r.edit, notes={"at": deep})),
    "control": lambda r: replace(r, control=replace(r, edit=replace(r.edit, norm=float("nan")))),
    "judged": lambda r: replace(r, measurements=(None,)),
}

def measure(self, name, method, cases, **more):
    result = real(self, name, method, cases, **more)
    if name == "toy-a" and self.model.name == "toy-gpt":
        id = cases[0].id
        result.results[id] = CHANGES[os.environ["ODD"]](result.results[id])
    return result

toy_bench.Engine.measure = measure
"""


@pytest.mark.parametrize(
    ("odd", "workers", "said"),
    [
        ("norm", "-n0", r"ValueError: norm is NaN"),
        ("note", "-n2", r"TypeError: .*object"),
        ("deep", "-n0", r"RecursionError: "),
        ("control", "-n0", r"ValueError: norm is NaN"),
        ("judged", "-n0", r"AttributeError: "),
    ],
)
def test_what_cannot_be_stored_is_an_error_of_its_tests(bench, odd, workers, said):
    """Its rows were missing from the log, and nothing said so."""
    bench.pytester.makepyfile(odd=ODD)
    few = ("-q", workers, "--limit", "2", "--relation", "P36")
    bench.run(*few, "--run", "plain")
    result = bench.run(*few, "--run", "odd", "-p", "odd", ODD=odd)
    assert result.ret == 1
    before, after = ({v.key: v.verdict for v in bench.verdicts(run)} for run in ("plain", "odd"))
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key]}
    assert {(key.model, key.method) for key in changed} == {("toy-gpt", "toy-a")}
    assert len({key.case for key in changed}) == 1
    assert all(after[key].status == "error" for key in changed)
    expected = rf"^toy-a on toy-gpt could not be measured: {said}.*\(.*conftest\.py:\d+\)$"
    assert all(re.match(expected, after[key].explanation) for key in changed)
