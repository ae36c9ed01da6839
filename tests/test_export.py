"""``kn-bench edit`` and ``kn-bench evaluate``: what is written is what was measured."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import kn_bench as kn
from kn_bench.commands import edit as edit_command
from kn_bench.commands import evaluate as evaluate_command
from kn_bench.commands.app import group
from kn_bench.editing.composition import Composition
from kn_bench.editing.edit import DenseEdit, LowRank, LowRankEdit, PromptEdit
from kn_bench.editing.exporting import save_adapter, save_checkpoint
from kn_bench.measure import harness
from kn_bench.measure.drawing import refuse_conflicts
from kn_bench.measure.harness import TaskFigure
from kn_bench.model import embedded
from kn_bench.results.files import StoreError
from kn_bench.results.loading import load_runs

BASE = "tiny-gpt2"
IDS = torch.tensor([[5, 6, 7, 8]])


def run(module, *arguments):
    result = CliRunner().invoke(module.app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError | StoreError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def model():
    return kn.load_model(BASE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two facts edited by ROME without C, as a user does it."""
    folder = tmp_path_factory.mktemp("edited") / "model"
    result = run(edit_command, BASE, "--method", "rome-no-c", "--relation", "P36", "--limit", 2,
                 "--measure", "-o", folder)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2 cases edited by rome-no-c" in result.output
    assert "Writing model shards" not in result.output  # a bar is for terminals
    return folder


def read_edits(folder, model):
    return [kn.load_edit(file, model=model) for file in sorted((folder / "edits").iterdir())]


def updates(model, *layers):
    generator = torch.Generator().manual_seed(0)
    return LowRankEdit(
        tuple(
            LowRank(layer, torch.randn(model.d_mlp, rank, generator=generator),
                    torch.randn(rank, model.d_model, generator=generator))
            for rank, layer in enumerate(layers, start=1)
        )
    )  # fmt: skip


def test_transformers_alone_loads_what_was_edited(written, model):
    hf = AutoModelForCausalLM.from_pretrained(written)
    edits = read_edits(written, model)
    assert len(edits) == 2
    with Composition(model) as composition:
        composition.add(edits)
        assert torch.equal(kn.load_model(str(written)).hf(IDS).logits, model.hf(IDS).logits)
        # kn_bench fuses the GELU, which moves the last bits
        assert torch.allclose(hf(IDS).logits, model.hf(IDS).logits, atol=1e-4)
    assert not torch.allclose(hf(IDS).logits, model.hf(IDS).logits, atol=1e-2)
    text = "The capital of France is"
    (ids,) = model.tokens.encode_many([text])
    assert AutoTokenizer.from_pretrained(written)(text).input_ids == list(ids)


def test_the_card_names_what_was_changed_and_by_what(written):
    card = (written / "README.md").read_text()
    assert card.startswith("---\nbase_model: tiny-gpt2\n")
    assert "edited by rome-no-c" in card
    assert card.count("low rank: layer") == 2
    assert "- v_lr: `" in card


def test_the_card_holds_the_scores_that_evaluate_gives(written, model):
    cases = kn.load_cases("embedded", relation="P36", limit=2)
    evaluation = kn.evaluate(model, f"checkpoint:{written}", cases)
    card = (written / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("|1 checkpoint:")]
    figures = [cell.split()[0].rstrip("°") for cell in row.strip("|").split("|")[3:]]
    criteria = ("reliability", "generality", "locality", "symmetry", "synonym", "overturn")
    assert figures == [f"{100 * evaluation.score(name):.0f}" for name in criteria]
    assert "not measured" not in card


def test_a_measurement_that_fails_loses_nothing(written, tmp_path, monkeypatch):
    def fails(lm, folder, cases):
        assert "edited by rome-no-c" in (folder / "README.md").read_text()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(edit_command, "measured_scores", fails)
    folder = tmp_path / "model"
    result = run(edit_command, BASE, "--method", "rome-no-c", "--relation", "P36", "--limit", 2,
                 "--measure", "-o", folder)  # fmt: skip
    assert str(result.exception) == "out of memory"
    assert f"2 cases edited by rome-no-c, written to {folder}" in result.output
    names = {file.relative_to(written) for file in written.rglob("*")}
    assert {file.relative_to(folder) for file in folder.rglob("*")} == names
    assert "The scores were not measured" in (folder / "README.md").read_text()


def ending(monkeypatch, place, number=1):
    """Have Ctrl-C end a command at a call of a function: ``module:name``, ``module:Class.name``."""
    module, _, name = place.partition(":")
    owner = import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    whole, calls = getattr(owner, name), []

    def ends(*given, **named):
        calls.append(name)
        if len(calls) == number:
            raise KeyboardInterrupt
        return whole(*given, **named)

    monkeypatch.setattr(owner, name, ends)


def edit(folder, *arguments):
    return run(edit_command, BASE, "--method", "rome-no-c", "--relation", "P36", "--limit", 2,
               "-o", folder, *arguments)  # fmt: skip


@pytest.mark.parametrize(
    ("place", "number", "form"),
    [
        ("kn_bench.editing.exporting:with_usual_rights", 1, ()),
        ("kn_bench.editing.exporting:with_usual_rights", 1, ("--as-adapter",)),
        ("kn_bench.editing.saving:save_file", 1, ("--as-adapter",)),
        ("kn_bench.editing.saving:save_file", 2, ()),
        ("kn_bench.editing.exporting:model_card", 1, ()),
        ("kn_bench.results.files:os.fsync", 1, ("--as-adapter",)),
    ],
)
def test_an_edit_that_is_ended_leaves_nothing_and_is_done_again(
    tmp_path, monkeypatch, place, number, form
):
    folder = tmp_path / "model"
    with monkeypatch.context() as patched:
        ending(patched, place, number)
        assert edit(folder, *form).exit_code == 130
    assert not list(folder.iterdir())
    assert edit(folder, *form).exit_code == 0
    assert len(list((folder / "edits").iterdir())) == 2
    assert not list(folder.glob(".*"))


def test_what_a_killed_edit_left_is_no_edit_and_does_not_stand_in_the_way(written, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(written, folder / edit_command.PART)
    (folder / edit_command.PART / "edits/0002.safetensors").write_bytes(b"left")
    with pytest.raises(ValueError, match=f"^{folder}: expected "):
        run(evaluate_command, "--base", BASE, "--edited", folder)
    assert edit(folder).exit_code == 0
    assert {path.relative_to(folder) for path in folder.rglob("*")} == {
        path.relative_to(written) for path in written.rglob("*")
    }


@pytest.mark.parametrize("moved", range(6))
def test_no_weights_are_in_place_before_all_else_is(written, tmp_path, monkeypatch, moved):
    def end_while_they_are_moved():
        ending(monkeypatch, "pathlib:Path.rename", 1 + moved)
        with edit_command.filling(tmp_path) as part:
            shutil.copytree(written, part, dirs_exist_ok=True)

    with pytest.raises(KeyboardInterrupt):
        end_while_they_are_moved()
    assert len(list(tmp_path.iterdir())) == moved
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected "):
        run(evaluate_command, "--base", BASE, "--edited", tmp_path)


def test_a_measurement_that_is_ended_leaves_what_evaluate_measures(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    ending(monkeypatch, "kn_bench.commands.edit:measured_scores")
    result = CliRunner().invoke(
        group,
        [*("edit", BASE, "--method", "rome-no-c", "--relation", "P36", "--limit", "1"),
         *("--measure", "-o", str(folder))],
    )  # fmt: skip
    assert result.exit_code == 130
    assert f"written to {folder} in float32\n" in result.output
    assert "if it said what it wrote, that is whole" in result.output
    measured = run(evaluate_command, "--base", BASE, "--edited", folder, "--relation", "P36",
                   "--limit", 1)  # fmt: skip
    assert measured.exit_code == 0


@pytest.mark.parametrize("number", [3, 4, 5])  # the table on the terminal writes two files first
def test_an_evaluation_that_is_ended_leaves_no_run_and_is_done_again(
    written, tmp_path, monkeypatch, number
):
    def ability(lm, edited, tasks):
        return [TaskFigure("task", "acc", 0.5, 0.1, 0.5, 0.1, 10)]

    monkeypatch.setattr(harness, "check_tasks", lambda tasks: None)
    monkeypatch.setattr(evaluate_command, "general_ability", ability)
    words = ["--base", BASE, "--edited", written, "--relation", "P36", "--limit", 1,
             "--lm-eval", "task", "-o", tmp_path / "run"]  # fmt: skip
    for place in ("kn_bench.results.files:os.fsync", "pathlib:Path.replace"):
        with monkeypatch.context() as patched:
            ending(patched, place, number)
            assert run(evaluate_command, *words).exit_code == 130
        with pytest.raises(StoreError, match="expected "):
            load_runs([tmp_path / "run"])
    assert run(evaluate_command, *words).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "lm_eval.json", "manifest.json", "measurements.jsonl"
    ]  # fmt: skip
    assert not load_runs([tmp_path / "run"]).cut


def test_evaluate_measures_the_folder_against_its_base(written, model, tmp_path):
    result = run(evaluate_command, "--base", BASE, "--edited", written, "--relation", "P36",
                 "--limit", 2, "-o", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{written} against tiny-gpt2: low rank: layer" in result.output
    assert "rank 2" in result.output
    assert "checkpoint:model" in result.output
    assert (tmp_path / "run" / "manifest.json").exists()


def test_evaluate_measures_the_edits_one_by_one(written, model):
    cases = kn.load_cases("embedded", relation="P36", limit=2)
    saved = kn.evaluate(model, f"checkpoint:{written / 'edits'}", cases)
    evaluation = kn.evaluate(model, "rome-no-c", cases)
    columns = ["case", "criterion", "verdict_status"]
    assert saved.verdicts[columns].equals(evaluation.verdicts[columns])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_what_was_edited_in_another_dtype_is_measured_in_it(dtype, tmp_path):
    folder, asked = tmp_path / "model", ("--relation", "P36", "--limit", 2, "--dtype", dtype)
    result = run(edit_command, BASE, "--method", "rome-no-c", "--measure", "-o", folder, *asked)
    assert result.exit_code == 0, result.output
    assert f"written to {folder} in {dtype}" in result.output
    card = (folder / "README.md").read_text()
    assert f"--edited FOLDER --cases FILE --dtype {dtype}`" in card
    measured = run(evaluate_command, "--base", BASE, "--edited", folder, "--markdown", *asked)
    assert measured.exit_code == 0, measured.output
    assert "low rank: layer" in measured.output  # no weight differs by its rounding alone
    (row,) = [line for line in measured.output.splitlines() if line.startswith("|1 checkpoint:")]
    assert row in card


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("", "every weight would differ by its rounding; measure it with --dtype bfloat16, or"),
        ("edits", "of a model in float32, and it was made in bfloat16; measure it with --dtype b"),
    ],
)
def test_what_was_edited_in_another_dtype_is_refused_in_the_usual_one(
    what, sentence, tmp_path, monkeypatch
):
    folder, asked = tmp_path / "model", ("--relation", "P36", "--limit", 1)
    run(edit_command, BASE, "--method", "rome-no-c", "-o", folder, "--dtype", "bfloat16", *asked)
    monkeypatch.setattr(
        "kn_bench.model.loading.load_model", lambda *_, **__: pytest.fail("a model is loaded")
    )
    with pytest.raises(ValueError, match=sentence):
        run(evaluate_command, "--base", BASE, "--edited", folder / what, *asked)


FACT = {"subject": "Italy", "relation": "capital", "prompt": "The capital of {} is",
        "target_true": "Rome", "target_new": "Cardiff"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "meet"),
    [
        ({"target_new": "Madrid"}, False),
        ({"target_new": "Madrid", "prompt": "{} has the capital"}, False),
        ({"relation": "name of the capital", "target_new": "Madrid"}, True),
        ({"subject": "Peru", "target_true": "Lima"}, True),
    ],
)
def test_facts_that_contradict_each_other_are_edited_together_on_request_only(
    change, meet, tmp_path
):
    cases, folder = tmp_path / "facts.jsonl", tmp_path / "model"
    cases.write_text(f"{json.dumps(FACT)}\n{json.dumps(FACT | change)}\n")
    asked = (BASE, "--method", "rome-no-c", "--cases", cases, "-o", folder)
    first, second = (case.id for case in kn.load_cases(cases))
    if not meet:
        with pytest.raises(ValueError, match="add --allow-conflicts") as refused:
            run(edit_command, *asked)
        assert not list(folder.iterdir())
        said = f"{first} and {second}: expected requests that can be met by one model, and both"
        assert str(refused.value).startswith(f"{said} have the same subject and relation; ")
    result = run(edit_command, *asked, *(() if meet else ("--allow-conflicts",)))
    assert result.exit_code == 0, result.output
    assert "2 cases edited by rome-no-c" in result.output


def test_pairs_that_ask_for_the_same_text_are_edited_together_on_request_only(tmp_path):
    pair = kn.load_cases("embedded")[-1]
    assert pair.task == "pair"
    refuse_conflicts([pair])
    with pytest.raises(ValueError, match="and both have the same text around the answer; leave"):
        refuse_conflicts([pair, replace(pair, request=replace(pair.request, id="another"))])


def test_a_folder_with_files_is_left_alone(written):
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        run(edit_command, BASE, "--method", "none", "-o", written)


def test_writing_a_checkpoint_leaves_the_config_as_it_was(model, tmp_path):
    before = repr(vars(model.hf.config))
    save_checkpoint(model, [updates(model, 0)], tmp_path)
    assert repr(vars(model.hf.config)) == before


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("save", [save_checkpoint, save_adapter])
def test_exported_weights_are_as_private_as_other_new_files(model, tmp_path, save, mask):
    before = os.umask(mask)
    try:
        save(model, [updates(model, 0)], tmp_path / "new")
    finally:
        os.umask(before)
    files = list((tmp_path / "new").iterdir())
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}
    assert any(file.suffix == ".safetensors" for file in files)


def test_peft_loads_the_adapter_with_equal_logits(model, tmp_path):
    peft = pytest.importorskip("peft")
    edits = [updates(model, 0), updates(model, 1, 0)]
    save_adapter(model, edits, tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(embedded.folder(BASE))
    before = hf(IDS).logits
    logits = peft.PeftModel.from_pretrained(hf, tmp_path)(IDS).logits
    with Composition(model) as composition:
        composition.add(edits)
        assert torch.allclose(logits, model.hf(IDS).logits, atol=1e-4)
    assert not torch.allclose(logits, before, atol=1e-1)


def test_the_adapter_of_a_linear_layer_has_pefts_names_and_product(tmp_path):
    from safetensors.torch import load_file

    llama = kn.load_model("tiny-llama")
    edit = updates(llama, 1)
    save_adapter(llama, [edit], tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (module,) = config["target_modules"]
    product = (
        tensors[f"base_model.model.{module}.lora_B.weight"]
        @ tensors[f"base_model.model.{module}.lora_A.weight"]
    )
    assert torch.allclose(product.T, edit.updates[0].u @ edit.updates[0].v, atol=1e-5)
    assert config["lora_alpha"] == config["r"]
    assert not config["fan_in_fan_out"]


@pytest.mark.parametrize(
    ("save", "edit", "sentence"),
    [
        (save_adapter, DenseEdit({}), "expected a low-rank change of down-projections"),
        (save_checkpoint, PromptEdit("Hi."), "expected a change of weights"),
    ],
)
def test_what_a_folder_cannot_hold_is_refused(model, tmp_path, save, edit, sentence):
    with pytest.raises(ValueError, match=sentence):
        save(model, [edit], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["edit", "evaluate"])
def test_a_command_that_takes_long_says_how_far_it_is(command, written, tmp_path, monkeypatch):
    monkeypatch.setattr("kn_bench.model.progress.LINE_EVERY", 0.0)
    asked = ("--relation", "P36", "--limit", 1)
    result = (
        run(edit_command, BASE, "--method", "rome-no-c", *asked, "-o", tmp_path / "model")
        if command == "edit"
        else run(evaluate_command, "--base", BASE, "--edited", written, *asked)
    )
    assert ("editing" if command == "edit" else "asking") in result.output
