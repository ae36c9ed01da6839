"""Model folders as they are found: what is not whole is refused by name, before it is measured."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from kn_bench.model import architecture, embedded
from kn_bench.model.loading import load_model
from kn_bench.model.loading_tokens import load_tokens

GPT2, BERT, LLAMA = map(embedded.folder, ("tiny-gpt2", "tiny-bert", "tiny-llama"))
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def copied(tmp_path):
    def copy(source):
        folder = tmp_path / "model"
        shutil.copytree(source, folder)
        return folder

    return copy


def refusal(folder) -> str:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - its text is the test
        load_model(str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(folder: Path, drop) -> None:
    """Rewrite the weights without those whose name ``drop`` accepts."""
    tensors = {k: v for k, v in load_file(folder / WEIGHTS).items() if not drop(k)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# -- weights ------------------------------------------------------------------------------------


def test_an_encoder_without_its_head_is_refused(tmp_path):
    AutoModel.from_pretrained(BERT).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BERT).save_pretrained(tmp_path)
    assert refusal(tmp_path).startswith(
        f"{tmp_path}: expected weights for cls.predictions.bias, cls.predictions.decoder.bias, "
        "cls.predictions.transform.LayerNorm.bias and 3 more, which would otherwise be random; give"
    )


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (lambda name: name.endswith("h.1.mlp.c_proj.weight"), "transformer.h.1.mlp.c_proj.weight"),
        (lambda name: "wte" in name, "lm_head.weight, transformer.wte.weight"),
        (lambda name: True, "lm_head.weight, transformer.h.0.attn.c_attn.bias"),
    ],
    ids=["one", "embedding", "all"],
)
def test_weights_that_are_not_there_are_named(copied, gone, named):
    folder = copied(GPT2)
    without(folder, gone)
    said = refusal(folder)
    assert named in said or "expected weights, and the file holds none" in said


def test_an_untied_head_that_is_not_there_is_refused(tmp_path):
    config = AutoConfig.from_pretrained(LLAMA, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(LLAMA).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).n_layers
    without(tmp_path, lambda name: name == "lm_head.weight")
    assert refusal(tmp_path).startswith(f"{tmp_path}: expected weights for lm_head.weight, ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 6}, "expected weights for transformer.h.4.attn.c_attn.bias, "),
        (
            {"n_layer": 3},
            "expected weights of the 3 layers that its config.json names, and it holds layer 3",
        ),
        ({"n_inner": 96}, "expected transformer.h.0.mlp.c_fc.bias with shape "),
        ({"n_layer": 0}, "n_layer 0: expected a whole number from 1 to 1,000"),
        ({"n_layer": 10**9}, "n_layer 1000000000: expected a whole number"),
        ({"n_embd": "many"}, 'n_embd "many": expected a whole number'),
        ({"vocab_size": True}, "vocab_size true: expected a whole number"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "expected plain float weights, and these are quantised by gptq",
        ),
        (
            {"quantization_config": {"quant_method": "awq"}},
            "expected plain float weights, and these are quantised by awq",
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "expected plain float weights, and these are quantised by bitsandbytes",
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else None,
)
def test_a_config_that_does_not_fit_the_weights_is_refused(copied, changes, said):
    folder = copied(GPT2)
    edit_json(folder / CONFIG, **changes)
    assert said in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["transformer.h.3.ln_2.bias", "transformer.wte.weight"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_refused_as_they_are_loaded(copied, name, value, dtype):
    folder = copied(GPT2)
    tensors = load_file(folder / WEIGHTS)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"expected finite weights, and {name} holds NaN or inf"):
        load_model(str(folder), dtype=dtype)


def test_weights_that_a_dtype_cannot_hold_are_refused_in_it(copied):
    folder = copied(GPT2)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    tensors["transformer.ln_f.bias"][0] = 1e5
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert load_model(str(folder)).dtype == torch.float32
    with pytest.raises(ValueError, match="NaN or infinity; load it with --dtype float32, or down"):
        load_model(str(folder), dtype="float16")


def test_a_shard_that_is_missing_is_named(tmp_path):
    AutoModelForCausalLM.from_pretrained(GPT2).save_pretrained(tmp_path, max_shard_size="300KB")
    AutoTokenizer.from_pretrained(GPT2).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).n_layers == 4
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}: expected the {len(shards)} safetensors files that "
        f"model.safetensors.index.json names, and 1 is missing ({shards[1].name}); download "
        "the model again"
    )


@pytest.mark.parametrize("where", ["../elsewhere", "sub/../../elsewhere", "absolute"])
def test_a_shard_outside_of_the_folder_is_refused(tmp_path, where):
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    AutoModelForCausalLM.from_pretrained(GPT2).save_pretrained(folder, max_shard_size="300KB")
    AutoTokenizer.from_pretrained(GPT2).save_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("model-*.safetensors"))[0].name
    (folder / "sub").mkdir()
    elsewhere.mkdir()
    (folder / shard).rename(elsewhere / shard)
    named = f"{elsewhere if where == 'absolute' else where}/{shard}"
    assert (folder / named).is_file()
    index.write_text(index.read_text().replace(shard, named))
    assert refusal(folder) == (
        f"{index}: expected files of this folder, and it names {named}; download the model again"
    )


@pytest.mark.parametrize("length", [0, 4, 9, 500, -1])
def test_a_download_that_broke_off_is_refused(copied, length):
    folder = copied(GPT2)
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(length if length >= 0 else (folder / WEIGHTS).stat().st_size - 1)
    assert refusal(folder).endswith("download it again")


def test_an_empty_header_is_refused(copied):
    folder = copied(GPT2)
    (folder / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}")
    assert refusal(folder).endswith(
        "model.safetensors: expected weights, and the file holds none; download it again"
    )


def test_an_adapter_is_no_model(copied):
    folder = copied(GPT2)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/base"}')
    assert "expected a model, and it is a PEFT adapter of acme/base; merge it" in refusal(folder)


def _pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (_pipe, "expected a regular file, and it is a device or pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "expected a regular file, and it is a device"),
        (
            lambda path: path.symlink_to(path.parent / "nowhere"),
            "expected a regular file, and it is a broken link",
        ),
        (lambda path: path.mkdir(), "expected a regular file, and it is a folder"),
    ],
    ids=["pipe", "device", "nowhere", "folder"],
)
def test_what_is_no_file_is_never_opened(copied, name, put, said):
    folder = copied(GPT2)
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    assert f"{name}: {said}" in refusal(folder)


# -- classes ------------------------------------------------------------------------------------

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
SIGHT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def _gemma(vocabulary):
    config = Gemma3Config(
        text_config={**TEXT, "vocab_size": vocabulary}, vision_config=SIGHT, mm_tokens_per_image=4
    )
    return Gemma3ForConditionalGeneration(config)


def _llava(vocabulary):
    text = {**TEXT, "vocab_size": vocabulary, "model_type": "llama", "tie_word_embeddings": False}
    sight = {**SIGHT, "model_type": "clip_vision_model", "projection_dim": 32}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=sight))


@pytest.mark.parametrize("build", [_gemma, _llava])
def test_the_text_model_of_a_multimodal_class_is_what_answers(tmp_path, build):
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    whole = build(len(tokenizer)).eval()
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours = model.forward(ids, torch.arange(4)[None])
        theirs = whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert model.n_layers == 3


def test_a_row_for_the_multimodal_class_itself_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(architecture, "_TABLE", dict(architecture._TABLE))
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    _gemma(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    row = architecture.Architecture(
        family="gemma3",
        kind="causal",
        layers="model.language_model.layers",
        down="mlp.down_proj",
        attention="self_attn",
        mlp="mlp",
        head=("lm_head",),
    )
    architecture.register(row)
    assert architecture.registered() == (row,)
    assert load_model(str(tmp_path)).architecture is row


@pytest.mark.parametrize(
    ("family", "entry", "fields"),
    [
        ("cohere", {"logit_scale": 0.25}, {"scale": "logit_scale"}),
        ("granite", {"logits_scaling": 4.0}, {"divisor": "logits_scaling"}),
    ],
)
def test_a_registered_row_gives_the_models_logits_or_is_refused(
    family, entry, fields, tmp_path, monkeypatch
):
    monkeypatch.setattr(architecture, "_TABLE", dict(architecture._TABLE))
    tokenizer = AutoTokenizer.from_pretrained(LLAMA)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **entry))
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    row = architecture._llama_like(family)
    architecture.register(row)
    with pytest.raises(ValueError, match=rf"a row for {family} that gives the model's logits"):
        load_model(str(tmp_path))
    architecture.register(replace(row, **fields))
    model = load_model(str(tmp_path))
    ids = model.tensor([[5, 6, 7, 8]])
    ours = model.forward(ids, model.tensor([range(4)]))
    torch.testing.assert_close(ours, model.hf(input_ids=ids).logits)


# -- tokenizers ---------------------------------------------------------------------------------


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused(copied):
    folder = copied(GPT2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["Canadaland", "capitalish"])
    tokenizer.save_pretrained(folder)
    assert "and 2 tokens have no embedding (Canadaland, capitalish)" in (refusal(folder))
    model = AutoModelForCausalLM.from_pretrained(GPT2)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    assert load_model(str(folder)).vocabulary == len(tokenizer)


def test_a_tokenizer_json_that_is_read_as_another_class_is_refused(copied):
    folder = copied(BERT)
    (folder / "tokenizer_config.json").unlink()
    said = refusal(folder)
    assert said.startswith(
        f"{folder}: expected a tokenizer_config.json, without which transformers reads"
    )
    assert "[UNK] [UNK] of [UNK] is" in said


def written(**changes):
    return lambda path: edit_json(path, **changes)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("tokenizer.json", lambda path: path.write_bytes(path.read_bytes()[:1000]), "JSON ("),
        ("tokenizer.json", lambda path: path.write_text("[]"), "a JSON object; download it"),
        ("tokenizer_config.json", lambda path: path.write_text('{"a":'), "JSON (JSONDecodeError)"),
        ("tokenizer_config.json", lambda path: path.write_text("[]"), "a JSON object; download"),
        ("special_tokens_map.json", lambda path: path.write_text("[1]"), "a JSON object;"),
        ("tokenizer.json", Path.unlink, "tokenizer files that transformers can read"),
        ("tokenizer.json", written(model="x"), "tokenizer files that transformers can read"),
        (
            "tokenizer.json",
            written(added_tokens=[{"content": "x"}]),
            "tokenizer files that transformers can read, such as tokenizer.json (KeyError: 'id');",
        ),
        (
            "tokenizer_config.json",
            written(model_max_length="many"),
            "tokenizer files that transformers can read",
        ),
        (CONFIG, written(model_type="foo"), "a config.json that transformers takes"),
        (CONFIG, written(layer_norm_epsilon="x"), "a config.json that transformers takes"),
        (CONFIG, written(n_head=3), "a model that can be loaded (`embed_dim` must be divisible"),
        (CONFIG, written(activation_function="foo"), "a model that can be loaded (KeyError"),
    ],
)
def test_a_file_that_transformers_cannot_read_is_one_sentence(copied, name, spoil, said):
    folder = copied(GPT2)
    spoil(folder / name)
    sentence = refusal(folder)
    assert str(folder) in sentence
    assert f": expected {said}" in sentence
    assert "; " in sentence
    if "model that" not in said:  # what is loaded without the weights
        with pytest.raises(ValueError, match=re.escape(said)):
            load_tokens(str(folder))


CITIES = "Paris London Rome Oslo Madrid Berlin Vienna Prague Dublin Athens Lisbon Cairo Lima Quito"
NAMES = f"{CITIES} Tokyo Seoul Delhi Hanoi Manila Jakarta Nairobi Tunis"


@pytest.mark.parametrize("cased", [True, False])
def test_a_cased_vocabulary_behind_a_lower_casing_tokenizer_is_refused(tmp_path, cased):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "is", "capital", "canada"]
    words += (NAMES if cased else NAMES.lower()).split()
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), num_hidden_layers=2, **small)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    if not cased:
        assert load_model(str(tmp_path)).n_layers == 2
        return
    said = refusal(tmp_path)
    assert "and it changes 22 of 22 capitalised words of its vocabulary ('Athens' to " in said
    assert said.endswith('add a tokenizer_config.json that says {"do_lower_case": false}')
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokens = load_model(str(tmp_path)).tokens
    assert tokens.encode("Paris is").ids == (2, words.index("Paris"), words.index("is"), 3)


def test_a_masked_model_may_lack_what_its_class_ignores(tmp_path):
    """BERT's pooler and next-sentence head are in published checkpoints, and not in ours."""
    model = AutoModelForMaskedLM.from_pretrained(BERT)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BERT).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, 4)
    tensors["bert.pooler.dense.weight"] = torch.zeros(4, 4)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert load_model(str(tmp_path)).n_layers
