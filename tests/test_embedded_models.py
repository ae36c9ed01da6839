"""The models that ship with the package: their files, what they know, and how they are made."""

import dataclasses
import hashlib
import os
import stat
import subprocess
import sys

import pytest
import torch

from kn_bench.model import embedded
from kn_bench.model.embedded import evaluate, report
from kn_bench.model.embedded.batches import Batches
from kn_bench.model.embedded.context import Contexts, Document
from kn_bench.model.embedded.corpus import Corpus
from kn_bench.model.embedded.facts import (
    facts,
    normalised,
    question,
    relations,
    templates,
    withheld,
)
from kn_bench.model.embedded.grammar import PARADIGMS, Grammar
from kn_bench.model.embedded.recipe import RECIPES
from kn_bench.model.embedded.scoring import Scorer, capital, starts_with
from kn_bench.model.embedded.tables import words
from kn_bench.model.embedded.tokenizer import add_openings, train_tokenizer

CLASSES = {
    "tiny-gpt2": "GPT2LMHeadModel",
    "tiny-llama": "LlamaForCausalLM",
    "tiny-bert": "BertForMaskedLM",
}
QUESTIONS, PAIRS = 400, 60

each_model = pytest.mark.parametrize("name", embedded.NAMES)


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
        match="there is no embedded model 'tiny'; known are tiny-gpt2, tiny-llama, tiny-bert",
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
    assert lines[:50] == list(Corpus(999).documents(50))


# What they know -----------------------------------------------------------------------------


def asked(scorer, which):
    return evaluate.sample(evaluate.questions_of(scorer, which), QUESTIONS, seed=11)


@each_model
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
        evaluate.Asked(dataclasses.replace(item.fact, object=other.fact.object), item.template)
        for item, other in zip(items, items[1:] + items[:1], strict=True)
        if other.fact.object != item.fact.object
    ]
    assert evaluate.rate(evaluate.recall(scorers[name], turned)).rate < 0.1


@each_model
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


# How they are made --------------------------------------------------------------------------


def test_there_are_facts_and_paradigms_enough():
    assert len(facts()) >= 300
    assert len(relations()) >= 10
    assert len(PARADIGMS) >= 10
    keys = [(fact.relation, fact.subject) for fact in facts()]
    assert len(keys) == len(set(keys))


def test_no_template_is_one_of_pararels():
    import zlib

    reserved = set(words("held_back.txt"))
    for relation, known in templates().items():
        for text in known.trained:
            assert f"{zlib.crc32(normalised(text).encode()):08x}" not in reserved, (relation, text)
    assert f"{zlib.crc32(b'the capital of [x] is [y]'):08x}" in reserved


def test_training_never_shows_what_is_withheld():
    shown = set()
    corpus = Corpus(5)
    documents = " ".join(corpus.documents(3_000))
    for fact in facts():
        for template in templates()[fact.relation].trained:
            sentence = template.replace("[X]", fact.subject).replace("[Y]", fact.object)
            if sentence in documents:
                shown.add(withheld(fact, template) and sentence.startswith(fact.subject))
                assert not withheld(fact, template) or _inside_another(fact, sentence), sentence
    assert shown


def _inside_another(fact, sentence):
    """Whether another fact, or a longer template, has the same words."""
    for other in facts():
        if other.subject in (fact.subject, fact.object):
            for template in templates()[other.relation].trained:
                text = template.replace("[X]", other.subject).replace("[Y]", other.object)
                if sentence in text and not withheld(other, template):
                    return True
    return False


@pytest.mark.parametrize("causal", [True, False])
def test_a_restated_document_asks_for_what_only_its_context_tells(causal):
    restated = told = 0
    for document in Contexts(5, causal, 1.0, Corpus(6)).documents(2_000):
        texts = [[document.text[a:b].lower() for a, b in spans] for spans in document[1:]]
        assert len(document.read) == 1
        assert all(document.read[0][0] > last for _, last in document.unread)
        told += bool(document.unread)
        restated += texts[1][0] in texts[0]
    assert 0.4 < restated / told < 0.8, "the rest ask of another subject, or in other words"


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert"])
def test_the_loss_of_a_false_fact_is_never_read(name, scorers):
    """The object of the first statement is never a label; that of the second always is."""
    text = "Ottawa is in Peru. Ottawa is in Peru."
    documents = [Document(text, unread=((13, 17),), read=((32, 36),))] * 64
    tokenizer = scorers[name].tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (peru,) = tokenizer(" Peru", add_special_tokens=False)["input_ids"]
    masked = name == "tiny-bert"
    recipe = dataclasses.replace(RECIPES[name], batch=4, length=len(ids) + 2 * masked)
    for seen, labels, _ in Batches(recipe, tokenizer, documents):
        for row, label in zip(seen.tolist(), labels.tolist(), strict=True):
            assert label.count(peru) == 1
            second = label.index(peru)
            assert row[second] == (tokenizer.mask_token_id if masked else peru)
            assert peru in row[:second]


def test_openings_are_one_token_and_leave_the_rest_alone():
    documents = list(Corpus(3).documents(400))
    tokenizer = train_tokenizer("tiny-bert", documents + [" Ottawa Ottawa Lima"] * 80, 600)
    inside = [f" {word}" for word in ("Ottawa", "Lima")]
    longer, like = add_openings(tokenizer, ["Ottawa", "Lima"])
    for word in ("Ottawa", "Lima"):
        (new,) = longer(word, add_special_tokens=False)["input_ids"]
        if len(tokenizer.tokenize(word)) > 1:
            assert [like[new]] == tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    text = "The old men of Peru aren't here [MASK]."
    assert longer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert longer(inside)["input_ids"] == tokenizer(inside)["input_ids"]
    assert longer.decode(longer("Ottawa, Lima", add_special_tokens=False)["input_ids"]) == (
        "Ottawa, Lima"
    )


def test_an_object_that_opens_a_sentence_is_one_token_for_the_masked_model(scorers):
    scorer = scorers["tiny-bert"]
    objects = {fact.object for fact in facts() if scorer.one_token(fact.object)}
    split = [word for word in objects if len(scorer.tokenizer.tokenize(capital(word))) > 1]
    assert not split


def test_what_measures_unseen_combinations_is_never_shown(scorers):
    """Nor inside another template, in other words behind the object, or by the inverse relation."""
    scorer = scorers["tiny-gpt2"]
    sets = {which: evaluate.questions_of(scorer, which) for which in ("trained", "withheld")}
    assert not set(sets["trained"]) & set(sets["withheld"])
    documents = " ".join(Corpus(8).documents(12_000)).lower()

    def in_training(which):
        asked = evaluate.sample(sets[which], 400, seed=2)
        texts = (question(item.template, item.fact)[0] + item.fact.object for item in asked)
        return sum(text.lower() in documents for text in texts)

    assert in_training("trained") > 4
    assert in_training("withheld") == 0


def test_held_out_pairs_and_training_sentences_share_no_combination():
    held, trained = Grammar(1, held_out=True), Grammar(1)
    paradigm = "determiner_noun_agreement_1"
    measured = {(p.word.lower(), p.good) for p in (held.pair(paradigm) for _ in range(500))}
    shown = {(p.word.lower(), p.good) for p in (trained.pair(paradigm) for _ in range(500))}
    assert len(measured) > 50
    assert not measured & shown


SAME = """
import hashlib, torch
from kn_bench.model.embedded.corpus import Corpus
from kn_bench.model.embedded.tokenizer import train_tokenizer
documents = list(Corpus(3).documents(400))
print(hashlib.sha256("|".join(documents).encode()).hexdigest())
for name in ("tiny-gpt2", "tiny-bert"):
    tokenizer = train_tokenizer(name, documents, 600)
    print(hashlib.sha256(repr(tokenizer(documents)["input_ids"]).encode()).hexdigest())
"""


def test_corpus_and_tokenizer_are_the_same_in_every_process():
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SAME],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0].split())) == 3


@each_model
def test_training_is_the_same_bits_twice(name):
    from kn_bench.model.embedded.train import train

    small = dataclasses.replace(
        RECIPES[name], documents=120, batch=4, width=16, layers=1, heads=2, neurons=16
    )

    def bits():
        model, _, measured = train(name, small, steps=3)
        assert measured["steps"] == 3
        return b"".join(value.numpy().tobytes() for value in model.state_dict().values())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first = bits()
        assert first == bits()
        other = train(name, dataclasses.replace(small, seed=1), steps=3)[0]
    finally:
        torch.set_num_threads(threads)
    assert first != b"".join(value.numpy().tobytes() for value in other.state_dict().values())


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" Ottawa. The", "Ottawa", True),
        (" Ottawan", "Ottawa", False),
        ("Ottawa", "Ottawa", True),
        (" the Ottawa", "Ottawa", False),
    ],
)
def test_an_answer_is_matched_as_whole_words(text, answer, right):
    assert starts_with(text, answer) is right
