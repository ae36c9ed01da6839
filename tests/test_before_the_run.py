"""What can be known before the first test is said before it: one sentence, exit status 4."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kn_bench.editing.process import refuse_changed_settings
from kn_bench.editing.registry import MethodSpec, RegistryError
from kn_bench.model import embedded, trial
from kn_bench.model.trial import refuse_unloadable
from kn_bench.testing.method_fixtures import refuse_unknown_fixtures
from kn_bench.testing.options import Options
from kn_bench.testing.plan import make_plan

ROOT = Path(__file__).parent.parent


def tried(folder, fingerprint="one"):
    refuse_unloadable(str(folder), fingerprint, dtype="float32", attention="", commit=None)


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    shutil.copytree(embedded.folder("tiny-gpt2"), folder)
    return folder


def test_a_model_that_loads_is_tried_once(gpt2, monkeypatch):
    tried(gpt2)
    monkeypatch.setattr(trial, "_tried", lambda request: "not whole")
    tried(gpt2)
    with pytest.raises(ValueError, match="not whole"):
        tried(gpt2, "another content")


def test_weights_that_are_missing_end_the_run_before_its_first_test(gpt2):
    config = json.loads((gpt2 / "config.json").read_text())
    (gpt2 / "config.json").write_text(json.dumps({**config, "n_layer": 6}))
    command = (*("--model", str(gpt2), "--method", "none"), *("--relation", "P36", "--limit", "1"))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", ROOT / "suites", "-q", "-n2", *command],
        cwd=gpt2.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 4
    assert result.stderr.startswith(
        f"ERROR: {gpt2}: expected weights for transformer.h.4.attn.c_attn.bias, "
    )
    assert not (gpt2.parent / "reports").exists()


CHANGED = (
    "expected torch's own settings before a method runs; a conftest or plug-in changed them when "
    "it was imported: set them within the method, and back"
)


@contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        (torch.no_grad(), "torch.set_grad_enabled(False)"),
        (torch.inference_mode(), "torch.set_grad_enabled(False)"),
        (torch.autocast("cpu"), "torch.autocast"),
        (double(), "torch.set_default_dtype(torch.float64)"),
        (torch.device("meta"), "torch.set_default_device('meta')"),
    ],
)
def test_a_setting_that_a_module_left_is_named(setting, named):
    refuse_changed_settings()
    with setting, pytest.raises(ValueError, match="torch's own") as refused:
        refuse_changed_settings()
    assert str(refused.value) == f"{named}: {CHANGED}"


def test_a_plug_in_that_turns_gradients_off_as_it_is_imported_ends_the_run(tmp_path):
    lines = "torch.set_grad_enabled(False)", "torch.set_default_dtype(torch.float64)"
    (tmp_path / "mine.py").write_text("\n".join(("import torch", *lines)))
    command = ("--model", "tiny-gpt2", "--method", "ft-l", "--relation", "P36", "--limit", "1")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", ROOT / "suites", "-q", "-p", "mine", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert result.returncode == 4, result.stdout
    assert result.stderr == f"ERROR: {' and '.join(lines)}: {CHANGED}\n\n"
    assert not (tmp_path / "reports").exists()


def test_cases_of_which_none_can_be_measured_are_refused_with_the_reasons(tmp_path):
    fact = {"subject": "Italy", "prompt": "The capital of {} is", "target_true": "Rome"}
    file = tmp_path / "same.jsonl"
    file.write_text("\n".join(json.dumps({**fact, "target_new": new}) for new in ("Rome.", "ROME")))
    with pytest.raises(ValueError, match="none is left") as refused:
        make_plan(Options(cases=(str(file),)))
    sentence = str(refused.value)
    start = f"--cases {file}: expected a case to measure, and none is left (2 excluded: "
    assert sentence.startswith(start)
    assert sentence.endswith("); `kn-bench data` lists what is excluded, and why")


def test_a_process_that_dies_while_it_tries_is_one_sentence(gpt2, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(
        ValueError, match="expected a model that can be loaded, and the process that tried"
    ):
        tried(gpt2)


@pytest.mark.parametrize(
    ("signature", "refused"),
    [("model", True), ("language_model", False), ("language_model, tmp_path, mine", False)],
)
def test_a_method_that_asks_for_no_fixture_is_refused(signature, refused):
    plugin = ModuleType("plugin")
    exec(
        "import pytest\n@pytest.fixture\ndef mine(): pass\n"
        f"@pytest.fixture\ndef tmp_path(): pass\ndef method({signature}): pass",
        plugin.__dict__,
    )
    manager = pytest.PytestPluginManager()
    manager.register(plugin)
    spec = MethodSpec("my-method", "any", plugin.__dict__["method"], "mine.py:3")
    if not refused:
        refuse_unknown_fixtures([spec], manager)
        return
    with pytest.raises(RegistryError) as error:
        refuse_unknown_fixtures([spec], manager)
    assert str(error.value) == (
        "the method my-method asks for model (mine.py:3), and there is no such fixture: name the "
        "loaded model language_model"
    )
