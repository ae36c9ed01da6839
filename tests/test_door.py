"""The public API: what ``import kn_bench`` offers, and that every example of it is right."""

from __future__ import annotations

import copy
import doctest
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import kn_bench as kn
from kn_bench.cases.case import Query
from tests.tiny_models import tiny_model

DOOR = {
    "BoundMethod", "Case", "DenseEdit", "Edit", "EditRequest", "Evaluation", "LanguageModel",
    "LowRank", "LowRankEdit", "NeuronEdit", "NeuronScale", "NoEdit", "NotApplicable", "PromptEdit",
    "Provenance", "Unencodable", "WrapperEdit", "edit_method", "edited", "encode_request",
    "evaluate", "load_cases", "load_edit", "load_model", "locate", "method", "methods",
    "save_edit", "trace",
}  # fmt: skip
FUNCTIONS = sorted(name for name in DOOR if name[0].islower())


def test_the_public_names_are_these():
    """A name that goes or comes is a change of the API: note it in CHANGELOG.md."""
    assert set(kn.__all__) == DOOR
    assert len(kn.__all__) == len(DOOR)
    assert set(dir(kn)) >= DOOR


@pytest.mark.parametrize("name", sorted(DOOR))
def test_every_public_name_is_documented(name):
    value = getattr(kn, name)
    assert value.__module__.startswith("kn_bench.")
    assert value.__doc__
    assert value.__doc__ != type(value).__doc__


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="module 'kn_bench' has no attribute 'leaderboard'"):
        kn.leaderboard  # noqa: B018


def test_the_module_where_a_name_lives_is_the_one_that_type_checkers_read():
    import ast

    tree = ast.parse(Path(kn.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {(f"kn_bench.{module}", name) for module, names in kn._HOMES.items() for name in names}
    assert seen == homes
    assert {name for _, name in homes} == DOOR


LIGHT = """
import sys, time
start = time.perf_counter()
import kn_bench
spent = time.perf_counter() - start
assert not {"torch", "pytest", "numpy", "transformers", "pandas", "jaxtyping"} & set(sys.modules)
print(spent)
"""


def test_importing_takes_no_time_and_nothing_heavy():
    """Under 150 ms; the best of three, for the machine may be busy."""
    runs = [
        subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
        for _ in range(3)
    ]
    assert not any(run.returncode for run in runs), runs[0].stderr
    assert min(float(run.stdout) for run in runs) < 0.15


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_functions_example_gives_what_it_says(name, tmp_path, monkeypatch):
    function = getattr(kn, name)
    examples = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert any(test.examples for test in examples), f"{name} has no example"
    monkeypatch.chdir(tmp_path)  # some write a file
    runner = doctest.DocTestRunner()
    report: list[str] = []
    for test in examples:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def request(**changes):
    given = {"subject": "w5", "prompt": "w6 {} w7", "target_true": "w8", "target_new": "w9"}
    return kn.EditRequest(**{**given, **changes})


def test_a_request_needs_no_more_than_its_text():
    first = request()
    assert first == request()
    assert first.id.startswith("request/")
    assert request(target_new="w10").id != first.id
    with pytest.raises(ValueError, match="subject '': expected a text"):
        kn.EditRequest(prompt="The capital of {} is", target_true="Ottawa", target_new="Rome")


def test_an_unknown_method_and_a_bare_function_are_refused():
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="unknown method 'rom'; known: "):
        kn.method("rom", model)
    with pytest.raises(ValueError, match="'request': expected a method's name, or a function"):
        kn.method(request, model)
    with pytest.raises(kn.NotApplicable, match="rome is defined for causal models only"):
        kn.method("rome", tiny_model("bert"))

    @kn.edit_method("needs-more")
    def needs_more(language_model, tmp_path):
        return None

    with pytest.raises(ValueError, match="also takes tmp_path; measure it by pytest"):
        kn.method(needs_more, model)


class Prefix:
    def __init__(self, refused=()):
        self.refused = refused

    def edit(self, requests):
        return [
            kn.NotApplicable("not this one") if r.target_new in self.refused else kn.PromptEdit("a")
            for r in requests
        ]


def test_one_request_gives_an_edit_and_several_a_list():
    @kn.edit_method("prefix")
    def prefix():
        return Prefix(refused=("w11",))

    bound = kn.method(prefix, tiny_model("gpt2"))
    assert bound.edit(request()) == kn.PromptEdit("a")
    first, second = bound.edit([request(), request(target_new="w11")])
    assert first == kn.PromptEdit("a")
    assert str(second) == "not this one"
    with pytest.raises(kn.NotApplicable, match="not this one"):
        bound.edit(request(target_new="w11"))


def low_rank(model):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(model.d_mlp, 1, generator=generator).to(model.dtype)
    v = torch.randn(1, model.d_model, generator=generator).to(model.dtype)
    return kn.LowRankEdit((kn.LowRank(1, u, 50 * v),))


def neurons(model):
    return kn.NeuronEdit((kn.NeuronScale(1, torch.arange(model.d_mlp), 4.0),))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "bert", "albert", "modernbert"])
@pytest.mark.parametrize("make", [low_rank, neurons])
def test_what_an_edited_model_generates_is_what_its_rows_say(family, make):
    """Greedily, token by token and without kept keys and values, under the edits of rows."""
    from kn_bench.editing.applying import RowEdits

    model = tiny_model(family)
    before = model.parameter_hash()
    edit = make(model)
    text = "w6 w5 w7" if model.is_causal else "w6 w5 [MASK] w7"
    n = 4 if model.is_causal else 1
    with kn.edited(model, edit):
        generated = model.generate(text, max_new_tokens=n)
    assert model.parameter_hash() == before
    ids = list(model.tokens.encode(text).ids)
    start = len(ids) - 1 if model.is_causal else ids.index(model.tokens.mask_id or 0)
    expected = []
    for _ in range(n):
        row = model.tensor([ids])
        positions = torch.arange(row.shape[1])[None]
        where = positions >= start if model.is_causal else positions == start
        at = model.tensor([[len(ids) - 1 if model.is_causal else start]])
        with torch.no_grad(), RowEdits(model, [edit]).on(torch.zeros(1, dtype=torch.long), where):
            token = int(model.forward(row, at)[0, 0].argmax())
        if token == model.tokens.eos_id:
            break
        expected.append(token)
        ids.append(token)
    assert generated.split() == model.tokens.decode(expected).split()


def test_generation_is_another_under_these_edits():
    """Else the test above would compare nothing."""
    model = tiny_model("gpt2")
    plain = model.generate("w6 w5 w7", max_new_tokens=4)
    for make in (low_rank, neurons):
        with kn.edited(model, make(model)):
            assert model.generate("w6 w5 w7", max_new_tokens=4) != plain
    assert model.generate("w6 w5 w7", max_new_tokens=4) == plain


def test_a_prompt_edit_stands_in_front_while_it_is_open():
    model = tiny_model("gpt2")
    stated = model.generate("w9 w6 w5 w7", max_new_tokens=3)
    with kn.edited(model, kn.PromptEdit("w9")):
        assert model.generate("w6 w5 w7", max_new_tokens=3) == stated
    assert model.prompt_prefix == ""


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(ValueError, match=r"expected one \[MASK\] in a prompt for the masked model"):
        tiny_model("bert").generate("w5 w6")
    with pytest.raises(ValueError, match="tokens before 20 new ones, got 0"):
        tiny_model("gpt2").generate("")
    edit = kn.NeuronEdit((kn.NeuronScale(99, torch.arange(2), 0.0),))
    with pytest.raises(ValueError, match="the edit edits layer 99"):
        kn.edited(tiny_model("gpt2"), edit).__enter__()


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert"])
def test_a_fact_that_cannot_be_located_has_its_reason(name):
    model = kn.load_model(name)
    words: Any = {"subject": "Canada", "target_true": "Ottawa", "target_new": "Rome"}
    long = kn.EditRequest(prompt="The capital of {} is" + " so" * model.tokens.max_length, **words)
    expected = f"a query that {name} can be asked, and none of 1 can be (the text is longer than"
    with pytest.raises(ValueError, match=re.escape(expected)):
        kn.locate(model, long)
    if model.is_causal:
        inside = kn.EditRequest(prompt="{} has", suffix=" as its capital", **words)
        with pytest.raises(
            ValueError, match=r"\(the answer is followed by more text: only a masked"
        ):
            kn.locate(model, inside)


def test_an_evaluation_is_what_pytest_measures(tmp_path):
    """The same engine and criteria; its folder is a run that the commands read."""
    from kn_bench.results.loading import load_runs

    model = kn.load_model("tiny-gpt2")
    cases = kn.load_cases("embedded", relation="P36", limit=3)
    evaluation = kn.evaluate(model, "in-context", cases)
    assert set(evaluation.verdicts["criterion"]) == {
        "reliability", "generality", "locality", "symmetry", "synonym", "overturn",
    }  # fmt: skip
    assert [result.case for result in evaluation.results] == [case.id for case in cases]
    assert evaluation.score("reliability") == 1.0
    assert "in-context" in evaluation.board()
    assert evaluation.board(markdown=True).startswith("# Leaderboard")
    evaluation.save(tmp_path / "run")
    assert len(load_runs([tmp_path / "run"]).verdicts) == 6 * len(cases)
    with pytest.raises(ValueError, match="expected a folder without a run"):
        evaluation.save(tmp_path / "run")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="model: expected a new or an empty folder; name another"):
        evaluation.save(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match="'speed': expected one of reliability, "):
        evaluation.score("speed")
    with pytest.raises(ValueError, match="expected at least one case"):
        kn.evaluate(model, "none", [])


API: Any = kn
"""For what a type checker would refuse."""
FACT = kn.EditRequest(
    subject="Canada", prompt="The capital of {} is", target_true="Ottawa", target_new="Rome"
)


@pytest.mark.parametrize(("call", "sentence"), [
    (lambda lm: API.method("rome", "tiny-gpt2"), r"kn_bench\.load_model\('tiny-gpt2'\)"),
    (lambda lm: API.method("rome", lm.hf), "expected a loaded model.* got GPT2LMHeadModel"),
    (lambda lm: API.evaluate("tiny-gpt2", "none", []), "expected a loaded model"),
    (lambda lm: API.evaluate(lm, "none", [FACT]), "cases with probes.* got EditRequest"),
    (lambda lm: API.evaluate(lm, "none", "embedded"), "cases with probes.* got str"),
    (lambda lm: API.method("none", lm).edit("Canada"), "EditRequest, and got str"),
    (lambda lm: API.method("none", lm).edit([FACT, None]), "EditRequest, and got NoneType"),
    (lambda lm: API.method("none", lm).edit(kn.load_cases("embedded", limit=1)[0]), "case.request"),
    (lambda lm: API.locate(lm, [FACT]), "EditRequest, and got list"),
    (lambda lm: API.trace("tiny-gpt2", FACT), "expected a loaded model"),
    (lambda lm: API.edited("tiny-gpt2", kn.NoEdit()).__enter__(), "expected a loaded model"),
    (lambda lm: API.load_edit("edit.safetensors", model="tiny-gpt2"), "expected a loaded model"),
    (lambda lm: API.evaluate(lm, "none", kn.load_cases("embedded", limit=1)[0]), r"give \[case\]"),
    (lambda lm: API.load_cases("embedded", limit="3"), "limit '3': expected a whole number"),
    (lambda lm: API.load_cases("embedded", limit=2.5), "limit 2.5: expected a whole number"),
    (lambda lm: API.load_cases("embedded", limit=True), "limit True: expected a whole number"),
    (lambda lm: API.load_cases("embedded", seed=1.5), "seed 1.5: expected a whole number"),
    (lambda lm: API.load_cases("embedded", seed="a"), "seed 'a': expected a whole number"),
    (lambda lm: API.load_cases("embedded", relation=3), "relation: .* for all, and got int"),
    (lambda lm: API.load_cases("embedded", relation=[3]), "relation: .*, and got int"),
    (lambda lm: API.load_cases(None), "source: expected what --cases takes.* got NoneType"),
    (lambda lm: API.load_model(None), "name: expected a model's name.* got NoneType"),
    (lambda lm: API.load_model("tiny-gpt2", device=3), "device: expected a text, and got int"),
    (lambda lm: API.load_model("tiny-gpt2", dtype=3), "dtype: expected a text, and got int"),
    (lambda lm: API.load_model("tiny-gpt2", commit=3), "commit: expected a text, and got int"),
    (lambda lm: API.load_model("tiny-gpt2", attention=3), "attention: expected a text"),
    (lambda lm: API.load_model("tiny-gpt2", chat_template="no"), "expected True or False"),
    (lambda lm: lm.generate(3), "prompt: expected one text, and got int"),
    (lambda lm: lm.generate(["w5", "w6"]), "prompt: expected one text, and got list"),
    (lambda lm: lm.generate("w5", max_new_tokens=1.5), "max_new_tokens 1.5: expected a whole"),
    (lambda lm: API.encode_request("x", lm.tokens), "kn_bench.EditRequest, and got str"),
    (lambda lm: API.encode_request(FACT, lm), "tokens of a loaded model.* got LanguageModel"),
    (lambda lm: API.evaluate(lm, "none", None), "cases with probes.* got NoneType"),
    (lambda lm: API.locate(lm, FACT, settings={"t": 0.1}), "Locating, or None, and got dict"),
    (lambda lm: API.trace(lm, FACT, kinds=3), "some of hidden, mlp, attention, and got int"),
    (lambda lm: API.trace(lm, FACT, samples=1.5), "samples 1.5: expected a whole number"),
    (lambda lm: API.trace(lm, FACT, samples=True), "samples True: expected a whole number"),
    (lambda lm: API.trace(lm, FACT, window=1.5), "window 1.5: expected a whole number"),
    (lambda lm: API.trace(lm, FACT, seed="a"), "seed 'a': expected a whole number"),
    (lambda lm: API.trace(lm, FACT, multiplier="3"), "multiplier '3': expected a number"),
    (lambda lm: API.save_edit(kn.NoEdit(), 3, provenance=None), "path of a file, and got int"),
    (lambda lm: API.save_edit(kn.NoEdit(), "e", provenance={}), "kn_bench.Provenance.* got dict"),
    (lambda lm: API.load_edit(None), "path of a file that save_edit wrote, and got NoneType"),
    (lambda lm: API.EditRequest(subject=3, prompt="{} is"), "subject 3: expected a text, got int"),
])  # fmt: skip
def test_what_is_handed_over_by_mistake_is_refused_in_a_sentence(call, sentence):
    """A model's name in place of the model was "'str' object has no attribute 'tokens'"."""
    with pytest.raises(TypeError, match=sentence):
        call(tiny_model("gpt2"))


def test_a_method_bound_to_another_model_is_not_this_ones():
    ours, theirs = kn.load_model("tiny-gpt2"), kn.load_model("tiny-gpt2")
    cases = kn.load_cases("embedded", relation="P36", limit=1)
    with pytest.raises(ValueError, match="bound to another one"):
        kn.evaluate(ours, kn.method("none", theirs), cases)
    assert kn.evaluate(ours, kn.method("none", ours), iter(cases)).score("locality") == 1.0


def test_a_board_says_what_was_not_measured_and_why():
    @kn.edit_method("failing")
    def failing(language_model):
        class Failing:
            def edit(self, requests):
                raise RuntimeError("no luck today")

        return Failing()

    cases = kn.load_cases("embedded", relation="P36", limit=2)
    evaluation = kn.evaluate(kn.load_model("tiny-gpt2"), failing, cases)
    assert "2 of 2 cases not measured: failing failed while editing" in evaluation.board()
    assert list(evaluation.errors.values()) == [2]


def test_a_method_that_edits_together_edits_one_request_too():
    @kn.edit_method("together")
    def together(language_model):
        class Together:
            def edit_together(self, requests):
                return kn.PromptEdit(f"{len(requests)}")

        return Together()

    bound = kn.method(together, tiny_model("gpt2"))
    assert bound.edit(request()) == kn.PromptEdit("1")
    assert bound.edit([request(), request()]) == [kn.PromptEdit("1")] * 2


@kn.edit_method("with-teardown")
def with_teardown(language_model):
    yield Prefix()


@pytest.mark.parametrize(("call", "sentence"), [
    (lambda lm: API.method(with_teardown, lm), "yields it, as fixtures with a teardown do"),
    (lambda lm: API.evaluate(lm, with_teardown, kn.load_cases("embedded", limit=1)), "by pytest"),
    (lambda lm: API.method("memit*", lm), r"'memit\*': expected the name of one method"),
    (lambda lm: API.evaluate(lm, "all", kn.load_cases("embedded", limit=1)), "one of"),
    (lambda lm: API.load_cases("embedded", relation=[]), "expected at least one, or None"),
    (lambda lm: API.load_cases("embedded", limit=0), "limit 0: expected a positive number"),
    (lambda lm: API.edited(lm, kn.NotApplicable("not here")).__enter__(), "has none: not here"),
    (lambda lm: API.trace(lm, FACT, kinds=["x"]), r"kinds \['x'\]: expected some of hidden"),
    (lambda lm: API.trace(lm, FACT, kinds=[]), "expected some of hidden, mlp, attention"),
    (lambda lm: API.trace(lm, FACT, samples=0), "samples 0: expected at least 1"),
    (lambda lm: API.trace(lm, FACT, window=0), "window 0: expected at least 1"),
    (lambda lm: API.trace(lm, FACT, kinds=["mlp", "mlp"]), "expected each kind once"),
    (lambda lm: API.trace(lm, FACT, multiplier=float("nan")), "multiplier nan: expected a finite"),
    (lambda lm: API.trace(lm, FACT, multiplier=-1), "multiplier -1: expected a finite"),
    (lambda lm: lm.generate("w5", max_new_tokens=0), "max_new_tokens 0: expected at least 1"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(tiny_model("gpt2"))


def test_what_stands_for_a_list_is_taken_for_one(tmp_path):
    """A generator of relations gave no cases, and a kind by itself was taken letter by letter."""
    lists = [kn.load_cases("embedded", relation=r, limit=2) for r in (["P36"], iter(["P36"]))]
    assert [case.id for case in lists[0]] == [case.id for case in lists[1]]
    assert len(lists[0]) == 2
    model = kn.load_model("tiny-gpt2")
    one, listed = (
        kn.trace(model, lists[0][0].request, kinds=kinds, samples=2)  # type: ignore[arg-type]
        for kinds in ("mlp", ["mlp"])
    )
    assert one.kinds == ("mlp",)
    assert torch.equal(one.scores, listed.scores)
    once = kn.trace(model, lists[0][0].request, kinds=(k for k in ["mlp"]), samples=2)  # type: ignore[misc]
    assert torch.equal(once.scores, one.scores)
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        '{"subject":"Canada","prompt":"The capital of {} is","target_true":"Ottawa",'
        '"target_new":"Rome"}\n'
    )
    assert len(kn.load_cases(facts)) == 1


class Unasked:
    """A method that is never to be reached."""

    def edit(self, requests):
        raise AssertionError("measured before the options were checked")


@kn.edit_method("unasked")
def unasked(language_model):
    return Unasked()


@pytest.mark.parametrize(("options", "error", "sentence"), [
    ({"generations": 1.5}, TypeError, "generations 1.5: expected a whole number of texts"),
    ({"generations": "1"}, TypeError, "generations '1': expected a whole number of texts"),
    ({"generations": True}, TypeError, "generations True: expected a whole number of texts"),
    ({"generations": -1}, ValueError, "generations -1: expected at least 0"),
    ({"references": "/missing.json"}, ValueError, "missing.json: expected --generations N"),
    ({"references": 3, "generations": 1}, TypeError, "references: expected the path of a file"),
    ({"references": "/missing.json", "generations": 1}, ValueError, "expected a data file"),
])  # fmt: skip
def test_what_is_to_be_written_is_checked_before_anything_is_measured(options, error, sentence):
    """A wrong number of texts was put down to the method, after the whole measurement."""
    cases = kn.load_cases("embedded", limit=1)
    with pytest.raises(error, match=sentence):
        API.evaluate(tiny_model("gpt2"), unasked, cases, **options)


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    limit, seed = np.int64(1), np.int64(3)
    assert API.load_cases("embedded", limit=limit, seed=seed) == kn.load_cases(
        "embedded", limit=1, seed=3
    )


@pytest.mark.parametrize(("name", "error", "sentence"), [
    ("missing/edit.safetensors", FileNotFoundError, "expected a folder to save the edit in"),
    ("", IsADirectoryError, "expected a file, and it is a folder; name a file in it"),
    ("x" * 300, OSError, "expected a place where the edit can be written"),
])  # fmt: skip
def test_an_edit_is_saved_where_there_is_a_place_for_it(tmp_path, name, error, sentence):
    source = kn.method("none", tiny_model("gpt2")).provenance
    with pytest.raises(error, match=sentence):
        kn.save_edit(kn.NoEdit(), tmp_path / name, provenance=source)
    assert not list(tmp_path.iterdir())


def test_a_subject_that_stands_in_the_prompt_has_no_place_of_its_own():
    """ROME said of such a request that its subject must come before the answer."""
    with pytest.raises(ValueError, match=r"expected '\{\}' where the subject 'Canada' stands"):
        kn.EditRequest(
            subject="Canada", prompt="The capital of Canada is", target_true="Ottawa",
            target_new="Rome",
        )  # fmt: skip
    # a question need not name its subject, and a part of a word is no subject
    kn.EditRequest(
        subject="Can", prompt="The capital of Canada is", target_true="a", target_new="b"
    )


def test_a_case_given_twice_is_named():
    cases = kn.load_cases("embedded", relation="P36", limit=1)
    with pytest.raises(ValueError, match=f"two are called {cases[0].id}; give each case once"):
        kn.evaluate(kn.load_model("tiny-gpt2"), "none", cases * 2)


@pytest.mark.parametrize("relation", ["P36", "determiner_noun_agreement_1"])
def test_a_case_can_be_copied_sent_and_hashed(relation):
    """A read-only view in it could be neither."""
    (case,) = kn.load_cases("embedded", relation=relation, limit=1)
    viewed = replace(case, not_applicable=MappingProxyType({"symmetry": "no inverse"}))
    stated = replace(case, not_applicable={"symmetry": "no inverse"})
    for each in (case, viewed, stated):
        assert repr(pickle.loads(pickle.dumps(each))) == repr(each)  # the data's hash is made of it
        assert copy.deepcopy(each) == pickle.loads(pickle.dumps(each)) == each
        assert len({each, copy.deepcopy(each)}) == 1


@pytest.mark.parametrize(("field", "value", "error"), [
    ("queries", ["x"], TypeError), ("queries", None, TypeError), ("queries", "x", TypeError),
    ("background", None, TypeError), ("background", ["x"], TypeError),
    ("background", [["x"]], TypeError), ("relation", 3, TypeError), ("relation", None, TypeError),
    ("task", 3, TypeError), ("task", "nope", ValueError),
])  # fmt: skip
def test_a_request_has_fields_of_their_types(field, value, error):
    with pytest.raises(error, match=f"^{field} .*: expected "):
        replace(FACT, **{field: value})


def test_queries_of_a_request_may_be_listed():
    query = Query(FACT.cloze, "Ottawa")
    listed: Any = replace(FACT, queries=[query], background=[[query]])  # type: ignore[arg-type]
    assert (listed.queries, listed.background) == ((query,), ((query,),))
    assert hash(listed) == hash(replace(FACT, queries=(query,), background=((query,),)))


def test_noise_that_the_model_cannot_compute_with_is_refused():
    """The scores were NaN, and nothing said why."""
    (case,) = kn.load_cases("embedded", relation="P36", limit=1)
    with pytest.raises(ValueError, match=r"multiplier 1e\+30: expected noise that tiny-gpt2 can"):
        kn.trace(kn.load_model("tiny-gpt2"), case.request, samples=1, multiplier=1e30)


@pytest.mark.parametrize(("apply", "sentence"), [
    (None, "WrapperEdit of a NoneType: expected a function"),
    (3, "WrapperEdit of a int: expected a function"),
    (lambda hf: 3, "WrapperEdit returned a int: expected a context manager"),
    (lambda hf: None, "WrapperEdit returned a NoneType: expected a context manager"),
])  # fmt: skip
def test_a_wrapper_that_wraps_nothing_is_refused_in_a_sentence(apply, sentence):
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match=sentence):
        kn.edited(model, API.WrapperEdit(apply)).__enter__()
    assert model.parameter_hash() == model.verified_hash


def test_edits_are_equal_by_what_they_hold():
    """To compare two raised an error: the truth of a tensor is ambiguous."""
    model = tiny_model("gpt2")
    dense = {model.weight_name(0): torch.ones(2)}
    for make in (low_rank, neurons, lambda _: kn.DenseEdit(dict(dense))):
        edit, same = make(model), make(model)
        assert edit == same
        assert edit != replace(same, notes={"a": 1})
        assert edit != kn.NoEdit()
    (update,) = low_rank(model).updates
    assert low_rank(model) != kn.LowRankEdit((kn.LowRank(1, update.u, -update.v),))
    assert kn.DenseEdit(dense) != kn.DenseEdit({model.weight_name(0): torch.zeros(2)})


def test_an_evaluation_is_not_saved_in_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = kn.evaluate(
        kn.load_model("tiny-gpt2"), "none", kn.load_cases("embedded", relation="P36", limit=1)
    )
    with pytest.raises(ValueError, match="folder '': expected the path of a folder"):
        evaluation.save("")
    assert not list(tmp_path.iterdir())
