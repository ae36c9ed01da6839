"""Sections of a study that several processes compute."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kn_bench.study.material import Material
from kn_bench.study.page import Section
from kn_bench.study.processes import Workers, in_processes
from kn_bench.study.runner import Part, StudyStep, run_study
from kn_bench.study.sections import parts
from tests.made_up_study import SETTINGS, made_up_cases
from tests.tiny_models import tiny_model

NAMES = ["levels", "matched", "place"]


def load(family, place):
    """Load a model in a process; sections do not depend on which."""
    assert place in (0, 1)
    return tiny_model(family)


def own_process(material, job):
    """Wait until two processes have begun a job."""
    folder, name = job
    (folder / str(os.getpid())).touch()
    ends = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < ends:
        time.sleep(0.01)
    return name, os.getpid(), material.lm.name, len(material.cases), signal.getsignal(signal.SIGINT)


def dies(material, job):
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(material, job):
    raise ValueError(f"{job}: expected something else")


def sleeps(material, job):
    if job == "long":
        time.sleep(600)


def two():
    return Workers(2, partial(load, "bert"))


@pytest.fixture(scope="module")
def material():
    return Material(tiny_model("bert"), made_up_cases(), SETTINGS)


def test_processes_compute_what_one_computes(material, tmp_path):
    alone = run_study(material, parts(NAMES), tmp_path / "alone")
    steps: list[StudyStep] = []
    beside = run_study(
        material, parts(NAMES), tmp_path / "beside", workers=two(), tell=steps.append
    )
    assert [section.id for section in beside] == NAMES
    assert [replace(s, seconds=0) for s in beside] == [replace(s, seconds=0) for s in alone]
    for path in sorted((tmp_path / "alone").glob("*/*.csv")):
        twin = tmp_path / "beside" / path.relative_to(tmp_path / "alone")
        assert twin.read_bytes() == path.read_bytes()
    # two begin before the first is done
    assert [step.state for step in steps[:2]] == ["begins", "begins"]
    assert [step.number for step in steps if step.state == "done"] == [0, 1, 2]
    # and what is there is kept, by either
    run_study(material, parts(NAMES), tmp_path / "beside", workers=two(), tell=steps.append)
    assert [step.state for step in steps[-3:]] == ["kept"] * 3


def test_two_processes_share_the_jobs(material, tmp_path):
    jobs = [(tmp_path, name) for name in "abcdef"]
    begun: list[tuple[Path, str]] = []
    done = in_processes(material, jobs, own_process, two(), begun.append)
    results = [result for _, result in done]
    assert begun == jobs
    assert sorted(name for name, *_ in results) == list("abcdef")
    processes = {process for _, process, *_ in results}
    assert len(processes) == 2
    assert os.getpid() not in processes
    # Ctrl-C reaches the process that ends the others, and it alone
    rest = {tuple(rest) for _, _, *rest in results}
    assert rest == {(material.lm.name, len(material.cases), signal.SIG_IGN)}
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def test_a_process_that_is_killed_is_told_in_a_sentence(material):
    with pytest.raises(ValueError, match=r"-n 2: a process of the study was killed.*with -n 1"):
        list(in_processes(material, "ab", dies, two(), lambda _: None))


def test_what_a_section_refuses_reaches_the_user(material):
    with pytest.raises(ValueError, match=r"^[ab]: expected something else$"):
        list(in_processes(material, "ab", refuses, two(), lambda _: None))


def test_an_interrupted_study_does_not_wait_for_its_sections(material):
    started = time.monotonic()
    results = in_processes(material, ["short", "long"], sleeps, two(), lambda _: None)
    assert next(results) == ("short", None)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert time.monotonic() - started < 120


def test_one_process_is_this_one(material, tmp_path):
    seen = []

    def run(material):
        seen.append(os.getpid())
        return Section("made_up", "Made up?", "", ())

    workers = Workers(1, partial(load, "bert"))
    run_study(material, [Part("made_up", "Made up?", run, ())], tmp_path, workers=workers)
    assert seen == [os.getpid()]
