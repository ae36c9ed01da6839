"""The models that ship with the package: their files, and what they know."""

import dataclasses
import functools
import hashlib
import stat
import subprocess
import sys

import pytest
import torch

from kn_bench.model import embedded
from kn_bench.model.embedded.facts import facts
from kn_bench.model.embedded.grammar import PARADIGMS
from tests.shares import mostly_slow
from training import evaluate, report
from training.corpus import TrainingCorpus
from training.scoring import Scorer

CLASSES = {
    "tiny-gpt2": "GPT2LMHeadModel",
    "tiny-llama": "LlamaForCausalLM",
    "tiny-bert": "BertForMaskedLM",
}
QUESTIONS, PAIRS = 250, 60

each_model = pytest.mark.parametrize("name", embedded.NAMES)
one_model = pytest.mark.parametrize("name", mostly_slow(embedded.NAMES, fast=["tiny-gpt2"]))


@pytest.fixture(scope="module")
def scorers():
    return {name: Scorer(embedded.folder(name)) for name in embedded.NAMES}


# Files --------------------------------------------------------------------------------------


@each_model
def test_a_model_is_small_and_readable_by_all(name):
    files = list(embedded.folder(name).iterdir())
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in files
    }


@each_model
def test_weights_and_tokenizer_are_those_of_the_report(name):
    folder = embedded.folder(name)
    for file, expected in report.read(folder)["sha256"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == expected


@each_model
def test_it_loads_as_its_class_in_float32_from_float16(name, scorers):
    import safetensors.torch
    import transformers

    folder = embedded.folder(name)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    kind = getattr(transformers, CLASSES[name])
    loaded = kind.from_pretrained(folder)
    assert type(scorers[name].model) is type(loaded)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())


def test_tokenizers_add_what_their_family_adds(scorers):
    def tokens(name):
        tokenizer = scorers[name].tokenizer
        return tokenizer.convert_ids_to_tokens(tokenizer("Those men")["input_ids"])

    assert tokens("tiny-gpt2") == ["Those", "Ġmen"]
    assert tokens("tiny-llama") == ["<|begin_of_text|>", "Those", "Ġmen"]
    assert tokens("tiny-bert") == ["[CLS]", "Those", "Ġmen", "[SEP]"]


@each_model
def test_objects_are_one_token_and_some_subjects_several(name, scorers):
    tokenizer = scorers[name].tokenizer
    objects = {fact.object for fact in facts() if " " not in fact.object}
    whole = [word for word in objects if scorers[name].one_token(word)]
    assert len(whole) >= 0.98 * len(objects)
    lengths = {len(tokenizer.tokenize(" " + fact.subject)) for fact in facts()}
    assert {1, 2, 3} <= lengths
    text = "Marie Curie isn't one of those women."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match="'tiny': expected one of the embedded models tiny-gpt2, tiny-llama, tiny-bert",
    ):
        embedded.folder("tiny")


def test_naming_a_model_imports_no_torch():
    code = "import sys; import kn_bench.model.embedded as e; e.folder('tiny-bert'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_bundled_corpus_is_the_recipes():
    text = embedded.corpus_path().read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    lines = text.splitlines()
    assert len(lines) == 2_000
    assert lines[:50] == list(TrainingCorpus(999).documents(50))


# What they know -----------------------------------------------------------------------------


@functools.cache
def asked(scorer, which):
    return evaluate.sample(evaluate.questions_of(scorer, which), QUESTIONS, seed=11)


@one_model
def test_facts_are_recalled_where_they_were_never_shown(name, scorers):
    scorer = scorers[name]
    unseen = evaluate.rate(evaluate.recall(scorer, asked(scorer, "withheld")))
    held_out = evaluate.rate(evaluate.recall(scorer, asked(scorer, "held_out")))
    assert unseen.rate >= (0.85 if scorer.masked else 0.95)
    assert held_out.rate >= (0.80 if scorer.masked else 0.90)


@each_model
def test_a_wrong_answer_is_not_counted(name, scorers):
    items = asked(scorers[name], "withheld")[:100]
    turned = [
        evaluate.FactQuestion(
            dataclasses.replace(item.fact, object=other.fact.object), item.template
        )
        for item, other in zip(items, items[1:] + items[:1], strict=True)
        if other.fact.object != item.fact.object
    ]
    assert evaluate.rate(evaluate.recall(scorers[name], turned)).rate < 0.1


@one_model
def test_minimal_pairs_with_unseen_combinations(name, scorers):
    rates = evaluate.grammar_report(scorers[name], PAIRS, seed=5)
    assert set(rates) == set(PARADIGMS)
    assert evaluate.mean(rates) >= 0.97
    # 60 pairs of a paradigm that holds 90 % fall below 0.8 in one of two hundred samples.
    assert min(rate.rate for rate in rates.values()) >= 0.8
    reported = report.read(embedded.folder(name))["measured"]["grammar"]
    assert min(rate for rate, _ in reported.values()) >= 0.9


@each_model
def test_capitals_are_known_in_both_directions(name, scorers):
    rates = evaluate.inverse_report(scorers[name])
    assert rates["P36"].n >= 50
    assert min(rate.rate for rate in rates.values()) >= 0.9
