"""Methods of a user's own on a real model: every kind of edit, and every kind of nonsense."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kn_bench.measure.measurement import CONTROL
from kn_bench.results import log
from kn_bench.results.rows import VerdictRow
from tests.conftest import PLUGINS, plain

METHODS = """
from contextlib import contextmanager
import torch
from kn_bench import edit_method
from kn_bench.editing.edit import *

class By:
    def __init__(self, lm, make):
        self.lm, self.make = lm, make

    def edit(self, requests):
        return [self.make(self.lm, request) for request in requests]

def update(lm, size=1.0):
    return LowRank(1, torch.full((lm.d_mlp, 1), size), torch.full((1, lm.d_model), size))

def method(name):
    def register(make):
        def fixture(language_model):
            return By(language_model, make)
        return edit_method(name)(fixture)
    return register

@method("low-rank")
def low_rank(lm, request):
    return LowRankEdit((update(lm),))

@method("neuron")
def neuron(lm, request):
    return NeuronEdit((NeuronScale(0, torch.arange(10), 0.0),))

@method("dense")
def dense(lm, request):
    name = lm.weight_name(0)
    return DenseEdit({name: torch.ones_like(dict(lm.hf.named_parameters())[name])})

@method("prompt")
def prompt(lm, request):
    notes = {"half \\ud800": "half \\udfff"}
    return PromptEdit(request.cloze.fill(request.target_new) + ".", notes=notes)

class Stop(BaseException):
    pass

@method("stops")
def stops(lm, request):
    raise Stop("half \\ud800")

@edit_method("unmade")
def unmade(language_model):
    raise Stop("when it was made")

@method("wrapper")
def wrapper(lm, request):
    @contextmanager
    def apply(hf):
        handle = lm.site(0).register_forward_hook(lambda module, args, output: output + 1)
        try:
            yield
        finally:
            handle.remove()
    return WrapperEdit(apply)

@method("shapes")
def shapes(lm, request):
    return LowRankEdit((LowRank(1, torch.ones(3, 1), torch.ones(1, lm.d_model)),))

@method("nan")
def nan(lm, request):
    return LowRankEdit((update(lm, float("nan")),))

@method("nothing")
def nothing(lm, request):
    return None

@method("raises")
def raises(lm, request):
    raise ZeroDivisionError("by nought")

@method("mutates")
def mutates(lm, request):
    with torch.no_grad():
        lm.weight(0).mul_(2)
    return NoEdit()

@method("leaks")
def leaks(lm, request):
    @contextmanager
    def apply(hf):
        with torch.no_grad():
            lm.weight(0).mul_(2)
        yield
    return WrapperEdit(apply)

class TooMany:
    def edit(self, requests):
        return [NoEdit()] * (len(requests) + 1)

@edit_method("too-many")
def too_many():
    return TooMany()

@edit_method("no-method")
def no_method():
    return 7
"""
GOOD = ("low-rank", "neuron", "dense", "prompt", "wrapper")
BAD = {
    "shapes": "shapes returned a low-rank update of shapes (3, 1) and ",
    "nan": "nan returned a update of layer 1 that is not finite (NaN or infinity)",
    "nothing": "nothing returned a NoneType in place of an edit ",
    "raises": "raises failed while editing: ZeroDivisionError: by nought",
    "stops": "stops failed while editing: Stop: half ?",
    "unmade": "unmade on tiny-gpt2 could not be measured: Stop: when it was made",
    "mutates": "mutates changed the model's parameters while editing; ",
    "leaks": "leaks",
    "too-many": "too-many returned 3 edits: expected one for each of 2 requests",
    "no-method": "no-method",
}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """All of them in one session on two workers, two facts each, the good ones last."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_methods.py").write_text(METHODS)
    names = [f"--method={name}" for name in (*BAD, *GOOD, "none")]
    what = ("--model=tiny-gpt2", "--relation=P36", "--limit=2", "-k", "reliability or locality")
    how = ("-p", "my_methods", "--pyargs", "kn_bench.suites", "-n2", "--run=r")
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, *how, *names, *what],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    return process, folder


@pytest.fixture(scope="module")
def verdicts(session):
    _, folder = session
    rows = log.rows(folder / "reports/runs/r" / log.LOG)
    verdicts = [row for row in rows if isinstance(row, VerdictRow)]
    return [row for row in verdicts if not row.method.startswith(CONTROL)]


def test_errors_are_errors_and_the_rest_is_measured(session, verdicts):
    process, _ = session
    assert process.returncode == 1, process.stdout
    assert len(verdicts) == 2 * 2 * (len(BAD) + len(GOOD) + 1)
    assert {row.method for row in verdicts if row.verdict.status == "error"} == set(BAD)


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_one_sentence_that_names_the_file(session, verdicts, name):
    process, _ = session
    reasons = {row.verdict.reason for row in verdicts if row.method == name}
    assert len(reasons) == 1
    (sentence,) = reasons
    assert sentence.startswith(BAD[name])
    assert "my_methods.py:" in sentence
    assert "\n" not in sentence
    assert sentence in plain(process.stdout)


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_edit_has_an_effect_and_is_restored(verdicts, name):
    """`none` ran after all of them on the same model: had one left a trace, it would show."""
    mine = [row.verdict for row in verdicts if row.method == name]
    assert {verdict.status for verdict in mine} <= {"holds", "missed"}
    untouched = [row.verdict for row in verdicts if row.method == "none"]
    assert all(v.mean_kl == 0 for v in untouched if v.mean_kl is not None)
    assert any(v.mean_kl for v in mine)
