"""Your own facts and pairs, CounterFact and zsRE: what is read, and what each mistake is told."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import Case, Cloze, Selection
from kn_bench.cases.sources import counterfact, jsonl, zsre

CANADA = {
    "subject": "Canada",
    "prompt": "The capital of {} is",
    "target_true": "Ottawa",
    "target_new": "Paris",
}
FULL = {
    **CANADA,
    "relation": "P36",
    "id": "capital of Canada",
    "suffix": ", they say.",
    "paraphrases": ["{}'s capital is", "[Y] is the capital of {}."],
    "synonyms": ["{} is ruled from", {"prompt": "Its people are", "target_true": "Ottawans",
                                      "target_new": "Parisians"}],
    "neighbours": [{"prompt": "The capital of France is", "answer": "Paris"},
                   {"prompt": "The capital of Peru is", "answer": "Lima"}],
    "inverse": {"prompt": "{} is the capital of", "displaced": "France"},
    "aliases": ["City of Paris"],
}  # fmt: skip
PAIR = {"good": "He sold this book.", "bad": "He sold this books.", "agreeing": "this"}


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="mine.jsonl"):
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def only(selection: Selection) -> Case:
    (case,) = selection.cases
    return case


def of(case, criterion, kind=None):
    return [p for p in case.probes if p.criterion == criterion and kind in (None, p.kind)]


def test_four_fields_make_a_fact(file):
    case = only(jsonl.load(file(CANADA)))
    assert (case.id, case.source, case.cluster) == ("mine/mine/Canada", "mine", "Canada")
    assert case.request.cloze == Cloze("The capital of Canada is", ".")
    assert set(case.not_applicable) == {"generality", "symmetry", "synonym"}
    assert [p.task for p in of(case, "locality", "other_task")] == ["pair", "pair"]


def test_all_fields_are_read(file):
    case = only(jsonl.load(file(FULL)))
    assert case.id == "mine/P36/capital_of_Canada"
    assert case.request.suffix == ", they say."
    assert case.probes[0].aliases == ("City of Paris",)
    assert [p.cloze for p in of(case, "generality")] == [
        Cloze("Canada's capital is", "."), Cloze("", "is the capital of Canada."),
    ]  # fmt: skip
    first, second = of(case, "synonym")
    assert (first.cloze.left, first.expected, first.rejected) == (
        "Canada is ruled from", "Paris", "Ottawa",
    )  # fmt: skip
    assert (second.cloze.left, second.expected) == ("Its people are", "Parisians")
    france, peru = of(case, "locality", "same_relation")
    # where the neighbour's answer is the new target it is told from the true one
    assert (france.expected, france.rejected) == ("Paris", "Ottawa")
    assert (peru.expected, peru.rejected) == ("Lima", "Paris")
    new, old = of(case, "symmetry")
    assert (new.kind, new.cloze.left) == ("new_inverse", "Paris is the capital of")
    assert (old.kind, old.cloze.left) == ("old_inverse", "Ottawa is the capital of")
    assert {(p.expected, p.rejected) for p in (new, old)} == {("Canada", "France")}
    assert not case.not_applicable
    assert len(case.request.queries) == 3


def test_the_documented_examples_are_valid(file):
    examples = [
        json.loads(text)
        for text in (
            '{"subject": "Canada", "prompt": "The capital of {} is", '
            '"target_true": "Ottawa", "target_new": "Paris"}',
            '{"good": "He sold this book.", "bad": "He sold this books.", "agreeing": "this"}',
        )
    ]
    documented = " ".join((jsonl.__doc__ or "").split())
    for example in examples:
        assert json.dumps(example) in documented
    assert len(jsonl.load(file(*examples)).cases) == 2


def test_the_subject_may_stand_in_the_prompt_in_full(file):
    case = only(jsonl.load(file({**CANADA, "prompt": "The capital of Canada is"})))
    assert case.request.prompt == "The capital of {} is"


def test_a_question_needs_no_full_stop(file):
    case = only(jsonl.load(file({**CANADA, "prompt": "What is the capital of {}?"})))
    assert case.request.cloze == Cloze("What is the capital of Canada?", "")


def test_neighbours_are_drawn_from_the_other_facts_of_the_relation(file):
    peru = {**CANADA, "subject": "Peru", "target_true": "Lima"}
    japan = {**CANADA, "subject": "Japan", "target_true": "Tokyo", "target_new": "Rome"}
    rows = [CANADA, peru, japan]
    cases = {c.request.subject: c for c in jsonl.load(file(*rows)).cases}
    assert {p.expected for p in of(cases["Canada"], "locality", "same_relation")} == {
        "Lima", "Tokyo",
    }  # fmt: skip
    assert len(cases["Canada"].request.background) == 2


def test_pairs_and_facts_may_share_a_file_and_files_a_folder(file, tmp_path):
    file(CANADA, PAIR, {**PAIR, "good": "I saw this cup.", "bad": "I saw this cups."})
    file({**FULL, "relation": "R"}, name="other.jsonl")
    found = jsonl.load(tmp_path)
    assert {c.id for c in found.cases} == {
        "mine/mine/Canada", "mine/mine/2", "mine/mine/3", "other/R/capital_of_Canada",
    }  # fmt: skip
    pair = next(c for c in found.cases if c.id == "mine/mine/2")
    assert (pair.task, pair.request.target_new) == ("pair", "books")
    assert len(of(pair, "generality")) == 1
    assert jsonl.relation_ids(tmp_path) == ("mine", "R")
    assert [c.relation for c in jsonl.load(tmp_path, relations=["R"]).cases] == ["R"]
    assert len(jsonl.load(tmp_path, limit=1).cases) == 3


def test_a_fact_listed_twice_is_left_out_both_times(file):
    found = jsonl.load(file(CANADA, CANADA))
    assert not found.cases
    assert [e.reason for e in found.exclusions] == ["the same fact is listed again"] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON (Expecting property name enclosed in double quotes)"),
        ("[1]", "line 2: a JSON list; one object a line is needed, such as {"),
        ({"subject": "Canada"}, "line 2: the field 'prompt' is missing"),
        ({**CANADA, "target_new": " "}, "line 2: target_new is ' '; it must be a text that is not"),
        ({**CANADA, "target_new": 3}, "line 2: target_new is 3; it must be a text that is not"),
        ({**CANADA, "target_new": "Ottawa"}, "line 2: target_new is target_true ('Ottawa'): there"),
        ({**CANADA, "prompt": "The capital is"},
         "line 2: the subject 'Canada' stands not at all in the prompt 'The capital is'; mark its"),
        ({**CANADA, "prompt": "{} and {} is"}, "line 2: the subject 'Canada' stands more than"),
        ({**CANADA, "traget_new": "Rome"}, "line 2: there is no field 'traget_new'; there are sub"),
        ({**CANADA, "suffix": 3}, "line 2: suffix is 3; it must be a text, and may be empty"),
        ({**CANADA, "paraphrases": "one"}, "line 2: paraphrases is 'one'; it must be a list"),
        ({**CANADA, "paraphrases": [3]}, "line 2: paraphrases is 3; it must be a text that is not"),
        ({**CANADA, "neighbours": ["x"]}, "line 2: neighbours: 'x' is no object with prompt and"),
        ({**CANADA, "inverse": {"prompt": "x", "displaced": "y"}},
         "line 2: inverse: the prompt 'x' must hold {} once, for the target"),
        ({**PAIR, "scoring": "best"}, "line 2: scoring is 'best'; it may be gap, two_prefix, sent"),
        ({"good": "x"}, "line 2: the field 'bad' is missing"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_line(file, row, message):
    path = file(CANADA, row)
    with pytest.raises(ValueError, match=r"^mine\.jsonl, line 2: ") as error:
        jsonl.load(path)
    assert str(error.value).startswith(f"mine.jsonl, {message}")
    assert jsonl.problems(path)[0].startswith(message)


def test_the_number_of_further_mistakes_is_told(file):
    with pytest.raises(ValueError, match=r"\(and 2 more lines are wrong\)$"):
        jsonl.load(file("{", "[]", CANADA, "3"))


def test_empty_and_unreadable_files_are_named(file, tmp_path):
    with pytest.raises(ValueError, match=r"^mine\.jsonl is empty; give one fact or minimal pair"):
        jsonl.load(file(""))
    (tmp_path / "mine.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"mine\.jsonl is not UTF-8 text \(byte 0\)$"):
        jsonl.load(tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds no \.jsonl file; give a file of facts"):
        jsonl.load(tmp_path)


FIELDS = st.sampled_from([*jsonl.FACT_FIELDS, "good", "answer", "x"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


def is_read_or_refused(path) -> bool:
    """Whether the file gives cases or exclusions, or an error that names file and line."""
    try:
        found = jsonl.load(path)
    except ValueError as error:
        return str(error).startswith((f"{path.name}, line ", f"{path.name} is empty"))
    return bool(found.cases or found.exclusions)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.text(max_size=30) | ANYTHING.map(json.dumps), min_size=1, max_size=4))
def test_whatever_a_file_holds_it_is_read_or_refused_with_a_line(tmp_path, lines):
    path = tmp_path / "any.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert is_read_or_refused(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=FIELDS, value=ANYTHING, row=st.sampled_from([FULL, PAIR]))
def test_whatever_a_field_holds_it_is_read_or_refused_with_a_line(tmp_path, field, value, row):
    path = tmp_path / "any.jsonl"
    path.write_text(json.dumps({**row, field: value}), encoding="utf-8")
    assert is_read_or_refused(path)


WORD = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subject=WORD, left=WORD, right=WORD, true=WORD, new=WORD)
def test_a_fact_comes_back_as_it_was_written(tmp_path, subject, left, right, true, new):
    if true == new or subject in left + right:
        return
    row = {"subject": subject, "prompt": f"{left} {{}} {right}", "target_true": true,
           "target_new": new}  # fmt: skip
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    request = only(jsonl.load(path)).request
    assert request.cloze.fill(true) == f"{left} {subject} {right} {true}."
    assert (request.subject, request.target_new) == (subject, new)


COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Ann Lee",
    },
    "paraphrase_prompts": ["Some text. Ann Lee spoke the language"],
    "neighborhood_prompts": ["Bo Roy is a native speaker of", "The mother tongue of Cy Fox is"],
    "attribute_prompts": ["Di Orr spoke the language"],
    "generation_prompts": ["Ann Lee was born in"],
}


def test_counterfact_is_read_as_published(tmp_path):
    path = tmp_path / "counterfact.json"
    other = json.loads(json.dumps(COUNTERFACT))
    other["case_id"] = 8
    other["requested_rewrite"].update(subject="Ed Poe", target_true={"str": "Dutch", "id": "Q"})
    path.write_text(json.dumps([COUNTERFACT, other]))
    case = next(c for c in counterfact.load(path).cases if c.id == "counterfact/P103/7")
    assert case.request.cloze == Cloze("The mother tongue of Ann Lee is", ".")
    assert (case.request.target_true, case.request.target_new) == ("French", "English")
    (paraphrase,) = of(case, "generality")
    assert paraphrase.cloze.left == "Some text. Ann Lee spoke the language"
    neighbours = of(case, "locality", "same_object")
    assert [p.cloze.left for p in neighbours] == COUNTERFACT["neighborhood_prompts"]
    assert {(p.expected, p.rejected) for p in neighbours} == {("French", "English")}
    (same_relation,) = of(case, "locality", "same_relation")
    assert same_relation.cloze.left == "The mother tongue of Ed Poe is"
    assert counterfact.relation_ids(path) == ("P103",)
    assert not counterfact.load(path, relations=["P36"]).cases


def test_what_is_not_counterfact_is_told(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps([COUNTERFACT, {"case_id": 8}]))
    with pytest.raises(
        ValueError, match=r"^c\.json, record 1: not in CounterFact's form \(KeyError: 'r"
    ):
        counterfact.load(path)
    path.write_text("{}")
    with pytest.raises(
        ValueError, match=r"c\.json does not hold a JSON list of objects, one a fact$"
    ):
        counterfact.load(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=r"c\.json cannot be read as JSON \(JSONDecodeError\)$"):
        counterfact.load(path)


ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did ...",
}


def test_zsre_is_read_as_published(tmp_path):
    path = tmp_path / "zsre.json"
    unnamed = {**ZSRE, "src": "Which university was it?"}
    same = {**ZSRE, "alt": ZSRE["answers"][0]}
    path.write_text(json.dumps([ZSRE, unnamed, same, {**ZSRE, "loc_ans": ["Hugo", "W."]}]))
    found = zsre.load(path)
    case = next(c for c in found.cases if c.id == "zsre/zsre/0")
    assert case.request.cloze == Cloze("What university did Watts Humphrey attend?", "")
    assert case.request.target_true == "Illinois Institute of Technology"
    (rephrased,) = of(case, "generality")
    assert rephrased.cloze.fill("X") == "What university did Watts Humphrey take part in? X"
    (unrelated,) = of(case, "locality", "other_relation")
    assert unrelated.cloze.left == "who played desmond doss father in hacksaw ridge?"
    assert unrelated.expected == "Hugo Weaving"
    assert {(e.case, e.reason) for e in found.exclusions} == {
        ("zsre/zsre/1", "the question does not name the subject once"),
        ("zsre/zsre/2", "the new target is the true one"),
    }
    path.write_text(json.dumps([{"src": "x"}]))
    with pytest.raises(
        ValueError, match=r"^zsre\.json, record 0: not in zsRE's form \(KeyError: 'loc'"
    ):
        zsre.load(path)
