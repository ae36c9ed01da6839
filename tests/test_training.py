"""How the models that ship with the package are made: tables, corpus, tokenizer, training."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from kn_bench.model import embedded
from kn_bench.model.embedded.facts import facts, relations
from kn_bench.model.embedded.grammar import PARADIGMS, Grammar
from kn_bench.model.embedded.tables import words
from training import evaluate
from training.batches import Batches
from training.context import Contexts, Document
from training.corpus import TrainingCorpus
from training.recipe import RECIPES
from training.scoring import Scorer, capital, starts_with
from training.templates import TABLES, normalised, question, templates, withheld
from training.tokenizer import add_openings, train_tokenizer


@pytest.fixture(scope="module")
def scorers():
    return {name: Scorer(embedded.folder(name)) for name in embedded.NAMES}


def test_there_are_facts_and_paradigms_enough():
    assert len(facts()) >= 300
    assert len(relations()) >= 10
    assert len(PARADIGMS) >= 10
    keys = [(fact.relation, fact.subject) for fact in facts()]
    assert len(keys) == len(set(keys))


def test_no_template_is_one_of_pararels():
    import zlib

    reserved = set(words("held_back.txt", TABLES))
    for relation, known in templates().items():
        for text in known.trained:
            assert f"{zlib.crc32(normalised(text).encode()):08x}" not in reserved, (relation, text)
    assert f"{zlib.crc32(b'the capital of [x] is [y]'):08x}" in reserved


def test_training_never_shows_what_is_withheld():
    shown = set()
    corpus = TrainingCorpus(5)
    documents = list(corpus.documents(3_000))
    for fact in facts():
        # a sentence of the fact can only stand in a document that names its subject
        about = " ".join(document for document in documents if fact.subject in document)
        for template in templates()[fact.relation].trained if about else ():
            sentence = template.replace("[X]", fact.subject).replace("[Y]", fact.object)
            if sentence in about:
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
    for document in Contexts(5, causal, 1.0, TrainingCorpus(6)).documents(2_000):
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
    documents = list(TrainingCorpus(3).documents(400))
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
    documents = " ".join(TrainingCorpus(8).documents(12_000)).lower()

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
from training.corpus import TrainingCorpus
from training.tokenizer import train_tokenizer
documents = list(TrainingCorpus(3).documents(400))
print(hashlib.sha256("|".join(documents).encode()).hexdigest())
for name in ("tiny-gpt2", "tiny-bert"):
    tokenizer = train_tokenizer(name, documents, 600)
    print(hashlib.sha256(repr(tokenizer(documents)["input_ids"]).encode()).hexdigest())
"""


@pytest.mark.slow
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


@pytest.mark.parametrize("name", embedded.NAMES)
def test_training_is_the_same_bits_twice(name):
    from training.train import train

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
