"""PEFT adapters measured against their base, in the suites and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from typer.testing import CliRunner

import kn_bench as kn
from kn_bench.commands import evaluate
from kn_bench.model import embedded
from tests.conftest import PLUGINS, plain

peft = pytest.importorskip("peft")
DOWN = {
    "tiny-gpt2": ["mlp.c_proj"],
    "tiny-llama": ["down_proj"],
    "tiny-bert": r".*\d\.output\.dense",
}
FACT = {"subject": "Canada", "prompt": "The capital of {} is", "target_true": "Ottawa",
        "target_new": "Paris"}  # fmt: skip


def adapter(name, folder, **settings):
    """Save an adapter as its own tools do, with transformers and peft alone."""
    auto = AutoModelForMaskedLM if name == "tiny-bert" else AutoModelForCausalLM
    hf = auto.from_pretrained(embedded.folder(name))
    wanted = {"r": 2, "target_modules": DOWN[name], "fan_in_fan_out": name == "tiny-gpt2"}
    adapted = peft.get_peft_model(hf, peft.LoraConfig(**{**wanted, **settings}))
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(generator=generator)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def cases(tmp_path):
    file = tmp_path / "fact.jsonl"
    file.write_text(json.dumps(FACT) + "\n")
    return file


@pytest.mark.parametrize("name", embedded.NAMES)
def test_no_part_of_a_loaded_model_is_in_training_mode(name):
    hf = kn.load_model(name).hf
    assert not [path for path, module in hf.named_modules() if module.training]


@pytest.mark.parametrize("name", DOWN)
def test_an_adapter_is_measured_by_the_command(name, cases, tmp_path):
    folder = adapter(name, tmp_path / "adapter")
    arguments = ("--base", name, "--edited", folder, "--cases", cases)
    result = CliRunner().invoke(evaluate.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "low rank: layer 0 rank 2, layer 1 rank 2" in result.output
    assert "n = 1 case" in result.output


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_an_adapter_is_measured_by_the_suites(name, cases, tmp_path, pytester, monkeypatch):
    from kn_bench.results import log
    from kn_bench.results.rows import VerdictRow

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder = adapter(name, tmp_path / "adapter")
    arguments = (*PLUGINS, "--pyargs", "kn_bench.suites", "--model", name, "--cases", cases,
                 "--run", "a", "--method", f"checkpoint:{folder}")  # fmt: skip
    result = pytester.runpytest_subprocess(*map(str, arguments))
    assert result.ret == 0, plain(result.stdout.str())
    logged = log.rows(Path(pytester.path) / "reports/runs/a" / log.LOG)
    scored = {
        row.criterion
        for row in logged
        if isinstance(row, VerdictRow) and row.method == "checkpoint:adapter"
        if row.verdict.score is not None
    }
    assert scored >= {"reliability", "locality"}
