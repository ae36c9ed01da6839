"""Facts become cases as the six criteria define them."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.cases.building.facts import fact_cases
from kn_bench.cases.building.relations import (
    Pattern,
    Relation,
    Rewording,
    indefinite_article,
    relation,
    same_wording,
)
from kn_bench.cases.building.tables import RelationTable, Triple, one_to_one
from kn_bench.cases.case import ID_ALPHABET, Cloze, Probe
from kn_bench.cases.sampling import draw, limited, shuffled, slug, stable_hash, unique_slugs

CAPITALS = {
    "Canada": "Ottawa", "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima",
}  # fmt: skip
SHARED = {"Cook County": "Chicago", "Illinois": "Chicago"}
CONTINENTS = {"Canada": "America", "France": "Europe", "Japan": "Asia", "Peru": "America"}
JOBS = {"Ann Lee": "actor", "Bo Roy": "poet", "Cy Fox": "architect", "Di Orr": "novelist"}
FIELDS = {"Ann Lee": "physics", "Bo Roy": "chemistry", "Cy Fox": "physics", "Di Orr": "logic"}
P36 = relation(
    "P36",
    """The capital of [X] is [Y].
    [X]'s capital city is [Y].
    [Y] is the capital of [X].
    [X] is ruled from [Y].""",
    rewordings=(Rewording(Pattern("The seat of government of [X] is [Y].")),),
    synonyms={"Rome": "the Eternal City"},
    inverse="P1376",
    partners="P30 P106",
)
P1376 = relation("P1376", "[X] is the capital of [Y].", inverse="P36", partners="P30 P106")
P30 = relation("P30", "[X] is located in [Y].", partners="P106 P36")
P106 = relation(
    "P106",
    "[X] is a [Y] by trade.\n[X] is an [Y] by trade.\n[X] works as [Y].",
    partners="P30 P101",
)
P101 = relation(
    "P101",
    "[X] works in the field of [Y].",
    rewordings=(
        Rewording(
            Pattern("[X] is a famous [Y]."), {"physics": "physicist", "chemistry": "chemist"}
        ),
    ),
    partners="P30 P36",
)
RELATIONS = (P36, P1376, P30, P106, P101)
FACTS = [
    *(Triple("P36", s, o) for s, o in {**CAPITALS, **SHARED}.items()),
    *(Triple("P1376", o, s) for s, o in CAPITALS.items() if s != "Peru"),
    Triple("P1376", "Lima", "the Andes"),
    *(Triple("P30", s, o) for s, o in CONTINENTS.items()),
    *(Triple("P106", s, o) for s, o in JOBS.items()),
    *(Triple("P101", s, o) for s, o in FIELDS.items()),
]
OTHER_TASK = tuple(
    Probe(f"pair/{i}", "locality", Cloze(f"She sold these {i}", "."), "cups", "cup", task="pair")
    for i in range(5)
)


def selection(facts=FACTS, relations=RELATIONS, **more):
    return fact_cases(relations, facts, source="test", neighbours=OTHER_TASK, **more)


@pytest.fixture(scope="module")
def cases():
    return {case.id: case for case in selection().cases}


def of(case, criterion, kind=None):
    return [p for p in case.probes if p.criterion == criterion and kind in (None, p.kind)]


def test_every_fact_is_a_case_with_an_id_from_the_alphabet(cases):
    assert len(cases) == len(FACTS)
    assert all(ID_ALPHABET.fullmatch(id) for id in cases)
    assert "P36/Canada" in cases
    assert "P106/Ann_Lee" in cases


def test_the_request_is_edited_at_a_prompt_that_ends_in_its_answer(cases):
    request = cases["P36/Canada"].request
    assert (request.prompt, request.suffix) == ("The capital of {} is", ".")
    assert (request.subject, request.target_true) == ("Canada", "Ottawa")
    assert cases["P36/Canada"].cluster == "Canada"
    for case in cases.values():
        assert case.request.cloze.answer_is_last
        assert case.probes[0].id == "reliability/0"
        assert case.probes[0].cloze == case.request.cloze
        assert len({p.id for p in case.probes}) == len(case.probes)


def test_the_prompt_has_no_article_where_it_can_be_helped(cases):
    assert cases["P106/Ann_Lee"].request.prompt == "{} works as"


def test_the_new_target_is_another_object_never_a_true_one(cases):
    true: dict[tuple[str, str], set[str]] = {}
    for fact in FACTS:
        true.setdefault((fact.relation, fact.subject), set()).add(fact.object)
    for case in cases.values():
        objects = {f.object for f in FACTS if f.relation == case.relation}
        assert case.request.target_new in objects - true[case.relation, case.request.subject]


HASHES = """
import sys
sys.path.insert(0, {root!r})
from tests.test_cases_facts import selection
for case in selection().cases:
    print(case.id, case.request.target_new, [p.cloze for p in case.probes])
"""


def test_the_hash_seed_of_the_process_is_of_no_consequence():
    code = HASHES.format(root=str(Path(__file__).parents[1]))
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_the_order_of_the_facts_is_of_no_consequence(cases):
    backwards = selection(facts=FACTS[::-1])
    assert {c.id: c for c in backwards.cases} == cases


def test_a_case_does_not_depend_on_which_others_are_selected(cases):
    alone = selection(only=["P36"], limit=3).cases
    assert len(alone) == 3
    assert all(cases[case.id] == case for case in alone)


def test_a_larger_limit_contains_the_smaller(cases):
    ids = [{c.id for c in selection(limit=n).cases} for n in (1, 2, 4)]
    assert ids[0] < ids[1] < ids[2]
    assert all(count == 1 for count in Counter(id.split("/")[0] for id in ids[0]).values())


def test_another_seed_draws_other_targets(cases):
    other = {case.id: case.request.target_new for case in selection(seed=1).cases}
    assert other != {id: case.request.target_new for id, case in cases.items()}


def test_generality_asks_the_relations_other_wordings_of_the_same_words(cases):
    probes = of(cases["P36/Canada"], "generality")
    assert [p.cloze for p in probes] == [
        Cloze("Canada's capital city is", "."),
        Cloze("", "is the capital of Canada."),
    ]
    new = cases["P36/Canada"].request.target_new
    assert {(p.expected, p.rejected) for p in probes} == {(new, "Ottawa")}


def test_synonyms_say_it_in_other_words(cases):
    probes = of(cases["P36/Canada"], "synonym", "prompt")
    assert [p.cloze.left for p in probes] == [
        "Canada is ruled from",
        "The seat of government of Canada is",
    ]


def test_a_reworded_prompt_has_its_own_names_for_the_answers():
    for seed in range(20):
        case = next(c for c in selection(seed=seed).cases if c.id == "P101/Ann_Lee")
        (probe,) = of(case, "synonym", "prompt")
        assert (probe.cloze.left, probe.rejected) == ("Ann Lee is a famous", "physicist")
        # a target that has no name there is passed over while there are others
        assert (case.request.target_new, probe.expected) == ("chemistry", "chemist")


def test_a_synonym_of_the_new_target_is_asked_for_at_the_edited_prompt():
    of_rome = [
        c for s in range(20) for c in selection(seed=s).cases if c.request.target_new == "Rome"
    ]
    assert of_rome
    for case in of_rome:
        (probe,) = of(case, "synonym", "answer")
        assert (probe.expected, probe.cloze) == ("the Eternal City", case.request.cloze)


def test_locality_keeps_the_four_kinds_of_neighbours_true(cases):
    true = {(f.relation, f.subject, f.object) for f in FACTS}
    case = cases["P30/Canada"]
    kinds = {kind: of(case, "locality", kind) for kind in
             ("same_relation", "same_object", "other_relation", "other_task")}  # fmt: skip
    (same_object,) = kinds["same_object"]
    assert same_object.cloze.left == "Peru is located in"
    assert same_object.expected == "America"
    for probe in kinds["same_relation"]:
        subject = probe.cloze.left.removesuffix(" is located in")
        assert subject not in ("Canada", "Peru")
        assert ("P30", subject, probe.expected) in true
        assert probe.expected not in ("America", case.request.target_new)
    assert {p.rejected for kind in kinds for p in kinds[kind] if kind != "other_task"} == {
        case.request.target_new
    }
    assert len(kinds["other_relation"]) == 2
    # a partner that knows the subject is asked about it
    assert kinds["other_relation"][1].cloze.left == "The capital of Canada is"
    assert [p.task for p in kinds["other_task"]] == ["pair", "pair"]


def test_no_neighbour_has_the_new_target_for_its_answer(cases):
    for case in cases.values():
        for probe in of(case, "locality"):
            assert probe.task == "pair" or probe.expected != case.request.target_new


def test_symmetry_is_asked_of_one_to_one_pairs_alone(cases):
    for shared in ("Cook_County", "Illinois"):
        case = cases[f"P36/{shared}"]
        assert not of(case, "symmetry")
        reason = "the fact is not one-to-one in both directions"
        assert case.not_applicable["symmetry"] == reason
    # Lima is the capital of Peru by one table and of the Andes by the other
    assert cases["P36/Peru"].not_applicable["symmetry"]
    assert cases["P30/Canada"].not_applicable["symmetry"] == "the relation has no inverse"


def test_the_new_target_of_a_one_to_one_fact_is_one_to_one(cases):
    asked = [case for case in cases.values() if case.relation == "P36" and of(case, "symmetry")]
    assert len(asked) == 7
    for case in asked:
        new, old = of(case, "symmetry")
        displaced = next(s for s, o in CAPITALS.items() if o == case.request.target_new)
        assert (new.kind, new.cloze.left) == (
            "new_inverse",
            f"{case.request.target_new} is the capital of",
        )
        assert (old.kind, old.cloze.left) == (
            "old_inverse",
            f"{case.request.target_true} is the capital of",
        )
        for probe in (new, old):
            assert (probe.expected, probe.rejected) == (case.request.subject, displaced)


def test_a_symmetric_relation_is_its_own_inverse():
    borders = relation("P47", "[X] borders [Y].", inverse="P47")
    assert borders.symmetric
    facts = [Triple("P47", a, b) for a, b in (("A", "B"), ("C", "D"), ("E", "F"), ("F", "G"))]
    by_subject = {c.request.subject: c for c in fact_cases([borders], facts, source="t").cases}
    new, old = of(by_subject["A"], "symmetry")
    assert (new.expected, old.cloze.left) == ("A", "B borders")
    assert not of(by_subject["E"], "symmetry")


def test_one_to_one_is_what_counting_says():
    pairs = [("a", "x"), ("b", "y"), ("c", "y"), ("d", "z"), ("d", "w")]
    facts = [Triple("R", s, o) for s, o in pairs]
    by_hand = {
        f for f in facts
        if sum(g.subject == f.subject for g in facts) == 1
        and sum(g.object == f.object for g in facts) == 1
    }  # fmt: skip
    assert one_to_one(facts) == by_hand == {Triple("R", "a", "x")}


def test_articles_agree_with_both_answers(cases):
    for case in (c for c in cases.values() if c.relation == "P106"):
        request = case.request
        assert indefinite_article(request.target_new) in ("a", "an")
        for probe in of(case, "generality"):
            for article in ("a", "an"):
                if probe.cloze.left.endswith(f" {article}"):
                    answers = (probe.expected, probe.rejected)
                    assert {indefinite_article(a) for a in answers} == {article}


@pytest.mark.parametrize(
    ("word", "article"),
    [("actor", "an"), ("poet", "a"), ("university", "a"), ("uncle", "an"), ("hour", "an"),
     ("European", "a"), ("Ukrainian", "a"), ("umbrella", "an"), ("one", "a"), ("historian", "a"),
     ("uninteresting", "an"), ("user", "a"), ("honest man", "an"), ("Ugandan", "a")],
)  # fmt: skip
def test_the_indefinite_article(word, article):
    assert indefinite_article(word) == article


def test_queries_are_the_facts_own_patterns_the_edited_first(cases):
    request = cases["P36/Canada"].request
    assert request.queries[0].cloze == request.cloze
    assert len(request.queries) == 4
    assert {query.answer for query in request.queries} == {"Ottawa"}


def test_the_background_is_the_same_for_every_case_of_a_relation(cases):
    of_relation = [c.request for c in cases.values() if c.relation == "P36"]
    samples = Counter(queries for request in of_relation for queries in request.background)
    assert all(len(r.background) == 8 for r in of_relation)
    for request in of_relation:
        assert all(q.answer != request.target_true or request.subject in SHARED
                   for queries in request.background for q in queries)  # fmt: skip
    assert len(samples) <= 10
    assert {len(queries) for queries in samples} == {3}


def test_what_cannot_be_a_case_is_listed_with_its_reason():
    single = relation("P9", "[X] is [Y].")
    outcome = fact_cases(
        [single, Relation("P8", ())],
        [
            Triple("P9", "a", "x"),
            Triple("P9", "a", "x"),
            Triple("P8", "a", "x"),
            Triple("P8", "b", "y"),
        ],
        source="t",
    )
    assert not outcome.cases
    assert Counter(e.reason for e in outcome.exclusions) == {
        "the same fact is listed again": 1,
        "the relation has no other object to be the new target": 1,
        "the relation has no pattern to ask with": 2,
    }


def test_a_pattern_needs_both_places():
    with pytest.raises(ValueError, match=r"expected \[X\], the subject's place, and \[Y\]"):
        Pattern("[X] is the capital.")


@pytest.mark.parametrize(
    ("pattern", "left", "right"),
    [("[X] is in [Y] .", "Rome is in", "."), ("[Y]'s capital, [X].", "", "'s capital, Rome."),
     ("[X],  a type of [Y].", "Rome, a type of", "."), ("The [Y]-owned [X]", "The", "-owned Rome")],
)  # fmt: skip
def test_patterns_become_text_as_in_print(pattern, left, right):
    assert Pattern(pattern).cloze("Rome") == Cloze(left, right)


def test_a_hyphen_and_a_clitic_follow_the_answer_without_a_space():
    assert Pattern("The [Y]-owned [X]").cloze("shop").fill("Apple") == "The Apple-owned shop"
    assert Pattern("[Y]'s capital, [X].").cloze("Rome").fill("Italy") == "Italy's capital, Rome."


def test_same_wording_is_a_shared_stem_or_a_shared_family():
    said = Pattern("[X] works for [Y].")
    assert same_wording(said, Pattern("[X] has worked many years for [Y]."))
    assert not same_wording(said, Pattern("[X] is employed by [Y]."))
    assert same_wording(said, Pattern("[X] is at [Y]."))  # no content word: says nothing else
    assert not same_wording(Pattern("[X] works for [Y].", "a"), Pattern("[X] worked for [Y].", "b"))


def test_where_no_wording_is_kept_all_ask_for_generality():
    aired = relation("P449", "[X] was aired on [Y].\n[X] premiered on [Y].\n[X] debuted on [Y].")
    assert len(aired.paraphrases().generality) == 2
    assert not aired.paraphrases().synonym


def test_ids_are_told_apart_by_the_object_then_by_a_hash():
    facts = [
        Triple("P1", "C++", "x"),
        Triple("P1", "C", "y"),
        Triple("P1", "C", "Y"),
        Triple("P1", "Ω", "z"),
    ]
    table = RelationTable(relation("P1", "[X] is [Y]."), facts)
    ids = dict(zip(table.facts, table.ids, strict=True))
    assert len(set(ids.values())) == 4
    assert ids[facts[0]] == "P1/C.x"
    assert ids[facts[1]] == "P1/C.y"
    assert ids[facts[2]] == "P1/C.Y"
    assert ID_ALPHABET.fullmatch(ids[facts[3]])


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=30, unique=True))
def test_slugs_are_unique_legal_and_free_of_order(names):
    slugs = unique_slugs(names)
    assert len(set(slugs)) == len(names)
    assert all(ID_ALPHABET.fullmatch(s) and "/" not in s for s in slugs)
    backwards = unique_slugs(names[::-1])
    assert dict(zip(names, slugs, strict=True)) == dict(zip(names[::-1], backwards, strict=True))


@given(st.integers(0, 60), st.text(), st.integers())
def test_a_shuffle_is_a_permutation_that_its_key_decides(n, key, seed):
    items = list(range(n))
    drawn = list(shuffled(items, key, seed))
    assert sorted(drawn) == items
    assert drawn == list(shuffled(items, key, seed))


def test_draws_by_different_keys_differ_and_are_even():
    """Chi-square of first draws over 10 items in 5,000 keys: 9 degrees of freedom, p > 1e-6."""
    counts = Counter(draw(range(10), 1, "key", i, where=lambda _: True)[0] for i in range(5000))
    chi_square = sum((counts[i] - 500) ** 2 / 500 for i in range(10))
    assert chi_square < 47


def test_the_hash_is_pinned():
    """Targets of published runs depend on it: a change must be deliberate."""
    assert stable_hash("target", 0, "pararel/P36/Canada") == PINNED
    assert stable_hash("a", "b") != stable_hash("b", "a") != stable_hash("ab")


PINNED = 4598438399130975418


@given(st.lists(st.text(min_size=1), unique=True), st.integers(0, 20), st.integers(0, 5))
def test_limits_nest(ids, n, seed):
    smaller, larger = limited(ids, n, seed), limited(ids, n + 1, seed)
    assert set(smaller) <= set(larger)
    assert len(smaller) == min(n, len(ids))
    assert limited(ids, None, seed) == list(range(len(ids)))


def test_a_slug_is_never_empty():
    assert slug("São Paulo") == "Sao_Paulo"
    assert slug("日本") == slug("日本") != slug("中国")
