"""PEFT adapters measured against their base, in the suites and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from typer.testing import CliRunner

import kn_bench as kn
from kn_bench.commands import evaluate
from kn_bench.editing.adapters import ADAPTER_WEIGHTS, adapter_edit
from kn_bench.edits.checkpoint import EditedCheckpoint, check
from kn_bench.model import embedded
from kn_bench.model.folder import ADAPTER
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


def test_an_adapter_is_measured_by_the_suites(cases, tmp_path, pytester, monkeypatch):
    from kn_bench.results import log
    from kn_bench.results.rows import VerdictRow

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder = adapter("tiny-gpt2", tmp_path / "adapter")
    arguments = (*PLUGINS, "--pyargs", "kn_bench.suites", "--model", "tiny-gpt2", "--cases", cases,
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


# -- what an adapter adds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.LoraConfig(r=2, target_modules=["down_proj"], use_dora=True),
        lambda: peft.LoraConfig(
            r=2, target_modules=["down_proj", "q_proj"], rank_pattern={"q_proj": 3}
        ),
        lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
        lambda: peft.LoraConfig(r=2, target_modules=["up_proj"], layers_to_transform=[1, 2]),
        lambda: peft.LoHaConfig(r=2, target_modules=["down_proj"]),
        lambda: peft.LoKrConfig(r=2, target_modules=["down_proj"]),
    ],
    ids=["dora", "ranks", "linear", "layers", "loha", "lokr"],
)
def test_an_adapter_of_any_form_adds_what_peft_adds(config, tmp_path):
    hf = AutoModelForCausalLM.from_pretrained(embedded.folder("tiny-llama"))
    adapted = peft.get_peft_model(hf, config()).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in ("lora_A", "lora_B", "hada", "lokr")):
            parameter.data.normal_(0.0, 0.3, generator=generator)
    adapted.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    model = kn.load_model("tiny-llama")
    before, modules = model.parameter_hash(), [type(m) for m in model.hf.modules()]
    (edit,) = EditedCheckpoint(model, tmp_path).whole()
    assert model.parameter_hash() == before
    assert [type(m) for m in model.hf.modules()] == modules
    with torch.no_grad(), kn.edited(model, edit):
        assert torch.allclose(model.hf(ids).logits, adapted(ids).logits, atol=1e-3)
    with torch.no_grad():
        assert not torch.allclose(model.hf(ids).logits, adapted(ids).logits, atol=1e-1)


def test_the_base_that_an_adapter_names_is_said(cases, tmp_path):
    folder = adapter("tiny-gpt2", tmp_path / "adapter")
    configured(folder, base_model_name_or_path="acme/other")
    arguments = ("--base", "tiny-gpt2", "--edited", folder, "--cases", cases)
    result = CliRunner().invoke(evaluate.app, list(map(str, arguments)))
    assert "; an adapter of acme/other by its own account" in result.output


# -- what does not fit -------------------------------------------------------------------------


def configured(folder, **changes):
    path = folder / ADAPTER
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stored(function):
    def change(folder):
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        save_file(function(tensors), folder / ADAPTER_WEIGHTS, {"format": "pt"})

    return change


def setting(**changes):
    return lambda folder: configured(folder, **changes)


def renamed(old, new):
    return stored(lambda tensors: {k.replace(old, new): v for k, v in tensors.items()})


def cut(folder):
    with (folder / ADAPTER_WEIGHTS).open("r+b") as file:
        file.truncate(500)


MISFITS = {
    "names of another family": (
        renamed("transformer.h", "model.layers"),
        "and 8 of its 8 tensors have no place there",
    ),
    "the model without its head": (renamed("transformer.h", "h"), "tensors have no place there"),
    "some layers": (
        stored(lambda tensors: {k: v for k, v in tensors.items() if ".h.0." in k}),
        "it lacks 6 tensors that its adapter_config.json asks for",
    ),
    "one factor": (
        stored(lambda tensors: {k: v for k, v in tensors.items() if "lora_A" in k}),
        "it lacks 4 tensors",
    ),
    "another width": (
        stored(lambda tensors: {k: v[:, :1].contiguous() for k, v in tensors.items()}),
        r"has shape \(2, 1\), expected \(2, 512\)",
    ),
    "another rank": (setting(r=4), r"has shape \(2, 512\), expected \(4, 512\)"),
    "other targets": (setting(target_modules=["c_attn"]), "tensors have no place there"),
    "targets that are not there": (setting(target_modules=["nothing"]), "peft cannot load it"),
    "a rank in words": (setting(r="two"), "peft cannot load it"),
    "biases": (setting(bias="all"), "its adapter_config.json says bias 'all'; merge it"),
    "a bias of LoRA's": (setting(lora_bias=True), "says lora_bias True; merge it"),
    "tokens": (setting(trainable_token_indices=[5]), "says trainable_token_indices"),
    "another base": (setting(init_lora_weights="pissa"), "says init_lora_weights 'pissa'; merge"),
    "no tensors": (stored(lambda tensors: {}), "expected weights, and the file holds none"),
    "half a file": (cut, "expected a whole safetensors file, got 500 bytes"),
    "no object": (lambda folder: (folder / ADAPTER).write_text("[]"), "expected a JSON object"),
    "no JSON": (lambda folder: (folder / ADAPTER).write_text("{"), "expected JSON"),
    "a deep one": (lambda folder: (folder / ADAPTER).write_text("[" * 99999), "expected JSON"),
    "another kind": (setting(peft_type="IA3"), "expected a LoRA adapter .*, and this is IA3"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused_before_the_run(what, tmp_path):
    spoil, sentence = MISFITS[what]
    folder = adapter("tiny-gpt2", tmp_path / "adapter")
    spoil(folder)
    with pytest.raises(ValueError, match=sentence) as refused:
        check(str(folder), "tiny-gpt2")
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


def test_an_adapter_of_another_model_is_refused_by_the_base_it_names(tmp_path):
    folder = adapter("tiny-llama", tmp_path / "adapter")
    configured(folder, base_model_name_or_path="acme/llama", target_modules=["mlp.c_proj"])
    with pytest.raises(
        ValueError, match=r"\(its base is 'acme/llama' by its adapter_config.json\)"
    ):
        check(str(folder), "tiny-gpt2")


def test_a_model_is_as_it_was_after_an_adapter_could_not_be_loaded(tmp_path, monkeypatch):
    folder = adapter("tiny-gpt2", tmp_path / "adapter")
    model = kn.load_model("tiny-gpt2")
    modules = list(model.hf.modules())

    def broken(*_, **__):
        raise RuntimeError("it broke\nhere")

    monkeypatch.setattr(peft.PeftModel, "load_adapter", broken)
    with pytest.raises(ValueError, match=r"peft cannot load it \(it broke\); name the base"):
        adapter_edit(model, folder)
    assert all(a is b for a, b in zip(modules, model.hf.modules(), strict=True))
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
