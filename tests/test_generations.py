"""Free generation: published fluency and reference score, and what a run records of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kn_bench as kn
from kn_bench.cases import sources
from kn_bench.cases.case import Case
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.text_metrics import TfIdf, fluency, n_gram_entropy, word_tokens
from kn_bench.measure.writing import Writer, read_references
from kn_bench.model.generating import top_k
from kn_bench.model.rows import Row
from kn_bench.model.scoring import target_log_probs
from kn_bench.results.exports.table import figures
from kn_bench.results.further import further_tables
from kn_bench.results.log import LOG
from kn_bench.results.rows import GenerationRow, decode_rows
from kn_bench.testing import generations
from kn_bench.testing.options import Options, _refuse_contradictions
from kn_bench.testing.plan import make_plan
from kn_bench.testing.values import whole
from tests.conftest import PLUGINS
from tests.published_forms import COUNTERFACT

pytest.importorskip("nltk", reason="the extra 'generations' is not installed")
FACT = {"subject": "France", "prompt": "The capital of {} is", "target_true": "Paris"}
SHARED = os.environ.get("KN_BENCH_SHARED")
golden = pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder with the goldens")


def read_golden(case):
    folder = Path(SHARED or ".") / "golden" / "generation_metrics" / case
    outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
    return outputs, np.load(folder / "arrays.npz")


# --- the published metrics ---------------------------------------------------------------------


@golden
def test_fluency_equals_the_published_one():
    outputs, _ = read_golden("six_texts")
    for each in outputs["per_text"]:
        tokens = word_tokens(each["text"])
        assert tokens == each["tokens"]
        assert n_gram_entropy(tokens) == pytest.approx(each["entropy"], abs=1e-12)
    texts = [each["text"] for each in outputs["per_text"]]
    assert fluency(texts) == pytest.approx(outputs["n_gram_entropy_of_all"], abs=1e-12)


@golden
def test_reference_score_equals_the_published_one():
    outputs, arrays = read_golden("six_texts")
    own = TfIdf.of(outputs["tfidf"]["corpus"])
    assert own.vocabulary == outputs["tfidf"]["vocabulary"]
    np.testing.assert_allclose(own.idf, arrays["idf"], rtol=1e-12)
    first = outputs["reference_scores"][0]
    encoded = [own.vector(" ".join(first[name])) for name in ("texts", "references")]
    np.testing.assert_allclose(encoded, arrays["encoded_example"], atol=1e-12)
    for each in outputs["reference_scores"]:
        score = own.reference_score(each["texts"], each["references"])
        assert score == pytest.approx(each["score"], abs=1e-12)
    assert own.reference_score(["zzz"], ["Oslo"]) is None


@golden
def test_mean_nll_and_perplexity_equal_the_published_ones():
    """Those are read from log-probabilities that every reading of ours comes from."""
    outputs, _ = read_golden("gpt2_mem__nll_and_perplexity")
    lm = kn.load_model(str(Path(SHARED or ".") / "golden" / "models" / "gpt2_mem"), dtype="float64")

    def log_probs(ids, start):
        at = range(start - 1, len(ids) - 1)
        targets = tuple((ids[i + 1],) for i in at)
        (values,) = target_log_probs(lm, [Row(tuple(ids), tuple(at), targets, first=0)])
        return values

    pairs = zip(outputs["prefix_ids"], outputs["mean_nll"], strict=True)
    for prefix, published in pairs:
        for name, nll in published.items():
            target = outputs[f"{name}_ids"]
            mean = -log_probs([*prefix, *target], len(prefix)).mean()
            assert mean == pytest.approx(nll, abs=1e-6)  # stored as float32 by the published code
    for each in outputs["perplexity"]:
        ids = lm.tokens.encode(each["text"]).ids[: each["max_input_length"]]
        assert each.get("ids", list(ids)) == list(ids)
        # the published code divides n - 1 log-probabilities by n
        value = math.exp(-log_probs(ids, 1).sum() / len(ids))
        assert value == pytest.approx(each["value"], rel=1e-9)


def test_text_that_repeats_itself_is_less_fluent():
    assert fluency(["no no no no no no"]) == 0.0
    assert fluency(["Rain, rain, go away, come again another day."]) > 2


# --- writing -----------------------------------------------------------------------------------


def test_sampling_keeps_to_the_most_probable_and_to_its_seed():
    import torch

    logits = torch.tensor([0.0, 3.0, -1.0, 3.0, 2.9])
    choose = top_k(3, seed=1)
    drawn = [choose(logits) for _ in range(200)]
    assert set(drawn) == {1, 3, 4}
    again = top_k(3, seed=1)
    assert drawn == [again(logits) for _ in range(200)]
    assert {top_k(1, seed=s)(logits + torch.tensor([0, 1e-3, 0, 0, 0])) for s in range(9)} == {1}


@pytest.fixture
def model():
    return kn.load_model("tiny-gpt2")


def facts(tmp_path):
    path = tmp_path / "facts.jsonl"
    rows = [
        {**FACT, "target_new": "Rome"},
        {**FACT, "subject": "Cuba", "target_true": "Havana", "target_new": "Rome"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return kn.load_cases(str(path))


def test_an_edit_changes_what_is_written_and_nothing_stays(tmp_path, model):
    case = facts(tmp_path)[0]
    edit = kn.method("rome", model).edit(case.request)
    writer = Writer(1)
    before = model.parameter_hash()
    written = writer.written(model, case, edit)
    assert written is not None
    assert model.parameter_hash() == before
    (text,) = written.continuations
    assert text.prompt == "The capital of France is"
    assert text.before != text.after
    assert written.fluency_after == pytest.approx(fluency([text.prompt + text.after]))
    assert written.reference_after is None
    # the unedited model writes the same for every method, and none of it depends on other cases
    unedited = writer.written(model, case, kn.NoEdit())
    assert unedited is not None
    assert unedited.continuations[0].after == unedited.continuations[0].before == text.before
    assert Writer(1).written(kn.load_model("tiny-gpt2"), case, edit) == written
    assert Writer(1, seed=1).written(model, case, edit) != written
    length = len(model.tokens.encode(text.prompt + text.before).ids)
    assert length <= model.tokens.max_length


def test_counterfact_brings_its_own_prompts_and_ids(tmp_path, model):
    path = tmp_path / "cf.json"
    path.write_text(json.dumps([COUNTERFACT]))
    (case,) = kn.load_cases(str(path))
    assert case.open_ended == (("Ann Lee was born in",), "Q1860")
    snippets = tmp_path / "attribute_snippets.json"
    entry = {
        "relation_id": "P103",
        "target_id": "Q1860",
        "samples": [{"text": "He spoke English."}],
    }
    snippets.write_text(json.dumps([entry]))
    references = read_references(snippets)
    assert references.about(case) == ("He spoke English.",)
    written = Writer(3, references).written(model, case, kn.NoEdit())
    assert written is not None
    assert [c.prompt for c in written.continuations] == ["Ann Lee was born in"]
    # the hash of data without generation prompts is what it was before there were any
    other = kn.load_cases("embedded", relation="P36", limit=1)
    assert "open_ended" not in repr(other[0])
    assert sources.content_hash([case]) != sources.content_hash(
        [Case(case.request, case.probes, case.cluster, case.source, case.not_applicable)]
    )


def test_references_of_ones_own_and_published_weights(tmp_path):
    path = tmp_path / "references.jsonl"
    path.write_text(json.dumps({"relation": "P36", "target": "Rome", "texts": ["Rome is old."]}))
    own = read_references(path)
    assert set(own.weights.vocabulary) == {"rome", "is", "old"}
    assert own.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps({"rome": 0, "old": 1}))
    np.save(tmp_path / "idf.npy", np.array([2.0, 1.0]))
    assert read_references(path).weights.idf.tolist() == [2.0, 1.0]
    hashes = [own.content_hash, read_references(path).content_hash]
    np.save(tmp_path / "idf.npy", np.array([2.0, 3.0]))
    hashes.append(read_references(path).content_hash)
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps({"rome": 1, "old": 0}))
    hashes.append(read_references(path).content_hash)
    assert len(set(hashes)) == 4  # with other weights, a run is made of something else
    np.save(tmp_path / "idf.npy", np.array([2.0]))
    with pytest.raises(ValueError, match=r"expected a word for each of the 1 weights of idf\.npy"):
        read_references(path)
    about = {"relation": "P36", "target": "Rome", "texts": ["Rome is old."]}
    samples = {"relation_id": "P36", "target_id": "Q220", "samples": [{"text": None}]}
    for wrong in (
        {"texts": "Rome is old."},
        {"texts": None},
        {"texts": [None, {"text": "x"}, 3]},
        {"texts": {"a": "b"}},
        {"relation": None},
        {"target": None},
        samples,
        samples | {"samples": {"text": "Rome is old."}},
    ):
        path.write_text(json.dumps(about | wrong))
        with pytest.raises(ValueError, match="expected relation, target and texts, or relation_id"):
            read_references(path)


def test_a_masked_model_writes_nothing(tmp_path):
    case = facts(tmp_path)[0]
    assert Writer(1).written(kn.load_model("tiny-bert"), case, kn.NoEdit()) is None


# --- what a run says of it ---------------------------------------------------------------------


def test_board_page_and_table_have_what_was_written(tmp_path, model):
    references = tmp_path / "references.jsonl"
    texts = ["Rome is the capital of Italy.", "The Colosseum stands in Rome."]
    about = {"relation": "facts", "target": "Rome", "texts": texts}
    references.write_text(json.dumps(about) + "\n")
    cases = facts(tmp_path)
    evaluation = kn.evaluate(model, "rome", cases, generations=2, references=references)
    (table,) = further_tables(evaluation.runs)
    (row,) = table.rows
    for figure in row.figures:
        assert figure.n == 2
    names = ("fluency_before", "fluency_after", "reference_before", "reference_after")
    means = [
        float(np.mean([getattr(result.written, name) for result in evaluation.results]))
        for name in names
    ]
    assert [figure.mean for figure in row.figures] == pytest.approx(means)
    assert means[3] > means[2]  # the edited model writes of Rome
    document = evaluation.board(markdown=True)
    assert "## Free generation" in document
    assert "reference after" in document
    assert len(document.splitlines()) <= 60
    frame = figures(evaluation.runs)
    exported = frame[frame["figure"] == "generation"].set_index("part")["mean"]
    assert exported["fluency after"] == pytest.approx(means[1])


def test_generations_through_pytest(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    models = ("--model", "tiny-gpt2", "--model", "tiny-bert")
    suites = (*PLUGINS, "--pyargs", "kn_bench.suites", *models, "--method", "none")
    choice = ("--relation", "P36", "--limit", "1", "--run", "r", "--generations", "2")
    ended = pytester.runpytest_subprocess(*suites, *choice)
    assert ended.ret == 0
    ended.stdout.fnmatch_lines(["kn_bench: generations: masked models write nothing: tiny-bert"])
    (folder,) = (path.parent for path in pytester.path.rglob(LOG))
    rows = decode_rows((folder / LOG).read_text())
    (row,) = [row for row in rows if isinstance(row, GenerationRow)]
    assert len(row.written.continuations) == 2
    assert row.written.fluency_before == row.written.fluency_after > 0
    assert json.loads((folder / "manifest.json").read_text())["options"]["generations"] == "2"
    assert "## Free generation" in (pytester.path / "reports" / "leaderboard.md").read_text()


def test_what_is_written_and_compared_is_announced_and_nothing_at_all_is_refused(tmp_path, model):
    cases, path = facts(tmp_path), tmp_path / "references.jsonl"
    asked = Options(
        models=("tiny-gpt2", "tiny-bert"), cases=(str(tmp_path / "facts.jsonl"),), generations=1,
        references=path,
    )  # fmt: skip

    def announced(options, target):
        about = {"relation": "facts", "target": target, "texts": ["Rome is old."]}
        path.write_text(json.dumps(about))
        return generations.announced(options, make_plan(options))

    described, lines = announced(asked, "Rome")
    assert set(described) == {"generations", "references"}
    assert lines == [
        "generations: masked models write nothing: tiny-bert",
        "references: about the new target of 2 of 2 cases",
    ]
    assert announced(replace(asked, generations=0), "Rome") == ({}, [])
    unlike = r"^--references: expected a text about .* and target of any of 2 cases; give both"
    with pytest.raises(ValueError, match=unlike):
        announced(asked, "Oslo")
    with pytest.raises(ValueError, match=unlike):
        kn.evaluate(model, "none", cases, generations=1, references=path)
    masked = r"^--generations 1: expected a causal model, for masked ones write nothing; leave it"
    with pytest.raises(ValueError, match=masked):
        announced(replace(asked, models=("tiny-bert",)), "Rome")
    with pytest.raises(ValueError, match=masked):
        kn.evaluate(kn.load_model("tiny-bert"), "none", cases, generations=1)


def test_the_seed_of_an_evaluation_is_that_of_its_texts_and_is_recorded(tmp_path, model):
    cases = facts(tmp_path)[:1]
    evaluations = [kn.evaluate(model, "none", cases, generations=1, seed=n) for n in (0, 1)]
    first, second = (evaluation.results[0].written for evaluation in evaluations)
    assert first is not None
    assert second is not None
    assert first.continuations != second.continuations
    assert second == Writer(1, seed=1).written(model, cases[0], kn.NoEdit())
    evaluations[1].save(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 1
    assert manifest["options"] == {"method": "none", "generations": "1"}


def test_what_cannot_be_written_is_refused_before_the_run(pytestconfig, tmp_path):
    batch = Options(generations=2, protocol=parse_protocol("batch:2"))
    with pytest.raises(pytest.UsageError, match=r"^--generations 2: expected --protocol single"):
        _refuse_contradictions(batch, pytestconfig)
    alone = Options(references=Path("x.json"))
    with pytest.raises(pytest.UsageError, match="expected --generations N, the number of texts"):
        _refuse_contradictions(alone, pytestconfig)
    with pytest.raises(ValueError, match=r"^--references .*x\.json: expected a data file"):
        generations.writer(Options(generations=1, references=tmp_path / "x.json"))
    (tmp_path / "x.json").write_text("[]")
    needs = (
        r"^--references x\.json: expected records, .*; give relation, target and texts a record$"
    )
    with pytest.raises(ValueError, match=needs):
        generations.writer(Options(generations=1, references=tmp_path / "x.json"))
    with pytest.raises(argparse.ArgumentTypeError, match="'-1': expected 0 or a positive integer"):
        whole("-1")
