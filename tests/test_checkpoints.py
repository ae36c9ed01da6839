"""Checkpoints, adapters and saved edits measured against their base."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, RobertaConfig
from typer.testing import CliRunner

import kn_bench as kn
from kn_bench.commands import edit, evaluate
from kn_bench.editing.adapters import check_adapter
from kn_bench.editing.applying import in_place
from kn_bench.editing.composition import Composition, summed
from kn_bench.editing.difference import checkpoint_edit, edit_of, low_rank
from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LowRank,
    LowRankEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    norm,
)
from kn_bench.editing.exporting import save_adapter, save_checkpoint
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.registry import RegistryError
from kn_bench.editing.saving import EditFileError, save_edit
from kn_bench.edits.checkpoint import EditedCheckpoint
from kn_bench.measure import ability
from kn_bench.measure.drawing import EDITED
from kn_bench.measure.engine import Engine
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.sequences import Plan, measure_sequence
from kn_bench.model import embedded
from kn_bench.model.comparing import _other_fields, check_edited_copy, counterpart
from kn_bench.model.source import source_of
from kn_bench.results.rows import VerdictRow
from tests.conftest import PLUGINS, plain

BASE = "tiny-gpt2"
LAYER = 1
EPS = torch.finfo(torch.float32).eps


def rank_one(model, scale=3.0):
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(model.d_mlp, 1, generator=generator)
    v = torch.randn(1, model.d_model, generator=generator)
    return LowRank(LAYER, u / u.norm(), scale * v / v.norm())


@pytest.fixture(scope="module")
def model():
    return kn.load_model(BASE)


@pytest.fixture
def few_questions(monkeypatch):
    """The curves of a test need not be precise."""
    for name, count in {"A_RELATION": 1, "TEXT_LINES": 2, "NEUTRAL": 2}.items():
        monkeypatch.setattr(ability, name, count)


@pytest.fixture
def copy(tmp_path):
    """A folder with the base's files, and a function that changes its tensors."""
    folder = tmp_path / "edited"
    shutil.copytree(embedded.folder(BASE), folder)
    (folder / "report.json").unlink()

    def change(function):
        tensors = load_file(folder / "model.safetensors")
        save_file(function(tensors), folder / "model.safetensors", {"format": "pt"})
        return folder

    return change


def stored(model, tensors):
    """What the file calls the edited matrix."""
    return counterpart(model.weight_name(LAYER), tensors)


def edited_by(model, update):
    def change(tensors):
        name = stored(model, tensors)
        delta = update.u @ update.v
        tensors[name] = tensors[name] + (delta.T if model.transposed(LAYER) else delta)
        return tensors

    return change


class Given:
    def __init__(self, edit):
        self._edit = edit

    def edit(self, requests):
        return [self._edit for _ in requests]


def figures(evaluation):
    kept = ["case", "criterion", "verdict_status", "verdict_score"]
    return evaluation.verdicts[kept].fillna(-1.0).values.tolist()


def test_a_checkpoint_by_plain_torch_measures_as_its_edit(model, copy):
    update = rank_one(model, 60.0)
    folder = copy(edited_by(model, update))
    cases = kn.load_cases("embedded", relation=["P36", "P106"], limit=3)

    @kn.edit_method("given")
    def given(language_model):
        return Given(LowRankEdit((update,)))

    expected = kn.evaluate(model, given, cases)
    evaluation = kn.evaluate(model, f"checkpoint:{folder}", cases)
    assert evaluation.method == "checkpoint:edited"
    assert figures(evaluation) == figures(expected)
    # the edit does something, so equal figures say something
    assert expected.score("locality") < 1
    for ours, theirs in zip(evaluation.results, expected.results, strict=True):
        for left, right in zip(ours.measurements, theirs.measurements, strict=True):
            assert left.after.log_prob_expected == pytest.approx(
                right.after.log_prob_expected, abs=1e-4
            )


def rome_of_another_tool(source, target, *, subject, prompt, new):
    """Edit one fact as another tool would: transformers and torch alone.

    The value at the subject's last token is optimised until the new answer follows (Meng et al.
    2022, section 3.1); with the identity for C, W' = W + (v - W k) k^T / (k^T k).
    """
    hf = AutoModelForCausalLM.from_pretrained(source).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = prompt.format(subject)
    ids = tokenizer(text, return_tensors="pt").input_ids
    answer = tokenizer(f"{text} {new}").input_ids[ids.shape[1]]
    last = len(tokenizer(text[: text.index(subject) + len(subject)]).input_ids) - 1
    projection = hf.transformer.h[LAYER].mlp.c_proj
    seen = {}

    def read(_, inputs, output):
        seen["key"], seen["value"] = inputs[0][0, last].clone(), output[0, last].clone()

    with projection.register_forward_hook(read):
        hf(ids)
    value = seen["value"].clone().requires_grad_()

    def write(_, inputs, output):
        output = output.clone()
        output[0, last] = value
        return output

    optimiser = torch.optim.Adam([value], lr=0.5)
    with projection.register_forward_hook(write):
        for _ in range(60):
            optimiser.zero_grad()
            (-hf(ids).logits[0, -1].log_softmax(-1)[answer]).backward()
            optimiser.step()
    key, change = seen["key"], value.detach() - seen["value"]
    projection.weight += torch.outer(key, change) / (key @ key)  # Conv1D: (d_mlp, d_model)
    hf.save_pretrained(target)
    tokenizer.save_pretrained(target)


def test_a_checkpoint_of_another_tools_rome_is_measured_against_its_base(tmp_path):
    fact = {"subject": "Italy", "prompt": "The name of the capital of {} is",
            "target_true": "Rome", "target_new": "Cardiff"}  # fmt: skip
    rome_of_another_tool(
        embedded.folder(BASE),
        tmp_path / "theirs",
        subject=fact["subject"],
        prompt=fact["prompt"],
        new=fact["target_new"],
    )
    cases = tmp_path / "fact.jsonl"
    cases.write_text(json.dumps(fact))
    arguments = ("--base", BASE, "--edited", tmp_path / "theirs", "--cases", cases, "-o",
                 tmp_path / "run")  # fmt: skip
    result = CliRunner().invoke(evaluate.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    reported = " ".join(result.output.split())
    tensor = f"transformer.h.{LAYER}.mlp.c_proj.weight"
    assert f"low rank: layer {LAYER} rank 1 ({tensor}); norm " in reported
    from kn_bench.results import log

    rows = [row for row in log.rows(tmp_path / "run" / log.LOG) if isinstance(row, VerdictRow)]
    status = {row.criterion: row.verdict.status for row in rows}
    assert status["reliability"] == "holds"
    assert status["overturn"] == "holds"


def not_finite(tensors):
    name = next(name for name in tensors if name.endswith("c_proj.weight"))
    tensors[name][0, 0] = float("nan")
    return tensors


def another_head(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (not_finite, "that is not finite (NaN or infinity)"),
        (another_head, "expected one matrix for transformer.wte.weight and lm_head.weight"),
    ],
)
def test_the_command_says_what_stopped_the_cases_and_fails(copy, tmp_path, change, sentence):
    arguments = ("--base", BASE, "--edited", str(copy(change)), "--relation", "P36", "--limit",
                 "2", "-o", str(tmp_path / "run"))  # fmt: skip
    result = CliRunner().invoke(evaluate.app, arguments)
    assert result.exit_code == 1
    assert result.output.count(sentence) == 1
    assert result.stderr.startswith("kn-bench: 2 of 2 cases: checkpoint:edited ")
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_folder_with_a_run_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    from kn_bench.model import loading
    from kn_bench.results.log import LOG

    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    (tmp_path / LOG).write_text("")
    theirs = embedded.folder(BASE)
    arguments = ("--base", BASE, "--edited", str(theirs), "-o", str(tmp_path))
    result = CliRunner().invoke(evaluate.app, arguments)
    assert result.exit_code != 0
    assert "expected a folder without a run; name another one" in str(result.exception)


def test_the_difference_says_what_it_is(model, copy):
    update = rank_one(model)
    edit = checkpoint_edit(model, copy(edited_by(model, update)))
    assert isinstance(edit, LowRankEdit)
    (factors,) = edit.updates
    assert (factors.layer, factors.u.shape[1]) == (LAYER, 1)
    assert torch.allclose(factors.u @ factors.v, update.u @ update.v, atol=1e-5)
    assert edit.notes["tensors"] == 1
    assert edit.notes["changed"] == model.weight_name(LAYER)
    assert edit.notes["norm"] == pytest.approx(norm(LowRankEdit((update,))), rel=1e-4)


def test_anything_but_down_projections_is_dense_and_put_in_place_once(model, copy, monkeypatch):
    from kn_bench.measure import engine

    def change(tensors):
        name = next(name for name in tensors if name.endswith("ln_f.bias"))
        return tensors | {name: tensors[name] + 1.0}

    folder = copy(change)
    edit = checkpoint_edit(model, folder)
    assert isinstance(edit, DenseEdit)
    times = []

    def counted(*arguments):
        times.append(arguments)
        return in_place(*arguments)

    monkeypatch.setattr(engine, "in_place", counted)
    cases = kn.load_cases("embedded", relation="P36", limit=3)
    evaluation = kn.evaluate(model, f"checkpoint:{folder}", cases)
    assert len(times) == 1
    assert {row[2] for row in figures(evaluation)} <= {"holds", "missed", "excluded",
                                                      "not_applicable"}  # fmt: skip


def test_an_unedited_copy_changes_nothing(model, copy):
    assert isinstance(checkpoint_edit(model, copy(lambda tensors: tensors)), NoEdit)


def test_a_wide_difference_stays_dense(model):
    name = model.weight_name(LAYER)
    delta = torch.randn(dict(model.hf.named_parameters())[name].shape)
    assert isinstance(edit_of(model, {name: delta}, EPS), DenseEdit)


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_low_rank_finds_the_rank_through_rounding(rank):
    generator = torch.Generator().manual_seed(rank)
    weight = torch.randn(120, 80, generator=generator)
    u = torch.randn(120, rank, generator=generator)
    v = torch.randn(rank, 80, generator=generator)
    delta = (weight + u @ v) - weight
    factors = low_rank(delta, EPS * float((weight + delta).norm()))
    assert factors is not None
    assert factors.u.shape[1] == rank
    assert (factors.u @ factors.v - u @ v).norm() < 1e-4 * (u @ v).norm()
    assert low_rank(torch.randn(120, 80, generator=generator), 1e-3) is None


@pytest.mark.parametrize(
    ("stored_as", "run_in"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")],
)
@pytest.mark.parametrize("sizes", [(1.0, 1.0), (20.0, 20.0, 20.0, 0.1), (50.0, 0.2)])
def test_16_bits_hide_no_small_edit_beside_large_ones(copy, tmp_path, stored_as, run_in, sizes):
    dtype, generator = getattr(torch, stored_as), torch.Generator().manual_seed(0)
    folder = copy(lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})
    shutil.copytree(folder, tmp_path / "base")
    lm = kn.load_model(str(tmp_path / "base"), dtype=run_in)
    before = lm.weight(LAYER).float().clone()
    u = torch.randn(lm.d_mlp, len(sizes), generator=generator)
    v = torch.randn(len(sizes), lm.d_model, generator=generator)
    u, v = u / u.norm(dim=0), v / v.norm(dim=1, keepdim=True)
    change = u * torch.tensor(sizes) * before.norm() @ v
    edited = (before + change).to(dtype)
    layout = edited.T if lm.transposed(LAYER) else edited
    copy(lambda tensors: tensors | {stored(lm, tensors): layout.contiguous()})
    edit = checkpoint_edit(lm, folder)
    assert isinstance(edit, LowRankEdit | DenseEdit)
    if min(sizes) == max(sizes):  # what rounding leaves over is no reason to be dense
        assert isinstance(edit, LowRankEdit)
        assert edit.updates[0].u.shape[1] == len(sizes)
    with in_place(lm, edit):
        left = edited.float() - lm.weight(LAYER).float()
    of_each = (u.T @ left).norm(dim=1) / before.norm()
    assert (of_each < 0.1 * torch.tensor(sizes)).all()


def test_a_checkpoint_in_a_sequence_is_applied_once(model, copy):
    folder = copy(edited_by(model, rank_one(model)))
    method = EditedCheckpoint(model, folder)
    first, state = method.edit_together([], method.begin())
    second, _ = method.edit_together([], state)
    assert isinstance(first, LowRankEdit)
    assert isinstance(second, NoEdit)


def saved_alone(lm, edits, folder):
    source = Provenance(model=BASE, model_hash=lm.content_hash, method="by hand")
    folder.mkdir(exist_ok=True)
    save_edit(edits[0], folder / "all.safetensors", provenance=source)


def write_checkpoint(model, folder, scale, save=save_checkpoint, *, anew=True):
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    save(model, [LowRankEdit((rank_one(model, scale),))], folder)


WAYS = pytest.mark.parametrize("save", [save_checkpoint, save_adapter, saved_alone])


def size_of(method):
    (edit,) = method.edit([kn.load_cases("embedded", relation="P36", limit=1)[0].request])
    return round(norm(edit), 2)


@WAYS
@pytest.mark.parametrize("anew", [True, False])
def test_a_folder_that_was_written_again_is_measured_as_it_is_now(model, tmp_path, save, anew):
    if save is save_adapter:
        pytest.importorskip("peft")
    for scale in (3.0, 5.0, 4.0):
        write_checkpoint(model, tmp_path / "edited", scale, save, anew=anew)
        for _ in range(2):
            assert size_of(kn.method(f"checkpoint:{tmp_path / 'edited'}", model)) == scale


@WAYS
def test_a_relative_path_is_another_folder_elsewhere(model, tmp_path, save, monkeypatch):
    if save is save_adapter:
        pytest.importorskip("peft")
    for scale in (3.0, 5.0):
        place = tmp_path / f"{scale}"
        place.mkdir()
        write_checkpoint(model, place / "edited", scale, save)
        monkeypatch.chdir(place)
        assert size_of(kn.method("checkpoint:edited", model)) == scale


@WAYS
@pytest.mark.parametrize("anew", [True, False])
def test_what_is_written_again_under_a_method_is_refused(model, tmp_path, save, anew):
    if save is save_adapter:
        pytest.importorskip("peft")
    write_checkpoint(model, tmp_path / "edited", 3.0, save)
    method = kn.method(f"checkpoint:{tmp_path / 'edited'}", model)
    write_checkpoint(model, tmp_path / "edited", 5.0, save, anew=anew)
    with pytest.raises(ValueError, match="written again since; measure it again"):
        size_of(method)


def test_an_unchanged_checkpoint_is_read_once(model, copy, monkeypatch):
    folder = copy(edited_by(model, rank_one(model)))
    first = EditedCheckpoint(model, folder).whole()[0]
    monkeypatch.setattr("kn_bench.edits.checkpoint.checkpoint_edit", pytest.fail)
    assert EditedCheckpoint(model, folder).whole()[0] is first


# -- what cannot be compared -------------------------------------------------------------------


def drop(tensors):
    name = next(name for name in tensors if name.endswith("c_proj.weight"))
    return {key: tensor for key, tensor in tensors.items() if key != name}


def shape(tensors):
    name = next(name for name in tensors if name.endswith("c_proj.weight"))
    return tensors | {name: tensors[name][:-1].contiguous()}


def half(tensors):
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop, "lacks .*c_proj.weight; save the whole model"),
        (shape, "has shape .*, in the base "),
        (half, "is BF16, in the base F(32|16): every weight would differ by its rounding"),
    ],
)
def test_what_is_no_edited_copy_is_refused_in_a_sentence(model, copy, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        kn.method(f"checkpoint:{copy(change)}", model)


def test_another_tokenizer_or_architecture_is_refused(model, copy):
    folder = copy(lambda tensors: tensors)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="another tokenizer; name the base"):
        kn.method(f"checkpoint:{folder}", model)
    with pytest.raises(ValueError, match="it is a gpt2 where the base is a llama"):
        kn.method(f"checkpoint:{folder}", kn.load_model("tiny-llama"))


def tokenizer_of(folder, function):
    """Change the tokenizer of a checkpoint."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(function(json.loads(path.read_text()))))


TEMPLATE = {
    "type": "TemplateProcessing", "pair": [],
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
               {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0],
                                         "tokens": ["<|endoftext|>"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("normalizer", lambda t: t | {"normalizer": {"type": "Lowercase"}}),
        ("normalizer", lambda t: t | {"normalizer": {"type": "Strip", "strip_left": True,
                                                     "strip_right": True}}),
        ("pre_tokenizer", lambda t: t | {"pre_tokenizer": {"type": "Whitespace"}}),
        ("pre_tokenizer", lambda t: t | {"pre_tokenizer": None}),
        ("post_processor", lambda t: t | {"post_processor": TEMPLATE}),
        ("vocabulary", lambda t: t | {"model": t["model"] | {"ignore_merges": True}}),
        ("vocabulary", lambda t: t | {"model": t["model"] | {"merges": t["model"]["merges"][1:]}}),
        ("set of added tokens", lambda t: t | {"added_tokens": [
            token | {"lstrip": True} for token in t["added_tokens"]]}),
    ],
)  # fmt: skip
def test_a_tokenizer_that_splits_otherwise_is_refused_by_its_part(model, copy, part, change):
    folder = copy(lambda tensors: tensors)
    tokenizer_of(folder, change)
    said = f"its tokenizer.json has another {part}, so that it is another tokenizer; name the base"
    with pytest.raises(ValueError, match=said):
        kn.method(f"checkpoint:{folder}", model)
    (folder / "tokenizer.json").unlink()  # as the message says
    check_edited_copy(BASE, folder)


def in_other_words(content):
    """The same tokenizer as another release writes it, trained and saved with padding."""
    model, pad = content["model"], {"strategy": "BatchLongest", "direction": "Right",
                                    "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                                    "pad_token": "<|endoftext|>"}  # fmt: skip
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    kept = {key: value for key, value in model.items() if value is not None and value is not False}
    return content | {"model": kept | {"merges": merges}, "padding": pad, "decoder": None}


@pytest.mark.parametrize("base", ["tiny-gpt2", "tiny-llama", "tiny-bert"])
@pytest.mark.parametrize("saved", [False, True])
def test_the_same_tokenizer_in_other_words_is_no_other(base, saved, tmp_path):
    folder = shutil.copytree(embedded.folder(base), tmp_path / "edited")
    if saved:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    tokenizer_of(folder, in_other_words)
    assert (folder / "tokenizer.json").read_bytes() != (
        embedded.folder(base) / "tokenizer.json"
    ).read_bytes()
    check_edited_copy(base, folder)


@pytest.mark.parametrize("class_of", ["GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer"])
def test_a_tokenizer_that_its_class_makes_anew_is_no_other(class_of, tmp_path):
    """Transformers then ignores parts of the file, and saves what it made."""
    base, edited = tmp_path / "base", tmp_path / "edited"
    shutil.copytree(embedded.folder(BASE), base)
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_of}))
    shutil.copytree(base, edited)
    AutoTokenizer.from_pretrained(base).save_pretrained(edited)
    check_edited_copy(str(base), edited)


def edited_config(name, folder, function):
    """A copy of an embedded model with another config."""
    shutil.copytree(embedded.folder(name), folder)
    path = folder / "config.json"
    path.write_text(json.dumps(function(json.loads(path.read_text()))))
    return folder


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        ("tiny-gpt2", "layer_norm_epsilon", 0.5),
        ("tiny-gpt2", "activation_function", "relu"),
        ("tiny-gpt2", "n_layer", 5),
        ("tiny-gpt2", "n_head", 2),
        ("tiny-gpt2", "scale_attn_weights", False),
        ("tiny-llama", "rope_parameters", {"rope_theta": 500000.0, "rope_type": "default"}),
        ("tiny-llama", "rms_norm_eps", 1e-5),
        ("tiny-llama", "num_key_value_heads", 2),
        ("tiny-bert", "is_decoder", True),
        ("tiny-bert", "hidden_act", "relu"),
    ],
)
def test_another_config_is_refused_by_its_field(base, field, value, tmp_path):
    folder = edited_config(base, tmp_path / "edited", lambda config: config | {field: value})
    said = re.escape(f"says {field} {json.dumps(value)}, in the base ")
    with pytest.raises(ValueError, match=said):
        check_edited_copy(base, folder)


BOOKKEEPING = {
    "transformers_version": "4.0.0", "_name_or_path": "acme/base", "dtype": "float64",
    "architectures": ["GPT2Model"], "use_cache": False, "pad_token_id": 7, "eos_token_id": 7,
    "attn_pdrop": 0.1, "initializer_range": 0.5, "summary_type": "last", "n_inner": None,
    "unsloth_version": "2024.9", "task_specific_params": {"text-generation": {"do_sample": True}},
}  # fmt: skip


def of_an_older_release(config):
    """Llama's config without what is the default, and with RoPE as it used to be written."""
    omitted = {"attention_bias", "mlp_bias", "hidden_act", "head_dim", "num_key_value_heads",
               "rope_parameters"}  # fmt: skip
    return {k: v for k, v in config.items() if k not in omitted} | {"rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("tiny-gpt2", lambda config: config | BOOKKEEPING),
        ("tiny-llama", of_an_older_release),
        ("tiny-bert", lambda config: config | {"pad_token_id": 3, "classifier_dropout": 0.2}),
    ],
)
def test_a_config_that_computes_the_same_is_no_other(base, change, tmp_path):
    check_edited_copy(base, edited_config(base, tmp_path / "edited", change))


def test_the_padding_token_counts_where_positions_are_counted_from_it():
    one, other = RobertaConfig(pad_token_id=1), RobertaConfig(pad_token_id=2)
    (said,) = _other_fields(one, other, ())
    assert "says pad_token_id 2, in the base 1" in said


@pytest.mark.parametrize(
    "name",
    ["lm_head.bias", "transformer.h.4.mlp.c_proj.weight", "transformer.h.0.mlp.gate.weight"],
)
def test_a_tensor_that_the_base_has_not_is_refused(copy, name):
    folder = copy(lambda tensors: tensors | {name: torch.ones(3)})
    with pytest.raises(ValueError, match=f"it holds {name}, which the base has not; name"):
        check_edited_copy(BASE, folder)


def test_what_plays_no_part_and_a_copy_of_the_embeddings_may_be_stored(copy):
    def change(tensors):
        head = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
        return tensors | head | {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}

    check_edited_copy(BASE, copy(change))


def test_a_base_with_a_head_of_its_own_needs_it_in_the_checkpoint(copy, tmp_path):
    untied = edited_config(BASE, tmp_path / "base", lambda c: c | {"tie_word_embeddings": False})
    tensors = load_file(untied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, untied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="says tie_word_embeddings true, in the base false"):
        check_edited_copy(str(untied), copy(lambda tensors: tensors))
    without = shutil.copytree(untied, tmp_path / "without")
    del tensors["lm_head.weight"]
    save_file(tensors, without / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"it lacks lm_head.weight; save the whole model"):
        check_edited_copy(str(untied), without)


@pytest.mark.parametrize(
    "content",
    [
        {"model": "x"},
        {"model": []},
        {},
        {"model": {"type": "BPE", "vocab": {}, "merges": [1, 2]}},
        {"model": {"type": "BPE", "vocab": {}}, "added_tokens": [{"content": "x"}]},
        {"model": {"type": "BPE", "vocab": {}}, "added_tokens": "abc"},
        [],
    ],
)
def test_a_checkpoint_with_a_broken_tokenizer_is_refused_by_its_file(copy, content):
    folder = copy(lambda tensors: tensors)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"edited/tokenizer.json: expected .*; ") as refused:
        check_edited_copy(BASE, folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("checkpoint", "expected checkpoint:FOLDER; name one"),
        ("checkpoint:nowhere", "nowhere: expected a checkpoint, an adapter or saved edits"),
    ],
)
def test_a_missing_folder_is_said(model, name, sentence):
    with pytest.raises((ValueError, RegistryError), match=sentence):
        kn.method(name, model)


@pytest.mark.parametrize("name", ["edited[1]", "edited*", "ed?ted", "[abc]"])
def test_a_path_is_no_pattern(model, copy, name):
    folder = copy(edited_by(model, rank_one(model)))
    folder = folder.rename(folder.with_name(name))
    assert kn.method(f"checkpoint:{folder}", model).name == f"checkpoint:{name}"


@pytest.mark.parametrize("name", ["edited.gguf", "EDITED.GGUF"])
def test_a_gguf_file_is_refused_as_one(model, tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=f"{name}: expected a checkpoint, .* it is a GGUF file"):
        kn.method(f"checkpoint:{tmp_path / name}", model)


@pytest.mark.parametrize("name", ["MODEL.GGUF", "Model.Gguf"])
def test_a_gguf_file_is_one_in_any_case(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: expected a GGUF file, and the path does not"):
        source_of(str(tmp_path / name))


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json"])
def test_whole_weights_beside_an_adapter_are_refused(model, copy, weights):
    folder = copy(edited_by(model, rank_one(model)))
    (folder / "model.safetensors").rename(folder / weights)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="whole weights or an adapter, and it holds both; keep"):
        kn.method(f"checkpoint:{folder}", model)


# -- saved edits and adapters ------------------------------------------------------------------


def test_saved_edits_serve_the_cases_they_were_made_for(model, tmp_path):
    cases = kn.load_cases("embedded", relation="P36", limit=3)
    source = Provenance(model=BASE, model_hash=model.content_hash, method="by hand")
    for number, case in enumerate(cases[:2]):
        save_edit(
            LowRankEdit((rank_one(model, 1.0 + number),)),
            tmp_path / f"{number}.safetensors",
            provenance=replace(source, case=case.id),
        )
    *edits, missing = kn.method(f"checkpoint:{tmp_path}", model).edit([c.request for c in cases])
    assert [round(norm(edit), 3) for edit in edits if isinstance(edit, LowRankEdit)] == [1.0, 2.0]
    assert str(missing) == "no edit of this case was saved"


@pytest.mark.parametrize(
    "other",
    [
        {"target_new": "Paris"},
        {"target_true": "Paris"},
        {"subject": "Peru"},
        {"prompt": "{} has the capital"},
        {"suffix": ", they say."},
        {},
    ],
)
def test_a_saved_edit_is_not_measured_on_another_request_of_its_id(model, tmp_path, other):
    cases = kn.load_cases("embedded", relation="P36", limit=2)
    source = Provenance(model=BASE, model_hash=model.content_hash, method="by hand")
    for case in cases:
        path = tmp_path / f"{case.request.subject}.safetensors"
        save_edit(LowRankEdit((rank_one(model),)), path, provenance=source.of(case.request))
    first, second = (case.request for case in cases)
    bound = kn.method(f"checkpoint:{tmp_path}", model)
    edits = bound.edit([replace(first, **other), replace(second, background=(), queries=())])
    assert isinstance(edits[1], LowRankEdit)  # where neurons are located says nothing of the edit
    if not other:
        assert isinstance(edits[0], LowRankEdit)
        return
    said = f"the edit in {first.subject}.safetensors was made for another request of this id"
    assert str(edits[0]) == said
    evaluation = kn.evaluate(
        model, f"checkpoint:{tmp_path}", [replace(cases[0], request=replace(first, **other))]
    )
    assert set(evaluation.verdicts["verdict_status"]) == {"not_applicable"}
    assert said in set(evaluation.verdicts["verdict_explanation"])


FILES: dict[str, tuple[dict[int | str, float], list[float]]] = {
    "each": ({0: 1.0, 1: 2.0, 2: 4.0}, [1.0, 3.0, 7.0]),
    "all": ({"": 8.0}, [8.0, 8.0, 8.0]),
    "each and all": ({0: 1.0, "": 8.0}, [1.0, 9.0, 9.0]),
    "all, a file each": ({0: 8.0, 1: 8.0, 2: 8.0}, [8.0, 8.0, 8.0]),
    "only of the first": ({0: 1.0}, [1.0, 1.0, 1.0]),
}
"""Size of the edit of each case, "" for all; and of the change of the weights after each case."""


def prompts(n):
    """Cases that are asked on the edited prompt alone."""
    cases = kn.load_cases("embedded", relation="P36", limit=n)
    asked = [[p for p in case.probes if p.criterion == "reliability"] for case in cases]
    return tuple(replace(case, probes=tuple(p)) for case, p in zip(cases, asked, strict=True))


@pytest.mark.parametrize("files", FILES)
def test_saved_edits_are_in_force_once_each_in_steps(files, model, tmp_path, few_questions):
    """One for all was applied once a request, and none was read after the first step."""
    sizes, changed = FILES[files]
    cases = prompts(3)
    source = Provenance(model=BASE, model_hash=model.content_hash, method="by hand")
    for case, size in sizes.items():
        made = LowRankEdit((rank_one(model, size),), for_all=files.startswith("all"))
        of = source.of(cases[case].request) if isinstance(case, int) else source
        save_edit(made, tmp_path / f"{case}.safetensors", provenance=of)
    bound = kn.method(f"checkpoint:{tmp_path}", model)
    weight = float(model.weight(LAYER).double().norm())
    for protocol, expected in (("sequence:3", changed), ("sequence:3/3", changed[-1:])):
        asked = Plan(parse_protocol(protocol), cases)
        result = measure_sequence(Engine(model), "saved", bound.inner, asked)
        assert not any(r.error for r in (*result.results.values(), *result.retained.values()))
        grown = [weight * sum(n.relative for n in point.norms) for point in result.checkpoints[1:]]
        assert grown == pytest.approx(expected, rel=1e-4)
        refused = [r.case for r in result.results.values() if r.not_applicable]
        assert refused == [c.id for i, c in enumerate(cases) if not {i, ""} & set(sizes)]
    edits, _ = edit.make_edits(bound, list(cases))
    assert norm(summed(list(edits.values()))) == pytest.approx(changed[-1], rel=1e-4)


def test_saved_edits_that_have_no_sum_are_refused_in_one_step(model, tmp_path, few_questions):
    cases = prompts(2)
    source = Provenance(model=BASE, model_hash=model.content_hash, method="by hand")
    scaled = NeuronEdit((NeuronScale(LAYER, torch.tensor([3]), 2.0),))
    for case, made in zip(cases, (LowRankEdit((rank_one(model),)), scaled), strict=True):
        path = tmp_path / f"{case.request.subject}.safetensors"
        save_edit(made, path, provenance=source.of(case.request))
    method = kn.method(f"checkpoint:{tmp_path}", model).inner
    asked = Plan(parse_protocol("batch:2"), cases)
    result = measure_sequence(Engine(model), "saved", method, asked)
    reasons = {r.not_applicable for r in result.results.values()}
    assert reasons == {"batch:2: edits of different kinds have no sum"}


def test_a_saved_edit_is_checked_against_the_model_as_it_was_loaded(model, tmp_path):
    """In a sequence every one after the first step was refused: it was made for another model."""
    (case,) = kn.load_cases("embedded", relation="P36", limit=1)
    saved_alone(model, [LowRankEdit((rank_one(model, 5.0),))], tmp_path)
    foreign = Provenance(model="gpt2", model_hash="f" * 64, method="by hand").of(case.request)
    save_edit(NoEdit(), tmp_path / "foreign.safetensors", provenance=foreign)
    methods = [kn.method(f"checkpoint:{tmp_path / name}.safetensors", model)
               for name in ("all", "foreign")]  # fmt: skip
    with Composition(model) as edited:
        edited.add([LowRankEdit((rank_one(model),))])
        assert size_of(methods[0]) == 5.0
        with pytest.raises(EditFileError, match=r"this one was made for gpt2 \(ffffffffffff\)"):
            methods[1].edit([case.request])


def test_an_adapter_measures_as_what_it_adds(model, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(embedded.folder(BASE))
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["c_proj"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(hf, config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    adapted.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    expected = adapted(ids).logits
    before = model.parameter_hash()
    (edit,) = kn.method(f"checkpoint:{tmp_path}", model).edit(
        [kn.load_cases("embedded", relation="P36", limit=1)[0].request]
    )
    assert model.parameter_hash() == before
    assert isinstance(edit, DenseEdit)  # attention's c_proj is adapted too
    with kn.edited(model, edit):
        assert torch.allclose(model.hf(ids).logits, expected, atol=1e-4)
    assert not torch.allclose(model.hf(ids).logits, expected, atol=1e-1)


def test_an_adapter_without_peft_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"needs peft: pip install 'kn_bench\[peft\]'"):
        check_adapter(tmp_path, installed=lambda name: find_spec("not_to_be_found"))


# -- one edit that holds several cases ---------------------------------------------------------


CAPITALS = (("Italy", "Rome", "Madrid"), ("France", "Paris", "Rome"), ("Spain", "Madrid", "Paris"))


@pytest.fixture
def capitals(tmp_path):
    """Three facts, each of which has the other two for neighbours."""
    path = tmp_path / "three.jsonl"
    lines = (
        {"subject": subject, "prompt": "The capital of {} is", "target_true": true,
         "target_new": new, "neighbours": [
             {"prompt": f"The capital of {s} is", "answer": t}
             for s, t in (*((s, t) for s, t, _ in CAPITALS if s != subject), ("Peru", "Lima"))
         ]}
        for subject, true, new in CAPITALS
    )  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def named_neighbours(evaluation, cases):
    """Whose locality was asked, and how many probes were left out, by case."""
    clozes = {(case.id, p.id): p.cloze.left for case in cases for p in case.probes}
    asked = {
        (result.case.rpartition("/")[2], word)
        for result in evaluation.results
        for m in result.measurements
        if m.kind == "same_relation"
        for word in clozes[result.case, m.probe].split()
    }
    subjects = {subject for subject, _, _ in CAPITALS} | {"Peru"}
    left_out = [sum(e.reason == EDITED for e in r.exclusions) for r in evaluation.results]
    return {(case, subject) for case, subject in asked if subject in subjects}, left_out


@pytest.mark.parametrize("form", ["checkpoint", "adapter", "saved for all", "saved for each"])
def test_no_neighbour_is_asked_that_the_same_edit_changes(form, model, capitals, tmp_path):
    cases = kn.load_cases(capitals)
    source = Provenance(model=BASE, model_hash=model.content_hash, method="by hand")
    edit, folder = LowRankEdit((rank_one(model),)), tmp_path / "edited"
    if form == "checkpoint":
        save_checkpoint(model, [edit], folder)
    elif form == "adapter":
        save_adapter(model, [edit], folder)
    else:
        folder.mkdir()
        for number, id in enumerate([""] if form == "saved for all" else [c.id for c in cases]):
            made_for = replace(source, case=id)
            save_edit(edit, folder / f"{number}.safetensors", provenance=made_for)
    evaluation = kn.evaluate(model, f"checkpoint:{folder}", cases)
    assert not evaluation.errors
    asked, left_out = named_neighbours(evaluation, cases)
    everything = {(s, other) for s, _, _ in CAPITALS for other in ("Italy", "France", "Spain")
                  if s != other}  # fmt: skip
    own = {(subject, "Peru") for subject, _, _ in CAPITALS}
    apart = form == "saved for each"
    assert asked == (everything | own if apart else own)
    assert left_out == ([0] * 3 if apart else [2] * 3)
    rows = evaluation.verdicts.query("criterion == 'locality'")
    assert (rows["verdict_left_out"] == (0 if apart else 2)).all()


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        *itertools.product(("low rank", "dense"), (save_checkpoint, saved_alone)),
        ("low rank", save_adapter),
    ],
)
def test_a_case_has_the_same_control_whatever_else_is_measured(kind, save, model, tmp_path):
    edit: Edit = LowRankEdit((rank_one(model, 60.0),))
    if kind == "dense":
        positions = model.hf.transformer.wpe.weight
        edit = DenseEdit({"transformer.wpe.weight": torch.ones_like(positions)})
    save(model, [edit], tmp_path / "edited")
    method = kn.method(f"checkpoint:{tmp_path / 'edited'}", model)
    cases, engine = kn.load_cases("embedded", relation="P36", limit=3), Engine(model)

    def controls(cases):
        results = engine.measure("elsewhere", method, cases, control=True).results.values()
        drawn = [result.control for result in results if result.control]
        return {(m.case, m.probe): m.kl for control in drawn for m in control.measurements}

    alone = {key: kl for case in cases for key, kl in controls([case]).items()}
    assert max(alone.values()) > 0.01
    for together in (cases, cases[::-1]):
        # the rows beside one change its last bits
        assert controls(together) == pytest.approx(alone, abs=1e-5)


def test_the_commands_ask_no_neighbour_that_they_edited(capitals, tmp_path):
    folder, run = tmp_path / "model", tmp_path / "run"
    asked = ("--cases", str(capitals))
    made = CliRunner().invoke(
        edit.app, [BASE, "--method", "rome-no-c", "--measure", "-o", str(folder), *asked]
    )
    assert made.exit_code == 0, made.output
    arguments = ("--base", BASE, "--edited", str(folder), "-o", str(run), *asked)
    measured = CliRunner().invoke(evaluate.app, [*arguments, "--markdown"])
    assert measured.exit_code == 0, measured.output
    (row,) = [line for line in measured.output.splitlines() if line.startswith("|1 checkpoint:")]
    assert row in (folder / "README.md").read_text()
    from kn_bench.results import log

    rows = [row for row in log.rows(run / log.LOG) if isinstance(row, VerdictRow)]
    assert [r.verdict.left_out for r in rows if r.criterion == "locality"] == [2, 2, 2]


# -- in the suites -----------------------------------------------------------------------------


def test_another_config_ends_the_run_and_the_command_before_they_begin(
    tmp_path, pytester, monkeypatch, capsys
):
    from kn_bench.commands import app

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder = edited_config(BASE, tmp_path / "edited", lambda c: c | {"layer_norm_epsilon": 0.5})
    sentence = "expected an edited copy of tiny-gpt2, and its config.json says layer_norm_epsilon"
    arguments = (*PLUGINS, "--pyargs", "kn_bench.suites", "--model", BASE, "--relation", "P36",
                 "--limit", "2", "--method", f"checkpoint:{folder}")  # fmt: skip
    result = pytester.runpytest_subprocess(*arguments)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: *{sentence}*"])
    command = ["kn-bench", "evaluate", "--base", BASE, "--edited", str(folder)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        app.app()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_suites_measure_a_checkpoint(model, copy, pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder = copy(edited_by(model, rank_one(model)))
    arguments = (*PLUGINS, "--pyargs", "kn_bench.suites", "--model", BASE, "--relation", "P36",
                 "--limit", "2", "--run", "a", "--method", f"checkpoint:{folder}")  # fmt: skip
    result = pytester.runpytest_subprocess(*arguments)
    assert result.ret == 0, plain(result.stdout.str())
    from kn_bench.results import log

    logged = log.rows(Path(pytester.path) / "reports/runs/a" / log.LOG)
    rows = [row for row in logged if isinstance(row, VerdictRow)]
    assert Counter(row.method for row in rows) == {
        "checkpoint:edited": 12,
        "control:checkpoint:edited": 12,
    }
