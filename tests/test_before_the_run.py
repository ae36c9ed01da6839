"""What can be known before the first test is said before it: one sentence, exit status 4."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kn_bench.model import embedded, trial
from kn_bench.model.trial import refuse_unloadable

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
    assert result.stderr.startswith("ERROR: the weights of transformer.h.4.attn.c_attn.bias, ")
    assert not (gpt2.parent / "reports").exists()


def test_a_process_that_dies_while_it_tries_is_one_sentence(gpt2, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ValueError, match="cannot be loaded: the process that tried ended with"):
        tried(gpt2)
