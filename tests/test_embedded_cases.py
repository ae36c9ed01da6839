"""The embedded cases: taken from the models' own tables and grammar, the same everywhere."""

import os
import subprocess
import sys

import pytest

from kn_bench.cases.case import CRITERIA
from kn_bench.cases.sources import embedded
from kn_bench.model.embedded import facts as taught
from kn_bench.model.embedded import lexicon
from kn_bench.model.embedded.grammar import PARADIGMS
from training.templates import templates


@pytest.fixture(scope="module")
def selection():
    return embedded.load()


def test_every_fact_is_a_case_or_excluded(selection):
    ids = [case.id for case in selection.cases]
    assert len(ids) == len(set(ids))
    of_facts = [case for case in selection.cases if case.task == "fact"]
    assert len(of_facts) + len(selection.exclusions) >= len(taught.facts())
    assert len({case.relation for case in of_facts}) >= 10


def test_every_paradigm_has_its_pairs(selection):
    for paradigm in PARADIGMS:
        cases = [case for case in selection.cases if case.relation == paradigm]
        assert len(cases) >= 0.9 * embedded.PAIRS, paradigm


def test_every_criterion_is_asked_of_both_tasks(selection):
    for task in ("fact", "pair"):
        asked = {p.criterion for case in selection.cases if case.task == task for p in case.probes}
        assert asked == set(CRITERIA) - {"overturn"}


def test_prompts_are_templates_of_the_models():
    for relation, texts in taught.prompts().items():
        known = templates()[relation]
        assert not [text for text in texts if text not in known.trained + known.held_out]


def test_capitals_are_asked_in_both_directions(selection):
    case = next(case for case in selection.cases if case.id == "embedded/P36/Canada")
    kinds = {probe.kind: probe for probe in case.probes if probe.criterion == "symmetry"}
    assert kinds["new_inverse"].expected == "Canada"
    assert "Ottawa" in kinds["old_inverse"].cloze.left


def test_a_field_has_a_synonym_in_its_profession(selection):
    case = next(case for case in selection.cases if case.id == "embedded/P101/Noam_Chomsky")
    reworded = [p for p in case.probes if p.criterion == "synonym" and p.rejected == "linguist"]
    assert reworded
    assert reworded[0].cloze.left == "Noam Chomsky became a"


def test_pairs_turn_on_combinations_never_trained_on():
    for pair in embedded.pairs():
        if pair.paradigm == "determiner_noun_agreement_1":
            good, bad = pair.good.rstrip(".").split(), pair.bad.rstrip(".").split()
            varying = next(a for a, b in zip(good, bad, strict=True) if a != b)
            assert lexicon.held_out("determiner", pair.agreeing.lower(), varying), pair.good


def test_limit_and_selection_do_not_change_a_case(selection):
    some = embedded.load(only=["P36", "distractor_agreement_relative_clause"], limit=3)
    assert len(some.cases) == 6
    whole = {case.id: case for case in selection.cases}
    assert all(repr(case) == repr(whole[case.id]) for case in some.cases)


def test_an_unknown_relation_is_named():
    with pytest.raises(
        ValueError, match="relation or paradigm 'P9999': expected one of the embedded cases': P36, "
    ):
        embedded.load(only=["P9999"])


def test_cases_do_not_depend_on_the_hash_seed():
    code = (
        "from kn_bench.cases.sources import embedded; import hashlib;"
        "print(hashlib.sha256(repr(embedded.load(limit=4).cases).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("relation", "further"),
    [
        (
            "P36",
            [
                "The seat of government of {} is the city of",
                "The parliament of {} meets in the city of",
            ],
        ),
        (
            "P1376",
            [
                "The country that has its seat of government in {} is",
                "{} is the seat of government of the country of",
            ],
        ),
    ],
)
def test_real_models_get_synonyms_that_name_the_kind_of_answer(relation, further):
    """SmolLM2 goes on after "The seat of government of Canada is" with a building."""
    own, real = (embedded.load(only=[relation], limit=5, real=real).cases for real in (False, True))
    assert len(real) == 5
    for case in real:
        probes = [probe for probe in case.probes if probe.criterion == "synonym"][-len(further) :]
        assert [p.cloze.left for p in probes] == [t.format(case.request.subject) for t in further]
        assert {p.expected for p in probes} == {case.request.target_new}
        assert {p.rejected for p in probes} == {case.request.target_true}
    asked = {p.cloze.left for case in own for p in case.probes}
    assert not asked & {text.format(case.request.subject) for case in own for text in further}
