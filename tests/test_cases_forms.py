"""Published forms of editing data are recognised by what they hold, in any form on disk."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kn_bench.cases import sources
from kn_bench.cases.building.rows import CONDITION, JOINED, OTHER_INVERSE, REPEATED, UNCONDITIONED
from kn_bench.cases.case import HALF_A_CHARACTER, Cloze, Probe
from kn_bench.cases.sources import forms, jsonl
from kn_bench.cases.sources.forms.common import NO_ANSWER, UNKNOWN_GROUP
from kn_bench.cases.sources.forms.counterfact import UNPAIRED
from kn_bench.cases.sources.forms.questions import CHOICE
from kn_bench.cases.sources.jsonl import REPEATED_PAIR
from kn_bench.cases.sources.records import read_records
from tests.published_forms import (
    COUNTERFACT,
    FLAT,
    FORMS,
    HALLUEDITBENCH,
    KNOWEDIT,
    MQUAKE,
    QAEDIT,
    WIKIBIGEDIT,
    WIKIBIO,
    ZSRE,
)

SHARED = os.environ.get("KN_BENCH_SHARED")
FACT = {"subject": "Italy", "prompt": "The capital of {} is", "target_true": "Rome",
        "target_new": "Paris"}  # fmt: skip

ANSWERED = {k: v for k, v in HALLUEDITBENCH.items() if k != "locality_question"}
"""Without the question that the data set brings no answer to."""


def written(path: Path, records: object) -> Path:
    path.write_text(json.dumps(records))
    return path


def probes(case, criterion, kind=None):
    return [p for p in case.probes if p.criterion == criterion and kind in (None, p.kind)]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("lines", [False, True])
def test_a_form_is_recognised_with_and_without_its_name(tmp_path, name, lines):
    source = name.split()[0]
    path = written(tmp_path / "data.json", FORMS[name])
    if lines:
        path.write_text("\n".join(map(json.dumps, FORMS[name])))
    bare, named = sources.load(str(path)), sources.load(f"{source}={path}")
    assert bare == named
    assert len(bare.cases) == 2
    assert {case.source for case in bare.cases} == {source}
    other = next(s for s in forms.SOURCES if s != source)
    with pytest.raises(ValueError, match=rf"^{other}: data\.json holds .*; write {source}="):
        sources.load(f"{other}={path}")


def test_counterfact(tmp_path):
    selection = sources.load(str(written(tmp_path / "c.json", FORMS["counterfact"])))
    case = next(c for c in selection.cases if c.request.subject == "Ann Lee")
    assert case.request.cloze == Cloze("The mother tongue of Ann Lee is", ".")
    assert (case.request.target_true, case.request.target_new) == ("French", "English")
    (paraphrase,) = probes(case, "generality")
    assert paraphrase.cloze.left == "Some text. Ann Lee spoke the language"
    neighbours = probes(case, "locality", "same_object")
    assert [p.cloze.left for p in neighbours] == COUNTERFACT["neighborhood_prompts"]
    assert {(p.expected, p.rejected) for p in neighbours} == {("French", "English")}


def test_questions_are_framed_and_keep_their_subject(tmp_path):
    selection = sources.load(str(written(tmp_path / "z.json", [ZSRE])))
    (case,) = selection.cases
    assert case.request.prompt == "Q: What university did {} attend? A:"
    assert case.request.suffix == ""
    (rephrased,) = probes(case, "generality")
    assert rephrased.cloze.fill("X") == "Q: What university did Ann Lee take part in? A: X"
    (unrelated,) = probes(case, "locality", "other_relation")
    assert unrelated.cloze.left == "Q: who played the father in the film? A:"


def test_a_question_without_its_subject_is_a_case_of_its_own_kind(tmp_path):
    unnamed = {**ZSRE, "src": "Which university was it?"}
    (case,) = sources.load(str(written(tmp_path / "z.json", [unnamed]))).cases
    assert "{}" not in case.request.prompt
    assert case.request.cloze.left == "Q: Which university was it? A:"


def test_data_without_true_answers_says_so(tmp_path):
    selection = sources.load(str(written(tmp_path / "q.json", FORMS["qaedit"])))
    for case in selection.cases:
        assert not case.request.true_is_known
        assert case.not_applicable["overturn"] == "the data brings no true answer"
        assert {p.kind for p in probes(case, "generality")} == {UNCONDITIONED}
    assert selection.cases[0].request.target_new == "Ann Lee"  # without the star
    alone = sources.load(str(written(tmp_path / "q.json", [QAEDIT])))
    assert not alone.cases
    assert "no other record" in alone.exclusions[0].reason


def test_several_edits_in_one_record_are_counted_out(tmp_path):
    double = {**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"] * 2}
    selection = sources.load(str(written(tmp_path / "m.json", [MQUAKE, double])))
    assert len(selection.cases) == 1
    assert [e.reason for e in selection.exclusions] == ["the record edits several facts at once"]


def test_portability_has_its_conditions(tmp_path):
    _, (row, _), _ = forms.read(written(tmp_path / "r.json", FORMS["ripple"]))
    (question,) = row.portability
    assert question.kind == "Compositionality_I"
    assert question.answers == ("Zagreb", "City of Zagreb")
    assert [q.answer for q in question.conditions] == ["Zagreb"]
    _, (row, _), _ = forms.read(written(tmp_path / "m.json", FORMS["mquake"]))
    assert [q.cloze.left for q in row.portability[0].conditions] == ["The capital of Croatia is"]


# -- RippleEdits: what the statement says, and what its tests ask -------------------------------


def ripple(new: str, old: str = "", **edit: object) -> dict[str, Any]:
    """A record with an edit from one statement to another, and no tests."""
    original = {"original_fact": {"prompt": old}} if old else {}
    return {"example_type": "popular", "edit": {"prompt": new, **original, **edit}}


def ripple_with(**test: object) -> dict[str, Any]:
    record = ripple("The capital of Italy is Paris.", "The capital of Italy is Rome.")
    return {**record, "Compositionality_II": [test]}


def asks(prompt: str, *names: str) -> dict[str, Any]:
    value = [{"value": names[0], "aliases": list(names[1:])}] if names else []
    return {"prompt": prompt, "answers": value}


def elsewhere(prompt: str) -> dict[str, Any]:
    query = {**asks(prompt, "x"), "query_type": "regular", "subject_id": "Q1", "relation": "CHILD"}
    return {"Forgetfulness": [{"test_queries": [query], "test_condition": "OR"}]}


NAMES = [
    ("The name of the country of citizenship of {} is", "Leonardo DiCaprio", "R"),
    ("The name of the author of {} is", "Alice in Wonderland", "R"),
    ("The name of the author of {} is", "Of Mice and Men", "AUTHOR"),
    ("The name of the head of state of {} is", "the Republic of Ireland", "HEAD_OF_STATE"),
    ("The name of the capital city of {} is", "the Republic of Ireland", "CAPITAL"),
    ("The gender of {} is", "Anne of Kent", "SEX_OR_GENDER"),
    ("The mother tongue of {} is", "Anne of Kent", "NATIVE_LANGUAGE"),
    ("The names of the cast members of {} are", "Lord of Oz", "CAST_MEMBER"),
    ("The name of the country which {} is associated with is", "Isle of Man", "COUNTRY"),
    ("The name of the country which {} is the capital of is", "Isle of Man", "CAPITAL_OF"),
    ("The name of the league which {} plays in is", "Duke of York", "LEAGUE"),
    ("The number of children {} has is", "Duke of York", "NUMBER_OF_CHILDREN"),
    ("The name of the award {} won is", "Duke of York", "AWARD_RECEIVED"),
    ("The name of the currency in {} is", "Republic of Ireland", "CURRENCY"),
    ("{} follows", "The Lord of Oz", "FOLLOWS"),
]


@pytest.mark.parametrize(("new", "old"), [
    ("Syria", "Canada"), ("United Kingdom", "United States of America"), ("Bo Roy Jr.", "Bo Poe"),
    ("Syria", ""), ("film director", "film producer"),
])  # fmt: skip
@pytest.mark.parametrize(("prompt", "subject", "relation"), NAMES)
def test_a_statement_is_prompt_subject_and_answer(tmp_path, prompt, subject, relation, new, old):
    stem = prompt.format(subject)
    record = ripple(f"{stem} {new}.", f"{stem} {old}." if old else "", relation=relation)
    _, (row,), _ = forms.read(written(tmp_path / "r.json", [record]))
    assert (row.subject, row.prompt, row.target_new, row.target_true) == (
        subject, prompt, new, old,
    )  # fmt: skip


def test_other_questions_tell_where_the_subject_begins(tmp_path):
    statement = "The anthem of the Republic of Ireland is x."
    alone = ripple(statement, subject_id="Q1", relation="P85")
    told = {**alone, **elsewhere("The name of the child of the Republic of Ireland is")}
    path = written(tmp_path / "r.json", [alone, told])
    _, rows, _ = forms.read(path)
    assert [row.subject for row in rows] == ["Ireland", "the Republic of Ireland"]


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        ("The gender of Bo is male.", "The gender of Bo is male.", "the new target is the true"),
        ("The gender of Bo is .", "The gender of Bo is male.", "brings no new answer"),
        ("The gender of Bo is male.", "Bo is female.", "cannot be told apart"),
        ("Yes.", "", "cannot be told apart"),
        ("The Roy is tall.", "The Roy is short.", "which of its words are the subject"),
    ],
)
def test_a_statement_that_cannot_be_taken_apart_is_counted(tmp_path, new, old, reason):
    selection = sources.load(str(written(tmp_path / "r.json", [ripple(new, old)])))
    assert not selection.cases
    assert [reason in e.reason for e in selection.exclusions] == [True]


@pytest.mark.parametrize(
    ("condition", "queries", "asked", "reasons"),
    [
        ("OR", [asks("A is", "x"), asks("B is", "y")], [], ["by any one of several"]),
        ("OR", [asks("A is", "x"), asks("A is", "y", "yy")], [("A is", ("x", "y", "yy"))], []),
        ("OR", [asks("A is", "x", "xx")], [("A is", ("x", "xx"))], []),
        ("AND", [asks("A is", "x"), asks("B is", "y")], [("A is", ("x",)), ("B is", ("y",))], []),
        ("AND", [asks("A is", "x"), asks("B is")], [("A is", ("x",))], ["no answer to the quest"]),
    ],
)
def test_a_test_of_several_questions(tmp_path, condition, queries, asked, reasons):
    record = ripple_with(test_queries=queries, test_condition=condition)
    path = written(tmp_path / "r.json", [record])
    _, (row,), _ = forms.read(path)
    assert [(q.cloze.left, q.answers) for q in row.portability] == asked
    left_out = sources.load(str(path)).exclusions
    assert len(left_out) == len(reasons)
    assert all(r in e.reason and e.probe for r, e in zip(reasons, left_out, strict=True))


def test_conditions_keep_their_aliases_or_their_question_is_not_asked(tmp_path):
    known, unknown = asks("C is", "z", "zz"), asks("D is")
    query = {"test_queries": [asks("A is", "x")], "test_condition": "OR"}
    path = written(tmp_path / "r.json", [ripple_with(**query, condition_queries=[known])])
    (case,) = sources.load(str(path)).cases
    (condition,) = probes(case, "portability", CONDITION)
    assert (condition.expected, condition.aliases) == ("z", ("zz",))
    path = written(tmp_path / "r.json", [ripple_with(**query, condition_queries=[known, unknown])])
    selection = sources.load(str(path))
    assert not probes(selection.cases[0], "portability")
    assert ["answer to a condition" in e.reason for e in selection.exclusions] == [True]


def test_what_a_test_does_not_say_is_refused_or_counted(tmp_path):
    odd = ripple_with(test_queries=[asks("A is", "x")], test_condition="XOR")
    with pytest.raises(ValueError, match=r"record 0: .*test_condition is 'XOR'; expected AND or"):
        sources.load(str(written(tmp_path / "r.json", [odd])))
    other = {**ripple_with(), "Preservation": [{"test_queries": [asks("A is", "x")]}]}
    (exclusion,) = sources.load(str(written(tmp_path / "r.json", [other]))).exclusions
    assert (exclusion.reason, exclusion.probe) == (UNKNOWN_GROUP, "portability/Preservation")


# -- MQuAKE: the hops around the edited one -------------------------------------------------------

HOPS = [
    {"question": "Who wrote It?", "cloze": "It was written by", "answer": "Ann Lee",
     "answer_alias": ["A. Lee"]},
    MQUAKE["new_single_hops"][0],
    {"question": "q", "cloze": "The capital of Croatia is", "answer": "Zagreb"},
]  # fmt: skip


@pytest.mark.parametrize("order", [(1, 2), (0, 1), (0, 1, 2), (1,), (2, 1)])
@pytest.mark.parametrize("by", ["cloze", "question"])
def test_every_hop_but_the_edited_one_is_a_condition(tmp_path, order, by):
    asked = MQUAKE["requested_rewrite"][0]["question"]
    edited = HOPS[1] if by == "cloze" else {"question": asked, "answer": "Croatia"}
    hops = [edited if i == 1 else HOPS[i] for i in order]
    path = written(tmp_path / "m.json", [{**MQUAKE, "new_single_hops": hops}])
    _, (row,), _ = forms.read(path)
    expected = [(HOPS[i]["cloze"], HOPS[i]["answer"]) for i in order if i != 1]
    for question in row.portability:
        assert [(c.cloze.left, c.answer) for c in question.conditions] == expected
        assert {c.aliases for c in question.conditions} <= {(), ("A. Lee",)}
        assert (0 in order) == any(c.aliases for c in question.conditions)


@pytest.mark.parametrize(
    ("hops", "reason"),
    [
        ([HOPS[0], HOPS[2]], "none of the hops is the edited fact"),
        ([HOPS[1], {**HOPS[2], "answer": ""}], "a hop of the record has no answer"),
    ],
)
def test_hops_that_cannot_be_told_apart_leave_the_record_out(tmp_path, hops, reason):
    path = written(tmp_path / "m.json", [{**MQUAKE, "new_single_hops": hops}])
    selection = sources.load(str(path))
    assert not selection.cases
    assert [e.reason for e in selection.exclusions] == [reason]


# -- the subject in its prompt ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "subject", "prompt", "spelled"),
    [
        ("Die größte Straße in Köln heißt", "Köln", "Die größte Straße in {} heißt", "Köln"),
        ("İstanbul'da bulunan İzmir'in başkenti", "İzmir", "İstanbul'da bulunan {}'in başkenti",
         "İzmir"),
        ("The ﬁrst of Paris is", "Paris", "The ﬁrst of {} is", "Paris"),
        ("The status of religion in the US is", "US", "The status of religion in the {} is", "US"),
        ("us and them in the US", "US", "us and them in the {}", "US"),
        ("The STATUS of the us is", "US", "The STATUS of the {} is", "us"),
        ("The capital of ITALY is", "Italy", "The capital of {} is", "ITALY"),
        ("In the set {Italy, France} the capital of Italy is", "Italy",
         "In the set {{}, France} the capital of Italy is", "Italy"),
        ("The {x} of Italy is", "Italy", "The {x} of {} is", "Italy"),
        ("Dishes known as 'tandoori' need a tandoor:", "tandoor",
         "Dishes known as 'tandoori' need a {}:", "tandoor"),
        ("Italys capital is", "Italy", "{}s capital is", "Italy"),
        ("ITALYS capital is", "Italy", "ITALYS capital is", "Italy"),
        ("法国的首都是", "法国", "{}的首都是", "法国"),
        ("東京都の知事は", "東京", "{}都の知事は", "東京"),
        ("เมืองหลวงของไทยคือ", "ไทย", "เมืองหลวงของ{}คือ", "ไทย"),
        ("프랑스의 수도는", "프랑스", "{}의 수도는", "프랑스"),
        ("दिल्ली और दिल में", "दिल", "दिल्ली और {} में", "दिल"),
        ("Its capital is", "Italy", "Its capital is", "Italy"),
        ("The capital of {} is", "Italy", "The capital of {} is", "Italy"),
    ],
)  # fmt: skip
def test_the_subject_is_marked_and_the_text_stays(tmp_path, text, subject, prompt, spelled):
    record = {**FLAT, "prompt": text, "subject": subject}
    (case,) = sources.load(str(written(tmp_path / "f.json", [record]))).cases
    assert (case.request.prompt, case.request.subject) == (prompt, spelled)
    if "{}" not in text:
        assert case.request.cloze.left == text


def test_a_gap_inside_a_published_prompt_is_refused(tmp_path):
    path = written(tmp_path / "f.json", [{**FLAT, "prompt": "[Y] is the capital of Italy"}])
    with pytest.raises(ValueError, match=r"record 0: .*expected the answer at its end"):
        sources.load(str(path))


# -- what form a file has, and what of it is asked -------------------------------------------------

SPARSE = {k: v for k, v in KNOWEDIT.items() if k not in ("portability", "locality")}


def in_file(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as JSON, JSON lines, CSV with lists as JSON, or Parquet, by the suffix."""
    if path.suffix == ".json":
        return written(path, records)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
        return path
    import pandas as pd

    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
        return path
    cells = [{k: v if isinstance(v, str | int) else json.dumps(v) for k, v in record.items()}
             for record in records]  # fmt: skip
    pd.DataFrame(cells).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("full", "lacking"),
    [
        (KNOWEDIT, ("portability", "locality")),
        (FLAT, ("rephrase_prompt",)),
        (FLAT, ("ground_truth",)),
        (WIKIBIGEDIT, ("loc", "loc_ans", "mhop", "mhop_ans")),
        (QAEDIT, ("rephrase",)),
        (ZSRE, ("loc", "loc_ans")),
    ],
)
def test_the_form_is_told_by_all_records(tmp_path, full, lacking, turned, suffix):
    sparse = {k: v.replace("Ann", "Bea").replace("Italy", "Spain") if isinstance(v, str) else v
              for k, v in full.items() if k not in lacking}  # fmt: skip
    records = [full, sparse] if turned else [sparse, full]
    form, rows, _ = forms.read(in_file(tmp_path / f"f{suffix}", records))
    alone, (row,), _ = forms.read(in_file(tmp_path / f"g{suffix}", [full]))
    assert form == alone
    got = rows[0 if turned else 1]
    assert (got.portability, got.neighbours, got.paraphrases, got.target_true) == (
        row.portability, row.neighbours, row.paraphrases, row.target_true,
    )  # fmt: skip


def test_a_column_that_is_empty_throughout_still_tells_the_form(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text(
        "prompt,subject,target_new,ground_truth,rephrase_prompt\n"
        "The capital of Italy is,Italy,Paris,Rome,\n"
    )
    assert forms.read(path)[0].title == "CounterFact in EasyEdit's flat form"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({**FACT, "rephrase_prompt": "Italy's capital is"}, "target_true"),
        ({**COUNTERFACT, "portability": {"New Question": "q"}}, "portability"),
        ({**FLAT, "neighbours": ["x"]}, "neighbours"),
        ({**QAEDIT, "mhop": "q?"}, "mhop"),
        ({**KNOWEDIT, "locality_prompt": "x"}, "locality_prompt"),
    ],
)
def test_questions_that_a_form_does_not_ask_are_refused(tmp_path, record, field):
    path = written(tmp_path / "f.json", [record])
    with pytest.raises(ValueError, match=rf"^f\.json, record 0: .*what the field '{field}' holds"):
        sources.load(str(path))
    for empty in (None, "", list[str](), dict[str, str]()):
        if field != "target_true":
            assert forms.read(written(path, [{**record, field: empty}]))[1]


ASKED = {"prompt": "The mayor is", "ground_truth": "Bo Roy"}


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("portability", {"One_hop": [ASKED, ASKED]}, UNKNOWN_GROUP),
        ("locality", {"Relation_Specifity": [ASKED, ASKED]}, UNKNOWN_GROUP),
        ("portability", {"Reasoning": [{**ASKED, "ground_truth": v} for v in (None, True)]},
         NO_ANSWER),
        ("locality", {"Forgetfulness": [{**ASKED, "ground_truth": v} for v in ([], [[""]])]},
         NO_ANSWER),
    ],
)  # fmt: skip
def test_questions_that_knowedit_cannot_ask_are_counted(tmp_path, name, part, reason):
    path = written(tmp_path / "k.json", [{**SPARSE, "locality": {}, name: part}])
    selection = sources.load(str(path))
    assert len(selection.cases) == 1
    (group,) = part
    assert [(e.reason, e.probe) for e in selection.exclusions] == [(reason, f"{name}/{group}")] * 2


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (FLAT, "locality_ground_truth"),
        (ZSRE, "loc_ans"),
        (WIKIBIGEDIT, "loc_ans"),
        (WIKIBIGEDIT, "mhop_ans"),
        (ANSWERED, "answer_2hop"),
        (WIKIBIO, "ground_truth"),
    ],
)
def test_a_question_without_its_answer_is_counted(tmp_path, record, field):
    other = json.loads(json.dumps(record).replace("Kent", "York").replace("Roy", "Day"))
    text = json.dumps([record, other]).replace(f'"{field}": ["', f'"{field}": null, "x": ["')
    text = text.replace(f'"{field}": "', f'"{field}": null, "x": "')
    (tmp_path / "f.json").write_text(text)
    _, rows, _ = forms.read(tmp_path / "f.json")
    assert [[left_out.reason for left_out in row.left_out] for row in rows] == [[NO_ANSWER]] * 2


# -- values that are no answers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "given"),
    [
        (FLAT, {"ground_truth": ["Rome", "Paris"]}),
        (FLAT, {"ground_truth": [["Rome", "City of Rome"], ["the paris"]]}),
        (FLAT, {"target_new": ["Milan", "Paris"], "ground_truth": ["Rome", "Paris"]}),
        (KNOWEDIT, {"ground_truth": ["Rome", "PARIS"]}),
        (ZSRE, {"answers": ["x", "University of Michigan"]}),
    ],
)
def test_a_new_target_among_the_true_answers_is_excluded(tmp_path, record, given):
    selection = sources.load(str(written(tmp_path / "f.json", [{**record, **given}])))
    assert not selection.cases
    assert "the new target is the true one" in selection.exclusions[0].reason


@pytest.mark.parametrize(
    ("asked", "given", "pairs", "unpaired"),
    [
        (["A is", "", "C is"], ["a", "b", "c"], [("A is", "a"), ("C is", "c")], 0),
        (["A is", None, "C is"], ["a", "b", "c"], [("A is", "a"), ("C is", "c")], 0),
        (["A is", "A is", " "], ["a", "b", "c"], [("A is", "a"), ("A is", "b")], 0),
        (["A is", "B is"], ["a", "b", "c"], [], 2),
        (["A is", "B is"], "a", [("A is", "a"), ("B is", "a")], 0),
        ("A is", ["a", "b"], [("A is", "a")], 0),
    ],
)
def test_neighbours_are_paired_with_their_answers_by_place(tmp_path, asked, given, pairs, unpaired):
    record = {**FLAT, "locality_prompt": asked, "locality_ground_truth": given}
    selection = sources.load(str(written(tmp_path / "f.json", [record])))
    neighbours = probes(selection.cases[0], "locality", "same_object")
    assert [(p.cloze.left, p.expected) for p in neighbours] == pairs
    assert [e.reason for e in selection.exclusions] == [UNPAIRED] * unpaired


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (FLAT, "rephrase_prompt"),
        (FLAT, "locality_prompt"),
        (KNOWEDIT, "rephrase_prompt"),
        (WIKIBIGEDIT, "rephrase"),
        (WIKIBIGEDIT, "personas"),
        (QAEDIT, "rephrase"),
        (HALLUEDITBENCH, "paraphrased_question"),
        (HALLUEDITBENCH, "locality_question"),
    ],
)
@pytest.mark.parametrize("value", [{"a": "Italy's capital is"}, 5, ["A is", {"b": 1}]])
def test_what_is_no_prompt_is_refused(tmp_path, record, field, value):
    path = written(tmp_path / "f.json", [{**record, field: value}])
    with pytest.raises(ValueError, match=f"{field} is .*; expected a text or a list of texts"):
        sources.load(str(path))


def test_the_second_name_of_a_rephrased_prompt_stands_for_the_first(tmp_path):
    record = {**KNOWEDIT, "rephrase_prompt": None, "rephrase": "Italy's capital is"}
    (case,) = sources.load(str(written(tmp_path / "f.json", [record]))).cases
    assert [p.cloze.left for p in probes(case, "generality")] == ["Italy's capital is"]


def test_zsre_with_groups_of_questions(tmp_path):
    asked = {"prompt": "The school's state is", "ground_truth": "Michigan"}
    groups = {"Reasoning": [asked, {"prompt": "It is in"}], "Other": [asked]}
    record = {**ZSRE, "portability": {**groups, "New Question": "Where?", "New Answer": "There"}}
    selection = sources.load(str(written(tmp_path / "f.json", [record])))
    assert [p.expected for p in probes(selection.cases[0], "portability")] == ["There", "Michigan"]
    assert Counter(e.reason for e in selection.exclusions) == {NO_ANSWER: 1, UNKNOWN_GROUP: 1}


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("locality_question", NO_ANSWER),
        ("yes_question", CHOICE),
        ("no_question", CHOICE),
        ("multiple_choice_with_letters", CHOICE),
    ],
)
def test_questions_that_hallueditbench_cannot_be_asked_are_counted(tmp_path, field, reason):
    assert not sources.load(str(written(tmp_path / "f.json", [ANSWERED]))).exclusions
    path = written(tmp_path / "f.json", [{**ANSWERED, field: "Is it?"}])
    selection = sources.load(str(path))
    assert [(e.reason, e.detail) for e in selection.exclusions] == [(reason, "Is it?")]


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_whole_number_is_the_same_answer_as_a_float(tmp_path, suffix):
    records = [{**FLAT, "case_id": number, "target_new": number + 1} for number in (1949.0, 1.5)]
    selection = sources.load(str(in_file(tmp_path / f"f{suffix}", records)))
    assert [(c.id.split("/")[-1], c.request.target_new) for c in selection.cases] == [
        ("1949", "1950"),
        ("1.5", "2.5"),
    ]


@pytest.mark.parametrize(
    ("given", "answers"),
    [
        (1949, ("1949",)),
        (1949.0, ("1949",)),
        (["Kent", "County of Kent"], ("Kent", "County of Kent")),
        ([["Kent", "Co. Kent"], [1949]], ("Kent", "Co. Kent", "1949")),
    ],
)
@pytest.mark.parametrize(
    ("record", "field"),
    [(FLAT, "target_new"), (KNOWEDIT, "target_new"), (WIKIBIO, "labels"), (ZSRE, "alt"),
     (WIKIBIGEDIT, "ans"), (QAEDIT, "target"), (HALLUEDITBENCH, "object")],
)  # fmt: skip
def test_a_new_answer_may_be_a_number_or_have_other_names(tmp_path, record, field, given, answers):
    path = written(tmp_path / "f.json", [record, {**record, field: given}])
    _, rows, _ = forms.read(path)
    assert (rows[1].target_new, *rows[1].aliases) == answers
    assert rows[0].aliases == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("record", "field"),
    [(FLAT, "target_new"), (FLAT, "ground_truth"), (FLAT, "locality_ground_truth"),
     (FLAT, "case_id"), (KNOWEDIT, "ground_truth"), (ZSRE, "answers"), (WIKIBIGEDIT, "mhop_ans"),
     (MQUAKE, "new_answer_alias")],
)  # fmt: skip
def test_no_number_is_no_answer(tmp_path, record, field, nested, value):
    odd = {**record, field: [value] if nested else value}
    path = written(tmp_path / "f.json", [record, odd])
    with pytest.raises(ValueError, match=r"^f\.json, record 1: .*"):
        sources.load(str(path))


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ('["Paris", "City of Paris"]', ("Paris", "City of Paris")),
        ('[["Paris", "City of Paris"]]', ("Paris", "City of Paris")),
        (' [ "Paris" ] ', ("Paris",)),
        ("Paris [city]", ("Paris [city]",)),
        ("[Paris]", ("[Paris]",)),
        ("['Paris', 'City of Paris']", None),
        ('["Paris", ]', None),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".parquet"])
def test_a_list_in_a_cell_is_read_or_refused(tmp_path, cell, answers, suffix):
    import pandas as pd

    path, table = tmp_path / f"f{suffix}", pd.DataFrame([{**FLAT, "target_new": cell}])
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    if answers is None:
        with pytest.raises(ValueError, match=r"(line 2|row 0): .*target_new is .*; expected JSON"):
            sources.load(str(path))
        return
    (case,) = sources.load(str(path)).cases
    assert (case.probes[0].expected, *case.probes[0].aliases) == answers


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        (COUNTERFACT, "paraphrase_prompts", ["{} spoke"]),
        (COUNTERFACT, "neighborhood_prompts", ["{} spoke"]),
        (FLAT, "rephrase_prompt", "{}'s capital is"),
        (FLAT, "locality_prompt", "The capital of {} is"),
        (ZSRE, "rephrase", "Where did {} go?"),
    ],
)
def test_a_place_for_the_subject_is_not_asked_as_braces(tmp_path, record, field, value):
    path = written(tmp_path / "f.json", [{**record, field: value}])
    with pytest.raises(ValueError, match=r"^f\.json, record 0: .*expected the subject in full"):
        sources.load(str(path))


# -- one's own facts ----------------------------------------------------------------------------


def csv_text(delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow([*FACT, "paraphrases"])
    writer.writerow([*FACT.values(), json.dumps(["Italy's capital is", "a, b; c"])])
    writer.writerow(["Spain", "The capital of {} is", "Madrid", "Rome", ""])
    return out.getvalue()


OWN = {
    "list.json": json.dumps([FACT, {**FACT, "subject": "Spain"}]).encode(),
    "lines.jsonl": (json.dumps(FACT) + "\n" + json.dumps({**FACT, "subject": "Spain"})).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + (json.dumps(FACT) + "\r\n" + json.dumps(
        {**FACT, "subject": "Spain"})).encode(),
    "utf16.jsonl": (json.dumps(FACT) + "\n" + json.dumps({**FACT, "subject": "Spain"})).encode(
        "utf-16"),
    "comma.csv": csv_text(",").encode(),
    "semicolon.csv": csv_text(";").encode("utf-8-sig"),
    "tab.tsv": csv_text("\t").encode(),
    "empty-line.csv": b"\n\r\n" + csv_text(",").encode(),
    "empty-row.csv": b";;;;\n" + csv_text(";").encode(),
    "empty-row.tsv": b"\t\t\t\t\n" + csv_text("\t").encode(),
    "declared.csv": b"sep=;\r\n" + csv_text(";").encode(),
    "declared-comma.csv": b"\xef\xbb\xbfsep=,\n" + csv_text(",").encode(),
    "declared-bar.csv": b"sep=|\n" + csv_text("|").encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_own_facts_in_any_form_on_disk(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(OWN[name])
    selection = sources.load(str(path))
    assert [c.request.subject for c in selection.cases] == ["Italy", "Spain"]
    assert not selection.exclusions
    if name.endswith("sv"):
        assert len(probes(selection.cases[0], "generality")) == 2


def test_a_cell_may_be_as_long_as_its_file(tmp_path):
    """Up to what a list of paraphrases may hold; the limit for others stays as it was."""
    limit = csv.field_size_limit()
    paraphrases = [f"In {'far ' * 10_000}{i} the capital of Italy is" for i in range(6)]
    text = csv_text(",").replace(json.dumps("a, b; c").replace('"', '""'), ", ".join(
        json.dumps(p).replace('"', '""') for p in paraphrases))  # fmt: skip
    assert len(text) > limit
    (tmp_path / "f.csv").write_text(text)
    case, _ = sources.load(str(tmp_path / "f.csv")).cases
    assert [p.cloze.left for p in probes(case, "generality")][1:] == paraphrases
    (tmp_path / "f.csv").write_text('a,b\n"x')
    with pytest.raises(ValueError, match="expected CSV"):
        read_records(tmp_path / "f.csv")
    assert csv.field_size_limit() == limit


def test_own_facts_in_parquet(tmp_path):
    import pandas as pd

    path = tmp_path / "facts.parquet"
    pd.DataFrame([{**FACT, "paraphrases": ["Italy's capital is"]}]).to_parquet(path)
    (case,) = sources.load(str(path)).cases
    assert len(probes(case, "generality")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "the field 'a': expected once, stands there twice"),
        (b"[1]", "expected one JSON object, such as {"),
        (b"", "expected records, it holds none"),
        (b"subject,prompt\nItaly,a,b\n", "expected 2 cells, not 3"),
        (b"subject,subject\nItaly,a\n", "column 'subject': expected once; rename one"),
        (b"\xff\xfe\x00", "expected UTF-16 text, not so at byte"),
        (b'{"subject": "\xff"}', "expected UTF-8 text, not so at byte 13; save it as UTF-8"),
        (json.dumps(FACT).encode("utf-16-le"), "expected UTF-8 text, it holds a zero byte, as UTF"),
        (json.dumps(FACT).encode("utf-16-be"), "without a byte order mark does; save it as UTF-8"),
        (json.dumps(FACT).encode("utf-32-le"), "expected UTF-8 text, it holds a zero byte"),
        (b"subject,prompt\n".decode().encode("utf-16-le"), "it holds a zero byte"),
        (gzip.compress(b"{}", mtime=0), "packed by gzip; unpack it"),
        (bz2.compress(b"{}"), "packed by bzip2; unpack it"),
        (lzma.compress(b"{}"), "packed by xz; unpack it"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, message):
    path = tmp_path / ("f.csv" if content.startswith((b"subject", b"s\0")) else "f.json")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_records(path)
    assert path.name in str(error.value)


@pytest.mark.parametrize("name", ["f.json", "f.jsonl", "f.txt"])
@pytest.mark.parametrize("indent", [0, 2])
@pytest.mark.parametrize(
    ("before", "value", "what", "first", "more"),
    [
        ("", FACT, "object", 1, 5),
        ("\n\n", FACT, "object", 3, 5),
        (json.dumps(FACT) + "\n", {**FACT, "subject": "Spain"}, "object", 2, 5),
        (json.dumps(FACT) + "\n", [FACT], "list", 2, 7),
    ],
)
def test_json_over_several_lines_is_told_where_it_ends(
    tmp_path, name, indent, before, value, what, first, more
):
    path = tmp_path / name
    path.write_text(before + json.dumps(value, indent=indent) + "\n" + json.dumps(FACT, indent=1))
    sentence = (
        f"f{path.suffix}, line {first}: expected one JSON object a line, this {what} goes on to "
        f"line {first + more}; write each object on a line of its own, or all of them as one list "
        "in a file named .json"
    )
    for read in (read_records, jsonl.load, forms.load):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence is compared
            read(path)
        assert str(error.value) == sentence


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_list_in_a_json_file_may_stand_on_several_lines(tmp_path, indent):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([FACT, {**FACT, "subject": "Spain"}], indent=indent))
    assert len(sources.load(str(path)).cases) == 2


@pytest.mark.parametrize("name", FORMS)
def test_a_folder_of_published_files_is_told_to_be_given_file_by_file(tmp_path, name):
    path = written(tmp_path / "data.json", FORMS[name])
    form, _, _ = forms.read(path)
    told = f"jsonl: data.json holds {form.title}; expected facts or minimal pairs of your own; "
    for spec in (str(tmp_path), f"jsonl={tmp_path}", f"jsonl={path}"):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence is compared
            sources.load(spec)
        assert str(error.value) == f"{told}write {form.source}={path} or {path} alone"


def test_a_folder_or_a_device_is_not_read():
    with pytest.raises(ValueError, match="expected a data file"):
        read_records(Path(os.devnull))


def test_half_a_character_is_left_out_with_its_reason(tmp_path):
    half = json.dumps([{**FACT, "subject": "It\ud800aly", "prompt": "{} is"}, FACT])
    path = tmp_path / "f.json"
    path.write_text(half)
    selection = sources.load(str(path))
    assert [c.request.subject for c in selection.cases] == ["Italy"]
    assert [e.reason for e in selection.exclusions] == [HALF_A_CHARACTER]


# -- copies, conflicts, targets that say the same -------------------------------------------------


def test_a_fact_listed_twice_is_kept_once(tmp_path):
    selection = sources.load(str(written(tmp_path / "f.json", [FACT, FACT, FACT])))
    assert len(selection.cases) == 1
    assert Counter(e.reason for e in selection.exclusions) == {REPEATED: 2}


@pytest.mark.parametrize(
    ("record", "more", "criterion"),
    [
        (COUNTERFACT, {"paraphrase_prompts": ["Ann Lee, a speaker of"]}, "generality"),
        (COUNTERFACT, {"neighborhood_prompts": ["Di Orr speaks"]}, "locality"),
        (ZSRE, {"loc": "who played the son"}, "locality"),
        (MQUAKE, {"questions": ["In which city does her country end?"]}, "portability"),
        (KNOWEDIT, {"portability": {"Reasoning": [{"prompt": "It is in", "ground_truth": "X"}]}},
         "portability"),
        (FACT, {"paraphrases": ["{} is ruled from"]}, "generality"),
        (FACT, {"synonyms": ["{}'s seat is"]}, "synonym"),
        (FACT, {"inverse": {"prompt": "{} is the capital of", "displaced": "Malta"}}, "symmetry"),
    ],
)  # fmt: skip
def test_a_fact_listed_again_adds_its_other_questions(tmp_path, record, more, criterion):
    copy = {**record, **more, **({"case_id": 99} if "case_id" in record else {})}
    (once,) = sources.load(str(written(tmp_path / "f.json", [record]))).cases
    (alone,) = sources.load(str(written(tmp_path / "f.json", [copy]))).cases
    for third, repeated in (([], 0), ([copy], 1)):
        selection = sources.load(str(written(tmp_path / "f.json", [record, copy, *third])))
        (case,) = selection.cases
        assert case.id == once.id
        reasons = Counter({JOINED: 1}) + Counter({REPEATED: repeated})
        assert Counter(e.reason for e in selection.exclusions) == reasons
        asked, first, second = (
            [
                (p.cloze, p.expected)
                for p in probes(c, criterion)
                if p.task == "fact" and p.kind != CONDITION
            ]
            for c in (case, once, alone)
        )
        assert set(second) - set(first)
        assert set(asked) == {*first, *second}
        assert len(asked) == len(set(asked))


def test_a_second_inverse_question_of_a_fact_is_counted(tmp_path):
    inverse = {"prompt": "{} is the capital of", "displaced": "Malta"}
    other = {**inverse, "prompt": "{} is the seat of"}
    records = [{**FACT, "inverse": one} for one in (inverse, other)]
    selection = sources.load(str(written(tmp_path / "f.json", records)))
    assert Counter(e.reason for e in selection.exclusions) == {JOINED: 1, OTHER_INVERSE: 1}


PAIR = {"good": "He sold this cup.", "bad": "He sold this cups.", "agreeing": "this"}


@pytest.mark.parametrize(
    ("copy", "repeats"),
    [
        ({**PAIR}, 1),
        ({**PAIR, "id": "b"}, 1),
        ({**PAIR, "agreeing": "He"}, 0),
        ({**PAIR, "scoring": "sentence"}, 0),
        ({**PAIR, "paradigm": "other"}, 0),
    ],
)
def test_a_minimal_pair_listed_again_is_counted_out(tmp_path, copy, repeats):
    selection = sources.load(str(written(tmp_path / "f.json", [PAIR, copy])))
    assert len(selection.cases) == 2 - repeats
    reasons = [e.reason for e in selection.exclusions]
    assert reasons == [REPEATED_PAIR] * repeats


def test_two_new_targets_for_one_fact_are_two_cases(tmp_path):
    path = written(tmp_path / "f.json", [FACT, {**FACT, "target_new": "Milan"}])
    selection = sources.load(str(path))
    assert [c.id for c in selection.cases] == ["f/f/Italy.Paris", "f/f/Italy.Milan"]
    assert not selection.exclusions


def test_records_that_share_an_id_and_both_targets_are_two_cases(tmp_path):
    other = json.loads(json.dumps(MQUAKE))
    other["requested_rewrite"][0]["subject"] = "Ed Poe"
    selection = sources.load(str(written(tmp_path / "m.json", [MQUAKE, other])))
    assert len({case.id for case in selection.cases}) == len(selection.cases) == 2
    turned = sources.load(str(written(tmp_path / "m.json", [other, MQUAKE])))
    assert {c.id: c.request.subject for c in turned.cases} == {
        c.id: c.request.subject for c in selection.cases
    }


@pytest.mark.parametrize("new", ["rome", "Rome.", "the Rome", " ROME "])
def test_a_new_target_that_says_the_same_is_excluded(tmp_path, new):
    selection = sources.load(str(written(tmp_path / "f.json", [{**FACT, "target_new": new}])))
    assert not selection.cases
    assert "the new target is the true one" in selection.exclusions[0].reason
    flat = {**FLAT, "target_new": ["Paris", "Rome"]}
    selection = sources.load(str(written(tmp_path / "f.json", [flat])))
    assert not selection.cases  # an alias of the new target is the true one


# -- the real files -----------------------------------------------------------------------------

REAL = {
    "counterfact_3k.json": ("counterfact", 3000),
    "zsre_3k.json": ("zsre", 2882),
    "wikibigedit_3k.json": ("wikibigedit", 3000),
    "qaedit_1k.json": ("qaedit", 1000),
    "hallueditbench_places_country.csv": ("hallueditbench", 100),
}


@pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder with the real files")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_counted_whole(name):
    source, cases = REAL[name]
    path = Path(SHARED or ".") / "data" / "editing" / name
    selection = sources.load(str(path))
    assert {c.source for c in selection.cases} == {source}
    assert len(selection.cases) == cases
    whole = [e for e in selection.exclusions if e.probe is None]
    assert len(selection.cases) + len(whole) == len(read_records(path))


@pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder with the real files")
@pytest.mark.parametrize("name", REAL)
def test_the_edited_prompts_of_real_files_are_asked_as_they_stand(name):
    path = Path(SHARED or ".") / "data" / "editing" / name
    stand = {
        record.fields[field].strip().removesuffix("?").strip()
        for record in read_records(path)
        for field in ("prompt", "src", "question")
        if field in record.fields
    }
    for case in sources.load(str(path)).cases:
        left = case.request.cloze.left.removeprefix("Q: ").removesuffix(" A:")
        assert left.removesuffix("?").strip() in stand, case.id


@pytest.mark.skipif(not SHARED, reason="KN_BENCH_SHARED names no folder with the real files")
def test_relatives_of_blimp_are_minimal_pairs():
    for path in sorted((Path(SHARED or ".") / "data" / "minimal_pairs").iterdir()):
        selection = sources.load(str(path))
        assert len(selection.cases) + len(selection.exclusions) == 200, path.name
        assert len(selection.cases) > 190, path.name
        for case in selection.cases:
            assert case.task == "pair"
            good = case.request.cloze.fill(case.request.target_true)
            assert good.replace(" ", "") in path.read_text(encoding="utf-8").replace(" ", "")


ASIDE = [["Eternal City", "Urbs"]]
SEVERAL = [
    ("knowedit", KNOWEDIT | {"ground_truth": ["Rome", ASIDE]}),
    ("counterfact", FLAT | {"ground_truth": ["Rome", ASIDE]}),
    ("zsre", ZSRE | {"answers": ["Rome", "Eternal City", "Urbs"]}),
]


@pytest.mark.parametrize(("source", "record"), SEVERAL)
def test_every_true_answer_of_the_data_counts(tmp_path, source, record):
    (case, *_) = sources.load(f"{source}={written(tmp_path / 'd.json', [record])}").cases
    asked = [p for name in ("reliability", "generality") for p in probes(case, name)]
    assert len(asked) == 2
    assert {(p.rejected, p.rejected_aliases) for p in asked} == {("Rome", ("Eternal City", "Urbs"))}


@pytest.mark.parametrize(
    ("source", "record"),
    [
        ("knowedit", KNOWEDIT | {"locality": {"Forgetfulness": [
            {"prompt": "Italy has a city called", "ground_truth": [["Milan", "Milano"]]}]}}),
        ("counterfact", FLAT | {"locality_ground_truth": [["Milan", "Milano"]]}),
        ("zsre", ZSRE | {"loc_ans": ["Milan", "Milano"]}),
        ("wikibigedit", WIKIBIGEDIT | {"loc_ans": ["Milan", "Milano"]}),
        ("qaedit", QAEDIT | {"locality": [{"loc": "who", "loc_ans": ["Milan", "Milano"]}]}),
    ],
)  # fmt: skip
def test_every_answer_of_a_neighbour_counts(tmp_path, source, record):
    text = json.dumps(record).replace("Ann Lee", "Cy Fox")
    other = json.loads(text.replace("Paris", "Oslo").replace("Kent", "Surrey"))
    cases = sources.load(f"{source}={written(tmp_path / 'd.json', [record, other])}").cases
    asked = [p for p in probes(cases[0], "locality") if p.expected == "Milan"]
    assert [p.aliases for p in asked] == [("Milano",)]


def test_a_neighbour_drawn_from_another_record_has_all_of_its_answers(tmp_path):
    bare = {k: v for k, v in KNOWEDIT.items() if k not in ("locality", "portability")}
    bare |= {"cond": ""}
    other = bare | {"subject": "Peru", "prompt": "The capital of Peru is", "target_new": "Oslo",
                    "ground_truth": [["Lima", "Ciudad"]]}  # fmt: skip
    case, _ = sources.load(f"knowedit={written(tmp_path / 'd.json', [bare, other])}").cases
    (drawn,) = probes(case, "locality", "same_relation")
    assert (drawn.expected, drawn.aliases) == ("Lima", ("Ciudad",))


def test_data_without_further_true_answers_hashes_as_before():
    """Fields in the order and form in which a named tuple shows them, without the last."""
    probe = Probe("generality/0", "generality", Cloze("a"), "b", "c", aliases=("d",))
    assert repr(probe) == (
        "Probe(id='generality/0', criterion='generality', cloze=Cloze(left='a', right=''), "
        "expected='b', rejected='c', kind='', task='fact', aliases=('d',), scoring='gap')"
    )
    more = probe._replace(rejected_aliases=("e",))
    assert repr(more) == f"{repr(probe)[:-1]}, rejected_aliases=('e',))"


@pytest.mark.parametrize(("true", "new"), [("+", "-"), ("!", "?"), ("🇫🇷", "🇮🇹")])
def test_answers_without_words_are_told_apart_as_verdicts_do(true, new, tmp_path):
    row = {"subject": "Italy", "prompt": "The sign of {} is", "target_true": true}
    path = tmp_path / "signs.jsonl"
    path.write_text(json.dumps(row | {"target_new": new}))
    selection = sources.load(str(path))
    assert [case.request.target_new for case in selection.cases] == [new]
    assert not selection.exclusions
