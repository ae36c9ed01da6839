"""The text that C is taken over: named, found wrong before the run, or written by the model."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import torch

from kn_bench.cases import sources
from kn_bench.editing.rome import remembered
from kn_bench.edits.ultraedit import UltraEdit, UltraEditSettings
from kn_bench.edits.wise import OTHER_TEXTS, Wise, WiseSettings
from kn_bench.model import corpus, own_text
from kn_bench.model.corpus import NamedCorpus, TextFile, Texts, check_corpus, file_named
from kn_bench.model.loading import load_model
from kn_bench.model.own_text import corpus_named
from kn_bench.model.second_moment import second_moments
from kn_bench.model.written import file_hash
from kn_bench.testing.models import Models
from kn_bench.testing.options import Options
from tests.test_rome import REQUESTS
from tests.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KN_BENCH_CORPUS", raising=False)
    monkeypatch.setattr(own_text, "LENGTH", 20)
    return tmp_path / "cache"


@pytest.fixture
def no_hub(monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)


def test_without_hub_or_file_a_model_writes_its_own_text(no_hub):
    lm = tiny_model("llama")
    chosen = corpus_named(lm)
    texts = list(chosen.corpus.documents())
    tokens = sum(len(lm.tokens.encode(text).ids) for text in texts)
    assert chosen.name == "self"
    assert tokens >= 10 * lm.d_mlp
    assert len(set(texts)) == len(texts)
    # enough to solve with: no direction of the keys is missing
    moment = second_moments(lm, [1], chosen.corpus)[1].matrix
    assert float(torch.linalg.eigvalsh(moment.double()).min()) > 0


def test_it_is_written_once_and_the_same_whenever_it_is_written(no_hub, cache, monkeypatch):
    lm = tiny_model("gpt2")
    path = own_text.own_text(lm, 100)
    first = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(own_text, "_write", lambda *_: pytest.fail("written again"))
        assert own_text.own_text(lm, 100) == path
    torch.rand(3)  # the process's own random state has no part in it
    path.unlink()
    state = torch.get_rng_state()
    assert own_text.own_text(lm, 100).read_bytes() == first
    assert torch.equal(torch.get_rng_state(), state)
    assert own_text.own_text(lm, 100, seed=1).read_bytes() != first
    assert own_text.own_text(tiny_model("llama"), 100) != path


def test_a_cached_continuation_is_what_the_whole_text_gives(no_hub, monkeypatch):
    """The key-value cache changes nothing: every token is among the likeliest of a plain pass."""
    monkeypatch.setattr(own_text, "TOP_K", 1)
    lm = tiny_model("llama")
    (row,) = own_text._documents(lm, ["w5 w6"], seed=0, advance=float)
    ids = list(lm.tokens.encode("w5 w6").ids)
    while len(ids) < 20:
        scores = lm.forward(lm.tensor([ids]), torch.tensor([[len(ids) - 1]]))[0, 0]
        scores[sorted(lm.tokens.special_ids)] = -torch.inf
        ids.append(int(scores.argmax()))
    assert row == " ".join(lm.tokens.decode(ids).split())


def test_a_masked_model_writes_nothing_and_says_what_to_do(no_hub):
    with pytest.raises(ValueError, match="expected a causal model to write the text for C; give"):
        corpus_named(tiny_model("bert"))


def test_where_the_hub_can_be_had_its_text_is_the_default_and_is_fetched_once(monkeypatch):
    asked = []

    def load_dataset(id, configuration, split):
        asked.append((id, configuration, split))
        return {"text": ["", " w5 w6\n w7 ", "w8"]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    lm = tiny_model("gpt2")
    for _ in range(2):
        chosen = corpus_named(lm)
        assert list(chosen.corpus.documents()) == ["w5 w6 w7", "w8"]
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "train")]
    assert (chosen.name, chosen.max_tokens) == (corpus.HUB_TEXT, 10 * lm.d_mlp)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "expected a text file with one document per line"), (b"", "the file is empty"),
     (b" \n\n", "the file is empty"), (b"caf\xe9\n", "expected UTF-8 text")],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_found_out_before_the_run(tmp_path, content, said):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        check_corpus(str(path))


PIECES = [{"Corpus": "C4", "Text": " w5  w6"}, {"Corpus": "Wiki", "Text": "w7 w8"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(PIECES)),
        ("lines.jsonl", "\n".join(map(json.dumps, PIECES)) + "\n"),
        ("marked.json", "\ufeff" + json.dumps(PIECES)),
    ],
)
def test_a_published_list_of_texts_is_a_corpus_and_no_file_of_cases(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    check_corpus(str(path))
    assert list(file_named(str(path)).corpus.documents()) == ["w5 w6", "w7 w8"]
    with pytest.raises(ValueError, match="give it by --corpus") as refused:
        sources.load(str(path))
    assert str(refused.value) == (
        f"--cases {path}: expected facts or minimal pairs, and it holds texts (fields Corpus, "
        f"Text); give it by --corpus {path}, the text that second moments are taken over"
    )


@pytest.mark.parametrize("content", ["[1]", "[{}]", '{"text": 3}', "{", '[{"text": "w5"}, {}]'])
def test_json_without_texts_is_no_corpus(tmp_path, content):
    path = tmp_path / "texts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected JSON objects with a field 'text'"):
        check_corpus(str(path))


@pytest.mark.parametrize("content", ["", " \n", "[]", '[{"text": " "}]'])
def test_json_of_no_text_is_an_empty_corpus(tmp_path, content):
    path = tmp_path / "texts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected text, and the file is empty"):
        check_corpus(str(path))


def test_a_data_set_that_cannot_be_had_is_one_sentence(no_hub):
    with pytest.raises(ValueError, match=r"the hub can provide \(ConnectionError\); name a text"):
        check_corpus("acme/text")
    check_corpus("self")


def test_every_edit_names_the_text_its_c_was_taken_over(tmp_path, monkeypatch):
    lm = tiny_model("gpt2")
    (tmp_path / "notes.txt").write_text("w5 w6 w7\n" * 3)
    chosen = file_named(str(tmp_path / "notes.txt"))
    monkeypatch.setattr(lm, "corpus", chosen)
    solver = remembered.covariance_of(lm, 1, None, None)
    assert solver.source.startswith("notes.txt, 9 tokens, SHA-256 ")
    assert solver.source.endswith(chosen.corpus.content_hash[:12])
    limited = NamedCorpus("few", Texts(("w5 w6 w7 w8",)), max_tokens=2)
    monkeypatch.setattr(lm, "corpus", limited)
    assert remembered.covariance_of(lm, 1, None, None).source.startswith("few, 2 tokens")


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda lm: Wise(lm, WiseSettings(layer=1, n_iter=1)), OTHER_TEXTS),
        (lambda lm: UltraEdit(lm, UltraEditSettings(layers=(1,), warm_up=4)), 4),
    ],
)
def test_edits_that_read_text_without_c_note_which(make, number):
    """They noted none, and runs of two machines that read two texts were merged."""
    lm = tiny_model("llama")
    lm.corpus = NamedCorpus("made up", Texts(tuple(f"w5 w6 w{i}" for i in range(7, 40))))
    (edit,) = make(lm).edit(REQUESTS[:1])
    digest = lm.corpus.corpus.content_hash[:12]
    assert edit.notes["corpus"] == f"made up, {number} texts, SHA-256 {digest}"


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-llama", "tiny-bert"])
@pytest.mark.parametrize("given", ["option", "variable", "self", ""])
def test_the_users_text_comes_before_the_embedded_models_own(tmp_path, monkeypatch, model, given):
    """It was passed over, and the manifest said that it was used."""
    text = tmp_path / "notes.txt"
    text.write_text("Paris is the capital of France.\n")
    if given == "variable":
        monkeypatch.setenv("KN_BENCH_CORPUS", str(text))
        lm = load_model(model)
    else:
        named = {"option": str(text), "self": "self", "": ""}[given]
        lm = Models(Options(corpus=named), "cpu", {}).model(model)
    # text of its own is nothing that a masked model could write
    own = "embedded" if model == "tiny-bert" else "self"
    name = {"self": own, "": "embedded"}.get(given, "notes.txt")
    assert remembered.corpus_for(lm).name == name
    if name == "notes.txt" and lm.is_causal:
        assert remembered.covariance_of(lm, 1, None, None).source.startswith("notes.txt, ")


@pytest.mark.parametrize("where", ["elsewhere", "in place", "replaced"])
def test_the_hash_of_a_file_is_that_of_what_it_holds_now(tmp_path, monkeypatch, where):
    for number, text in enumerate(("one", "two", "six")):
        folder = tmp_path / (str(number) if where == "elsewhere" else "here")
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        path = Path("text.txt")
        if where == "replaced":
            path.unlink(missing_ok=True)
        time.sleep(0.02)  # a clock of files ticks every few milliseconds
        path.write_text(text)
        os.utime(path, ns=(0, 0))  # as tools do that copy or unpack
        expected = hashlib.sha256(text.encode()).hexdigest()
        assert [file_hash(path), TextFile(path).content_hash] == [expected, expected]
