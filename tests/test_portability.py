"""Portability: which questions count, and that only data with such questions has tests of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import kn_bench as kn
from kn_bench.cases.building.fact_row import Condition, FactRow, Portability
from kn_bench.cases.building.rows import CONDITION, row_cases
from kn_bench.cases.case import Cloze, Exclusion
from kn_bench.measure.criteria import Evidence, judge_evidence
from kn_bench.measure.measurement import Answer, Measurement
from tests.conftest import PLUGINS

QUESTION = "portability/Reasoning/0"


def answer(given):
    return Answer(
        log_prob_expected=-1.0, log_prob_rejected=-2.0, prob=given, tf_token=float(given),
        tf_all=given, rank=0, argmax="x", generated="x", gives_expected=given,
        gives_rejected=False,
    )  # fmt: skip


def measured(probe, *, before=False, after=False):
    return Measurement(
        model="m", method="m", case="a/b", criterion="portability", probe=probe,
        kind=CONDITION if CONDITION in probe else "Reasoning", task="fact", relation="P36",
        source="s", cluster="c", expected="x", rejected="y", n_expected=1, n_rejected=1,
        before=answer(before), after=answer(after), kl=0.0,
    )  # fmt: skip


def judged(*measurements, exclusions=()):
    return judge_evidence("portability", Evidence("fact", measurements, exclusions))


def test_a_question_counts_where_all_of_its_conditions_are_met():
    met = measured(f"{QUESTION}/condition/0", before=True)
    unmet = measured(f"{QUESTION}/condition/1", before=False, after=True)
    question = measured(QUESTION, after=True)
    assert judged(question, met).score == 1.0
    verdict = judged(question, met, unmet)
    assert verdict.status == "excluded"
    assert verdict.reason == "the unedited model does not know what the questions build on"
    other = measured("portability/Reasoning/1", after=False)
    verdict = judged(question, met, unmet, other)
    assert (verdict.score, verdict.counted, verdict.left_out) == (0.0, 1, 1)


def test_a_condition_that_cannot_be_put_is_not_met():
    exclusion = Exclusion("a/b", "too long", f"{QUESTION}/condition/0")
    assert judged(measured(QUESTION, after=True), exclusions=(exclusion,)).status == "excluded"


def test_a_question_that_cannot_be_put_is_excluded_with_its_reason():
    exclusion = Exclusion("a/b", "too long", QUESTION)
    verdict = judged(measured(f"{QUESTION}/condition/0", before=True), exclusions=(exclusion,))
    assert (verdict.status, verdict.reason) == ("excluded", "too long")


@pytest.fixture
def cases():
    """One fact with a question and its condition, and one without."""
    base = kn.load_cases("embedded", relation="P36", limit=2)
    rows: list[FactRow] = []
    for case in base:
        request = case.request
        question = Portability(
            "Reasoning",
            request.cloze,
            (request.target_new, "elsewhere"),
            (Condition(Cloze(f"{request.subject} is"), request.target_true, ("there",)),),
        )
        rows.append(
            FactRow("P36", request.subject, request.prompt, request.target_true,
                    request.target_new, portability=() if rows else (question,))
        )  # fmt: skip
    return row_cases(rows, source="toy").cases


def test_a_row_becomes_probes(cases):
    asked = [p for p in cases[0].probes if p.criterion == "portability"]
    assert [p.id for p in asked] == [QUESTION, f"{QUESTION}/condition/0"]
    assert [p.kind for p in asked] == ["Reasoning", CONDITION]
    assert asked[0].aliases == ("elsewhere",)
    assert asked[0].expected != asked[0].rejected
    assert not [p for p in cases[1].probes if p.criterion == "portability"]


def scores(board):
    """The table of facts."""
    return board.split("## Facts")[1].split("## ")[0].strip().splitlines()[:6]


def test_it_has_a_table_of_its_own_and_is_in_no_score(cases):
    model = kn.load_model("tiny-gpt2")
    bare = tuple(
        replace(case, probes=tuple(p for p in case.probes if p.kind != CONDITION)) for case in cases
    )
    evaluation = kn.evaluate(model, "oracle", bare)
    assert evaluation.score("portability") == 1.0
    without = kn.evaluate(model, "oracle", [
        replace(case, probes=tuple(p for p in case.probes if p.criterion != "portability"))
        for case in cases
    ])  # fmt: skip
    board = evaluation.board(markdown=True)
    assert "## Portability" in board
    section = board.split("## Portability")[1].split("## ")[0]
    assert "Reasoning" in section
    assert "1.00" in section
    plain = without.board(markdown=True)
    assert "## Portability" not in plain
    assert scores(board) == scores(plain)


def test_there_are_tests_only_of_cases_that_have_such_questions(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    common = (*PLUGINS, "--pyargs", "kn_bench.suites", "--model", "tiny-gpt2", "--method", "none")
    record = {
        "subject": "Canada", "prompt": "The capital of Canada is", "target_new": "Rome",
        "ground_truth": "Ottawa", "rephrase_prompt": "Canada's capital is",
        "locality": {}, "portability": {"Reasoning": [
            {"prompt": "The seat of Canada's government is", "ground_truth": [["Rome"]]}]},
    }  # fmt: skip
    path = pytester.path / "k.json"
    path.write_text(json.dumps([record, {**record, "subject": "France", "portability": {},
                                         "prompt": "The capital of France is",
                                         "ground_truth": "Paris"}]))  # fmt: skip
    result = pytester.runpytest_subprocess(*common, "--cases", str(path), "--collect-only", "-q")
    tests = [line for line in result.outlines if "::" in line]
    (asked,) = (line for line in tests if "test_portability" in line)
    assert asked.endswith("[none-tiny_gpt2-knowedit/knowedit/0]")
    result = pytester.runpytest_subprocess(
        *common, "--relation", "P36", "--limit", "1", "--collect-only", "-q"
    )
    tests = [line for line in result.outlines if "::" in line]
    assert tests
    assert not [line for line in tests if "test_portability" in line]
