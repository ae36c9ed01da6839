"""``kn-bench launch``: shards as jobs of submitit, queued again when they die, then merged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kn_bench.cases.case import CRITERIA
from kn_bench.commands import launch as launch_command
from kn_bench.results.manifest import read_manifest
from kn_bench.testing import launching
from kn_bench.testing.launching import Launch, LaunchError
from kn_bench.testing.processes import last_words
from kn_bench.testing.shard_job import ShardJob
from tests.conftest import PLUGINS, comparable
from tests.made_up import write_run
from tests.test_shards import KILLED, without_times

SUITES = ("--pyargs", "kn_bench.suites", "--limit", "2", "-p", "no:xdist")


def launched(bench, *arguments, suites=SUITES, **environment):
    """Run the command on the toy benchmark."""
    words = [f"{Path(sys.executable).parent}/kn-bench", "launch", *arguments, "--", *suites]
    return subprocess.run(
        words,
        cwd=bench.path,
        env={**os.environ, "PYTEST_ADDOPTS": " ".join(PLUGINS), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_shards_are_measured_and_merged_though_one_is_killed(bench):
    pytest.importorskip("submitit")
    bench.run("-p", "no:xdist", "--limit", "2", "--run", "whole")
    result = launched(
        bench,
        *("--local", "--shards", "2", "--run", "all", "--at-once", "2", "--every", "0.2"),
        TOY_KILL_AT="test_synonym[toy_a-toy_gpt-P37/subject_1]",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "requeued: pytest ended with status -9 before shard" in result.stdout
    assert len(re.findall(r"^shard \d/2 measured$", result.stdout, re.M)) == 2
    assert comparable(without_times(bench.rows("all"))) == comparable(
        without_times(bench.rows("whole"))
    )
    again = launched(bench, "--local", "--shards", "2", "--run", "all")
    assert again.returncode == 2
    assert "there is a run 'all' in reports/runs: choose another --run" in again.stderr


def test_a_launch_that_was_killed_while_it_merged_is_gone_on_with(tmp_path):
    launch = Launch(SUITES, "all", 2, tmp_path)
    for number, method in enumerate(("rome", "none"), start=1):
        scores = {method: {criterion: [1.0] for criterion in CRITERIA}}
        options = {"shard": f"{number}/2"}
        write_run(tmp_path, scores, run=launch.name_of(number), options=options)
    killed = ("kn_bench.results.store:RunStore.append", "2", "SIGKILL")
    words = [*killed, str(tmp_path), *map(str, launch.folders)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    launch.check()
    assert not launch.jobs()
    launch_command._merge(launch)
    assert read_manifest(tmp_path / "runs/all").tests == 12


def test_what_pytest_would_refuse_is_refused_before_anything_is_submitted(bench):
    pytest.importorskip("submitit")
    suites = (*SUITES, "--method", "romme")
    result = launched(bench, "--local", "--shards", "9", "--run", "all", suites=suites)
    assert result.returncode == 2
    assert re.fullmatch(r"kn-bench: unknown method 'romme'.*\n", result.stderr), result.stderr
    assert not list((bench.path / "reports/jobs/all").glob("shard*"))


def test_a_launch_is_not_gone_on_with_by_other_arguments(bench, monkeypatch):
    """Its shards were measured to the last, and then could not be merged."""
    monkeypatch.chdir(bench.path)
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(PLUGINS))
    launching.refuse_bad_input(Launch(SUITES, "all", 2, Path("reports")))
    bench.run(*SUITES, "--shard", "1/2", "--run", "all-1-of-2", suites=False)
    harmless = ("-v", "--memory", "1G", "--device", "cpu")
    launching.refuse_bad_input(Launch((*SUITES, *harmless), "all", 2, Path("reports")))
    for other, said in {
        ("--limit", "1"): "options: limit 2 then, 1 now",
        ("--seed", "3"): "seed: 0 then, 3 now",
        ("-k", "synonym"): "the suites, --grain, -k, -m or --deselect",
        ("--grain", "unit"): "the suites, --grain, -k, -m or --deselect",
    }.items():
        again = Launch((*SUITES, *other), "all", 2, Path("reports"))
        with pytest.raises(LaunchError, match=rf"^all-1-of-2 was begun .*{re.escape(said)}"):
            launching.refuse_bad_input(again)


def test_the_script_for_slurm_is_shown(bench):
    pytest.importorskip("submitit")
    result = launched(
        bench,
        *("--shards", "64", "--run", "big", "--dry-run", "--at-once", "8"),
        *("--slurm", "partition=gpu,gpus=1,time=120", "--setup", "module load cuda"),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for line in (
        "#SBATCH --array=0-63%8",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --job-name=big",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=120",
        "module load cuda",
    ):
        assert line in lines
    assert lines[-1].endswith("--shard 1/64 --run big-1-of-64")
    assert not (bench.path / "reports/runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "1/2"), "--shard is given by the launcher: leave it out after --"),
        (("--run=x",), "--run is given by the launcher"),
        (("--baseline", "b.json"), "--baseline is for a whole run, and each job measures a shard"),
    ],
)
def test_what_the_launcher_gives_is_not_given_twice(tmp_path, arguments, message):
    with pytest.raises(LaunchError, match=re.escape(message)):
        Launch(arguments, "all", 2, tmp_path).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "--slurm 'gpu': expected NAME=VALUE with a name of account, "),
        ("partitoin=gpu", "--slurm 'partitoin=gpu': expected NAME=VALUE with a name of account, "),
        ("time=2:00:00", "--slurm 'time=2:00:00': expected a number of minutes"),
    ],
)
def test_what_sbatch_does_not_know_is_refused(text, message):
    pytest.importorskip("submitit")
    with pytest.raises(LaunchError, match=re.escape(message)):
        launching.slurm_options([f"partition=gpu,{text}"])


def test_without_slurm_or_submitit_one_sentence_says_so(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    launch = Launch(("suites/",), "all", 2, tmp_path)
    with pytest.raises(LaunchError, match="there is no sbatch on this machine: launch from a"):
        launching.slurm_jobs(launch, {}, ())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LaunchError, match=r"needs submitit: pip install 'kn_bench\[slurm\]'"):
        launching.local_jobs(launch)


class Handle:
    """A job of submitit that has ended."""

    def __init__(self, error):
        self._error = error

    def done(self):
        return True

    def exception(self):
        return self._error


class Executor:
    """Submits what dies each time."""

    def __init__(self):
        self.submitted = []

    def submit_array(self, jobs):
        self.submitted += [job.shard for job in jobs]
        return [Handle(RuntimeError("killed")) for _ in jobs]


def test_a_shard_is_queued_again_as_often_as_asked_and_after_the_others(tmp_path):
    launch = Launch((), "all", 2, tmp_path, requeues=2)
    executor = Executor()
    ended = list(launching.Jobs(launch, executor, launch.jobs(), at_once=1).watch(every=0))
    assert executor.submitted == ["1/2", "2/2", "1/2", "2/2", "1/2", "2/2"]
    assert [each.state for each in ended] == ["requeued"] * 4 + ["failed"] * 2
    assert ended[-1].said == f"the job was killed ({tmp_path / 'jobs/all/shard-2.log'})"


@pytest.mark.slow
def test_a_shard_that_is_preempted_closes_its_log_and_is_resumed(bench, tmp_path):
    """submitit's own signal, as Slurm sends it before the end of a job's time."""
    submitit = pytest.importorskip("submitit")
    from tests.conftest import wait_for

    job = ShardJob(
        SUITES, "1/1", "one", bench.path / "reports", bench.path, tmp_path / "log",
        {"PYTEST_ADDOPTS": " ".join(PLUGINS), "TOY_SLOW": "0.05"},
    )  # fmt: skip
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    handle = executor.submit(job)
    measured = bench.path / "reports/runs/one/measurements.jsonl"
    wait_for(lambda: measured.exists() and measured.stat().st_size > 0, 60)
    (task,) = _children(handle._process.pid)
    os.kill(task, submitit.JobEnvironment._usr_sig())
    assert handle.result().status == 0
    assert "--resume" not in " ".join(job.command()[:-2])
    assert (tmp_path / "log").read_text().count("test session starts") == 2
    assert len(bench.verdicts("one")) == len({row.key for row in bench.verdicts("one")}) > 100


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_last_words_are_the_sentence():
    assert last_words("== x ==\n\nERROR: no such model\n\n") == "no such model"
