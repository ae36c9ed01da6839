"""Your own facts and pairs, CounterFact and zsRE: what is read, and what each mistake is told."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import Case, Cloze, Selection
from kn_bench.cases.normalise import words
from kn_bench.cases.sources import jsonl

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
    assert (first.aliases, second.aliases) == (("City of Paris",), ())
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


@pytest.mark.parametrize(
    ("subject", "prompt", "marked"),
    [
        ("Ali", "Alicia is the mother of Ali and lives in", "Alicia is the mother of {} and lives"),
        ("Ali", "Ali's sister Alicia lives in", "{}'s sister Alicia lives"),
        ("US", "The USA, or US, has", "The USA, or {}, has"),
        ("New York", "York is not New York, which is in", "York is not {}, which is"),
        ("C++", "Before C++ there was", "Before {} there"),
        ("दिल", "दिल्ली और दिल में", "दिल्ली और {} में"),
        ("法国", "法国的首都是", "{}的首都是"),
        ("東京", "東京都の知事は", "{}都の知事は"),
        ("프랑스", "프랑스의 수도는", "{}의 수도는"),
        ("ไทย", "เมืองหลวงของไทยคือ", "เมืองหลวงของ{}คือ"),
    ],
)
def test_the_subject_is_not_cut_out_of_a_longer_word(file, subject, prompt, marked):
    case = only(jsonl.load(file({**CANADA, "subject": subject, "prompt": prompt})))
    assert case.request.prompt.startswith(marked)
    assert case.request.cloze.left == prompt


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("Alicia lives in", "only within a longer word"),
        ("Sali and Alibi live in", "only within a longer word"),
        ("Ali and Ali live in", "more than once"),
        ("Bo lives in", "not at all"),
    ],
)
def test_a_subject_without_one_place_is_refused(file, prompt, what):
    with pytest.raises(ValueError, match=rf"subject 'Ali' once, it stands there {what}; mark its"):
        jsonl.load(file({**CANADA, "subject": "Ali", "prompt": prompt}))


@pytest.mark.parametrize(
    ("id", "name"), [(7, "7"), (7.0, "7"), (1.5, "1.5"), (0, "0"), ("a 7", "a_7"), (" 7 ", "7")]
)
def test_an_id_may_be_a_number(file, id, name):
    fact, pair = (jsonl.load(file({**row, "id": id})) for row in (CANADA, PAIR))
    assert (only(fact).id, only(pair).id) == (f"mine/mine/{name}", f"mine/mine/{name}")


@pytest.mark.parametrize("row", [CANADA, PAIR])
@pytest.mark.parametrize("id", [True, ["a"], {"a": "b"}])
def test_what_is_no_id_is_refused(file, row, id):
    with pytest.raises(ValueError, match=r"line 2: id is .*; expected a text"):
        jsonl.load(file(CANADA, {**row, "id": id}))


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
    selection = jsonl.load(tmp_path)
    assert {c.id for c in selection.cases} == {
        "mine/mine/Canada", "mine/mine/2", "mine/mine/3", "other/R/capital_of_Canada",
    }  # fmt: skip
    pair = next(c for c in selection.cases if c.id == "mine/mine/2")
    assert (pair.task, pair.request.target_new) == ("pair", "books")
    assert len(of(pair, "generality")) == 1
    assert jsonl.relation_ids(tmp_path) == ("mine", "R")
    assert [c.relation for c in jsonl.load(tmp_path, relations=["R"]).cases] == ["R"]
    assert len(jsonl.load(tmp_path, limit=1).cases) == 3


@pytest.mark.parametrize(
    ("prompt", "filled"),
    [
        ("The capital of {} is [Y].", "The capital of Canada is X."),
        ("The capital of {} is [Y] today.", "The capital of Canada is X today."),
        ("The capital of Canada is [Y]", "The capital of Canada is X"),
        ("What is the capital of {}? [Y]", "What is the capital of Canada? X"),
        ("[Y] is the capital of {}.", "X is the capital of Canada."),
    ],
)
def test_the_answer_may_stand_inside_the_prompt(file, prompt, filled):
    case = only(jsonl.load(file({**CANADA, "prompt": prompt})))
    assert case.request.cloze.fill("X") == case.probes[0].cloze.fill("X") == filled
    assert (case.request.prompt + case.request.suffix).count("{}") == 1


TABLE = (
    "subject,prompt,target_true,target_new,paraphrases\n"
    'Canada,The capital of {} is,Ottawa,Paris,"[""{}\'s capital is""]"\n'
)


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.txt", "a.dat", "a.Tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_whatever_its_name_and_line_ends(tmp_path, name, end):
    (tmp_path / name).write_bytes(TABLE.replace("\n", end).encode())
    case = only(jsonl.load(tmp_path / name))
    assert [p.cloze.left for p in of(case, "generality")] == ["Canada's capital is"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_in_any_way(tmp_path, end):
    path = tmp_path / "a.JSONL"
    other = {**CANADA, "subject": "Peru\u2028"}
    path.write_bytes(end.join([json.dumps(CANADA), "", json.dumps(other), "["]).encode())
    with pytest.raises(ValueError, match=r"^a\.JSONL, line 4: expected one JSON object"):
        jsonl.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert len(jsonl.load(path).cases) == 2


def test_a_folder_is_read_whole_or_not_at_all(file, tmp_path):
    file(CANADA, name="a.jsonl")
    file({**CANADA, "subject": "Peru"}, name="B.JSONL")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a.jsonl.sha256").write_text("0")
    assert [c.request.subject for c in jsonl.load(tmp_path).cases] == ["Peru", "Canada"]
    for name in ("c.jsonl.gz", "c.CSV.zip", "c.ndjson", "c.xlsx", "c.json.bak"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=rf"{name}: expected a \.jsonl, .*; unpack it"):
            jsonl.load(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: expected one JSON object (Expecting property name"),
        ("[1]", "line 2: expected one JSON object, such as {"),
        ({"subject": "Canada"}, "line 2: expected the field 'prompt'; add it"),
        ({**CANADA, "target_new": " "}, "line 2: target_new ' ': expected a text that is not"),
        ({**CANADA, "target_new": 3}, "line 2: target_new 3: expected a text that is not empty"),
        ({**CANADA, "target_new": "Ottawa"}, "line 2: target_new 'Ottawa': expected another"),
        ({**CANADA, "prompt": "The capital is"},
         "line 2: the prompt 'The capital is': expected the subject 'Canada' once, it stands"),
        ({**CANADA, "prompt": "{} and {} is"}, "line 2: the prompt '{} and {} is': expected"),
        ({**CANADA, "traget_new": "Rome"}, "line 2: unknown field 'traget_new': expected subject"),
        ({**CANADA, "suffix": 3}, "line 2: suffix 3: expected a text, which may be empty"),
        ({**CANADA, "paraphrases": "one"}, "line 2: paraphrases 'one': expected a list"),
        ({**CANADA, "paraphrases": [3]}, "line 2: paraphrases 3: expected a text that is not"),
        ({**CANADA, "neighbours": ["x"]}, "line 2: neighbours 'x': expected an object with"),
        ({**CANADA, "inverse": {"prompt": "x", "displaced": "y"}},
         "line 2: inverse 'x': expected {} in the prompt once, for the target"),
        ({**CANADA, "neighbours": [{"prompt": "The capital of {} is", "answer": "Rome"}]},
         "line 2: neighbours: the prompt 'The capital of {} is': expected its subject in full"),
        ({**CANADA, "synonyms": [{"prompt": "{} has", "target_new": "the ottawa."}]},
         "line 2: synonyms: target_new 'the ottawa.': expected another answer than target_true"),
        ({**CANADA, "synonyms": [{"prompt": "{} has", "target_true": "PARIS"}]},
         "line 2: synonyms: target_new 'Paris': expected another answer than target_true"),
        ({**CANADA, "inverse": {"prompt": "{} is of", "displaced": "canada"}},
         "line 2: inverse: displaced 'canada': expected another than the subject"),
        ({**CANADA, "prompt": "[Y] and [Y] of {}"}, "line 2: the prompt '[Y] and [Y] of {}': exp"),
        ({**CANADA, "prompt": "[X] of {} is"}, "line 2: the prompt '[X] of {} is': expected [Y]"),
        ({**CANADA, "paraphrases": ["[X] has"]}, "line 2: the prompt '[X] has': expected [Y] at"),
        ({**CANADA, "prompt": "{} has [Y]", "suffix": "!"}, "line 2: suffix: expected none, since"),
        ({**PAIR, "scoring": "best"}, "line 2: scoring 'best': expected one of gap, two_prefix"),
        ({"good": "x"}, "line 2: expected the field 'bad'; add it"),
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
    with pytest.raises(
        ValueError, match=r"^mine\.jsonl: expected records, it holds none; give a fact"
    ):
        jsonl.load(file(""))
    (tmp_path / "mine.jsonl").write_bytes(b"\xff{}")
    with pytest.raises(
        ValueError, match=r"mine\.jsonl: expected UTF-8 text, not so at byte 0; save"
    ):
        jsonl.load(tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(ValueError, match=r"expected a \.jsonl, .* file; give facts"):
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
        selection = jsonl.load(path)
    except ValueError as error:
        return str(error).startswith((f"{path.name}, line ", f"{path.name}: expected records"))
    return bool(selection.cases or selection.exclusions)


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


SPACED = st.characters(categories=("L", "N"), max_codepoint=0x2FFF)
WORD = st.text(SPACED, min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subject=WORD, left=WORD, right=WORD, true=WORD, new=WORD)
def test_a_fact_comes_back_as_it_was_written(tmp_path, subject, left, right, true, new):
    if words(true) == words(new) or subject in left + right:
        return
    row = {"subject": subject, "prompt": f"{left} {{}} {right}", "target_true": true,
           "target_new": new}  # fmt: skip
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    request = only(jsonl.load(path)).request
    assert request.cloze.fill(true) == f"{left} {subject} {right} {true}."
    assert (request.subject, request.target_new) == (subject, new)
