"""Minimal pairs become cases as the six criteria define them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.cases.building.grammar import NUMBER_CLASS, TENSE, number_of, verb_number
from kn_bench.cases.building.pairs import MinimalPair, ParadigmTable, cluster, pair_cases, synonyms
from kn_bench.cases.building.paradigms import (
    AGREEMENT,
    BLIMP,
    LEFT_TO_RIGHT,
    TWO_PREFIXES,
    Paradigm,
    unrelated,
)
from kn_bench.cases.building.spans import Analysis, analyse, differing_span, mark
from kn_bench.cases.case import Cloze, Probe

DN1, DN2 = "determiner_noun_agreement_1", "determiner_noun_agreement_2"
SV1, SV2 = (f"regular_plural_subject_verb_agreement_{i}" for i in (1, 2))
ANAPHOR = "anaphor_gender_agreement"
PARADIGMS = tuple(p for p in BLIMP if p.id in (DN1, DN2, SV1, SV2, ANAPHOR))
BY_ID = {paradigm.id: paradigm for paradigm in PARADIGMS}


def minimal(paradigm, id, left, good, bad, right, agreeing, scoring="gap"):
    left, right = (f"{left} " if left else ""), ("." if right == "." else f" {right}")
    return MinimalPair(paradigm, id, left + good + right, left + bad + right, agreeing, scoring)


PAIRS = [
    minimal(DN1, "0", "Ann sold this", "cup", "cups", ".", "this"),
    minimal(DN1, "1", "Bo broke this", "lamp", "lamps", ".", "this"),
    minimal(DN1, "2", "Cy has seen these", "cups", "cup", ".", "these"),
    minimal(DN1, "3", "Di likes those", "cups", "cup", ".", "those"),
    minimal(DN1, "4", "Ed found this", "book", "books", ".", "this"),
    minimal(DN2, "0", "The man sold", "these", "this", "cups.", "cups", "two_prefix"),
    minimal(DN2, "1", "The men sold", "these", "this", "lamps.", "lamps", "two_prefix"),
    minimal(DN2, "2", "A girl saw", "this", "these", "cup.", "cup", "two_prefix"),
    minimal(DN2, "3", "A boy saw", "that", "those", "cup.", "cup", "two_prefix"),
    minimal(SV1, "0", "The boys", "are", "is", "asleep.", "boys"),
    minimal(SV1, "1", "Some boys", "run", "runs", ".", "boys"),
    minimal(SV1, "2", "The girl", "has", "have", "left.", "girl"),
    minimal(SV2, "0", "The", "boy", "boys", "runs away.", "runs", "two_prefix"),
    minimal(SV2, "1", "The", "boy", "boys", "is here.", "is", "two_prefix"),
    minimal(ANAPHOR, "0", "Ann hurt", "herself", "himself", ".", "Ann"),
    minimal(ANAPHOR, "1", "Ann saw", "herself", "itself", ".", "Ann"),
    minimal(ANAPHOR, "2", "Bob saw", "himself", "herself", ".", "Bob"),
]
OTHER_TASK = tuple(
    Probe(f"fact/{i}", "locality", Cloze(f"Fact {i} is", "."), "true", "false") for i in range(5)
)


def selection(pairs=PAIRS, **more):
    return pair_cases(PARADIGMS, pairs, source="test", neighbours=OTHER_TASK, **more)


@pytest.fixture(scope="module")
def cases():
    return {case.id: case for case in selection().cases}


def of(case, criterion, kind=None):
    return [p for p in case.probes if p.criterion == criterion and kind in (None, p.kind)]


@pytest.mark.parametrize(
    ("good", "bad", "left", "in_good", "in_bad", "right"),
    [
        ("He sold this cup.", "He sold this cups.", "He sold this", "cup", "cups", "."),
        ("Ann hasn't left.", "Ann haven't left.", "Ann", "hasn't", "haven't", "left."),
        ("Who are you?", "Who is you?", "Who", "are", "is", "you?"),
        # one has nothing in the gap: it takes in the next word, or the one before
        ("Ann wept.", "Ann wept on.", "Ann", "wept", "wept on", "."),
        ("They will go now.", "They go now.", "They", "will go", "go", "now."),
        ("It is", "It is so", "It", "is", "is so", ""),
        ("The cat ran.", "Cat ran.", "", "The cat", "Cat", "ran."),
        # the same word in another place
        ("Whose hat is it?", "Whose is it hat?", "Whose", "hat is it", "is it hat", "?"),
    ],
)
def test_the_differing_span(good, bad, left, in_good, in_bad, right):
    assert differing_span(good, bad) == (Cloze(left, right), in_good, in_bad)


NO_WORD = "the two sentences share no word around the differing span"
NOT_AGAIN = "the sentences cannot be put together again from their parts"
SPACED = "the two sentences are spaced differently"


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        ("Ann left.", "Ann left.", "the two sentences are the same"),
        ("Had he gone?", "He had gone.", NO_WORD),
        ("Yes.", "No.", NO_WORD),
        ("", "No.", NO_WORD),
        ("He  sold it.", "He  sold him.", NOT_AGAIN),
        ("He sold this cup .", "He sold this cup.", SPACED),
        ("He sold this cup.", "He sold this cups .", SPACED),
        ("Is this, he asks, it?", "Is this , he asks, it?", SPACED),
        ("我喜欢书。", "我喜欢 书。", SPACED),
    ],
)  # fmt: skip
def test_what_has_no_span_says_why(good, bad, reason):
    assert differing_span(good, bad) == reason


@pytest.mark.parametrize("text", ['" book', "... is", "— ? is"])
def test_a_word_that_nothing_stands_beside_has_none_to_agree_with(text):
    ((_, reason),) = ParadigmTable(BY_ID[DN1], [MinimalPair(DN1, "0", text, f"{text}s")]).unusable
    assert reason == "the agreeing word does not stand in what both sentences share"


SENTENCE = st.text(st.sampled_from("ab .,?\"'-{}我。\u3000\u00a0"), max_size=8)


@given(st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=3))
def test_whatever_two_sentences_are_they_are_a_case_or_left_out(sentences):
    pairs = [MinimalPair(DN1, str(i), good, bad) for i, (good, bad) in enumerate(sentences)]
    offered = selection(pairs, only=[DN1])
    assert len(offered.cases) + len(offered.exclusions) == len(pairs)


WORDS = st.lists(
    st.sampled_from(("a", "the", "cat", "dog", "is", "it's", ".hid,", "not", "who")), max_size=6
)


@given(WORDS, WORDS, WORDS, WORDS)
def test_the_span_puts_both_sentences_together_again(left, ours, theirs, right):
    good, bad = (" ".join([*left, *middle, *right]) for middle in (ours, theirs))
    span = differing_span(good, bad)
    if isinstance(span, str):
        return
    cloze, in_good, in_bad = span
    assert (cloze.fill(in_good), cloze.fill(in_bad)) == (good, bad)
    assert in_good != in_bad
    # nothing more could be left outside on the left
    longer = f"{cloze.left} {in_good.split()[0]}".strip()
    assert not bad.startswith(f"{longer} ") or not in_good.split()[1:] or not in_bad.split()[1:]


def test_the_agreeing_word_is_marked_before_the_gap_or_after():
    cloze = Cloze("These boys saw these", "by the boys.")
    assert mark(cloze, "these") == ("These boys saw {}", "by the boys.", "these")
    assert mark(cloze, "by") == ("These boys saw these", "{} the boys.", "by")
    assert mark(cloze, "") == ("These boys saw {}", "by the boys.", "these")
    assert mark(Cloze("", "runs."), "") == ("", "{}.", "runs")
    assert mark(cloze, "boy") is None
    assert mark(Cloze("a {} b", "."), "b") is None


def test_where_the_agreeing_word_begins_can_be_said():
    """The head and the attractor are the same word: the nearest would be the wrong one."""
    good, bad = "The sister of that sister sings.", "The sister of that sister sing."
    nearest = analyse(MinimalPair(SV1, "0", good, bad, "sister"), "subject_verb_agreement")
    said = analyse(MinimalPair(SV1, "0", good, bad, "sister", at=4), "subject_verb_agreement")
    assert isinstance(nearest, Analysis)
    assert isinstance(said, Analysis)
    assert nearest.prompt == "The sister of that {}"
    assert said.prompt == "The {} of that sister"
    after = analyse(MinimalPair(SV2, "0", "Go, cat go.", "Go, dog go.", "go", at=8), "x")
    assert isinstance(after, Analysis)
    assert (after.prompt, after.suffix) == ("Go,", "{}.")


def test_the_request_asks_for_the_ungrammatical_member(cases):
    request = cases[f"{DN1}/0"].request
    assert (request.prompt, request.subject, request.suffix) == ("Ann sold {}", "this", ".")
    assert (request.target_true, request.target_new) == ("cup", "cups")
    assert cases[f"{DN1}/0"].probes[0] == Probe(
        "reliability/0", "reliability", Cloze("Ann sold this", "."), "cups", "cup", task="pair"
    )


def test_a_word_that_governs_from_behind_is_marked_in_the_suffix(cases):
    request = cases[f"{DN2}/0"].request
    assert (request.prompt, request.subject, request.suffix) == ("The man sold", "cups", "{}.")
    assert cases[f"{DN2}/0"].probes[0].scoring == "two_prefix"


def test_generality_is_other_pairs_that_share_the_agreeing_word(cases):
    probes = of(cases[f"{DN1}/0"], "generality")
    assert {(p.cloze.left, p.expected, p.rejected) for p in probes} == {
        ("Bo broke this", "lamps", "lamp"),
        ("Ed found this", "books", "book"),
    }
    assert cases[f"{DN1}/2"].not_applicable["generality"] == (
        "no other pair shares the agreeing word"
    )
    (probe,) = of(cases[f"{SV1}/0"], "generality")
    assert (probe.expected, probe.rejected) == ("runs", "run")


def test_locality_is_the_other_number_other_paradigms_and_facts(cases):
    case = cases[f"{DN1}/0"]
    for probe in of(case, "locality", "opposite_number"):
        assert probe.cloze.left.endswith(("these", "those"))
        assert (probe.expected, probe.rejected) == ("cups", "cup")
    elsewhere = of(case, "locality", "other_paradigm")
    assert len(elsewhere) == 2
    for probe in elsewhere:
        pair = next(p for p in PAIRS if p.good == probe.cloze.fill(probe.expected))
        assert pair.bad == probe.cloze.fill(probe.rejected)
        assert not pair.paradigm.startswith("determiner")
    tasks = {p.task for p in of(case, "locality", "other_task")}
    assert tasks == {"fact"}


def test_gender_has_an_opposite_too(cases):
    probes = of(cases[f"{ANAPHOR}/0"], "locality", "opposite_number")
    assert [p.cloze.left for p in probes] == ["Bob saw"]


def test_symmetry_is_the_converse_paradigm_with_the_agreeing_word_ungrammatical(cases):
    """Edited to "this cups": then, before "cups", "this" is to be preferred to "these"."""
    first, second = of(cases[f"{DN1}/0"], "symmetry")
    assert (first.cloze, first.expected, first.rejected) == (
        Cloze("The man sold", "cups."), "this", "these",
    )  # fmt: skip
    assert second.cloze == Cloze("The men sold", "lamps.")
    # edited to "these cup": then, after "these", "cup" is to be preferred to "cups"
    first, second = of(cases[f"{DN2}/2"], "symmetry")
    assert first.cloze.left == "Cy has seen these"
    assert (first.expected, first.rejected) == ("cup", "cups")
    assert second.cloze.left == "Di likes those"
    # the pair whose own agreeing word is the new target comes first: "boys is", then "boys runs"
    first, _ = of(cases[f"{SV1}/0"], "symmetry")
    assert first.cloze == Cloze("The", "is here.")
    assert cases[f"{ANAPHOR}/0"].not_applicable["symmetry"] == "the paradigm has no converse"
    assert cases[f"{SV1}/2"].not_applicable["symmetry"] == (
        "no pair of the converse paradigm has the agreeing word"
    )


@pytest.mark.parametrize(
    ("id", "kind", "left", "expected", "rejected"),
    [
        (f"{DN1}/0", "number_class", "Ann sold that", "cups", "cup"),
        (f"{DN1}/3", "number_class", "Di likes these", "cup", "cups"),
        (f"{DN2}/0", "number_class", "The man sold", "that", "those"),
        (f"{SV1}/0", "tense", "The boys", "was", "were"),
    ],
)
def test_synonyms(cases, id, kind, left, expected, rejected):
    (probe,) = of(cases[id], "synonym")
    assert (probe.kind, probe.cloze.left) == (kind, left)
    assert (probe.expected, probe.rejected) == (expected, rejected)
    assert probe.scoring == cases[id].probes[0].scoring


def test_had_shows_no_number_so_has_and_have_have_no_other_tense(cases):
    assert not of(cases[f"{SV1}/2"], "synonym")
    assert cases[f"{SV1}/2"].not_applicable["synonym"] == (
        "no synonym of the agreeing words shows number"
    )
    assert "has" not in TENSE
    assert all(verb_number(word) == verb_number(TENSE[word]) != "" for word in TENSE)


def test_a_synonym_keeps_the_case_of_what_it_replaces():
    analysed = analyse(minimal(DN1, "0", "This", "cup", "cups", "fell.", "This"), AGREEMENT[1])
    assert isinstance(analysed, Analysis)
    (probe,) = synonyms(analysed)
    assert probe.cloze.left == "That"


def test_the_cluster_is_the_noun_whichever_word_governs(cases):
    assert {cases[f"{DN1}/{i}"].cluster for i in (0, 2, 3)} == {"cup"}
    assert {cases[f"{DN2}/{i}"].cluster for i in (0, 2, 3)} == {"cups", "cup"}
    assert cases[f"{SV1}/0"].cluster == "boys"
    assert cases[f"{SV2}/0"].cluster == "boy"
    assert cases[f"{ANAPHOR}/0"].cluster == "ann"


def test_queries_are_the_class_and_the_background_other_classes(cases):
    request = cases[f"{DN1}/1"].request
    assert request.queries[0].cloze == request.cloze
    assert {q.cloze.left for q in request.queries} == {
        "Bo broke this", "Ann sold this", "Ed found this",
    }  # fmt: skip
    assert {q.answer for q in request.queries} == {"lamp", "cup", "book"}
    background = {q.cloze.left for queries in request.background for q in queries}
    assert background == {"Cy has seen these", "Di likes those"}


def test_a_case_does_not_depend_on_which_others_are_selected(cases):
    for case in selection(only=[DN1], limit=2).cases:
        assert cases[case.id] == case
    assert len(selection(limit=1).cases) == len(PARADIGMS)


def test_pairs_that_cannot_be_cases_are_listed():
    wrong = [
        MinimalPair(DN1, "9", "Same.", "Same."),
        MinimalPair(DN1, "8", "Ann is", "Ann was", "x"),
    ]
    outcome = selection([*PAIRS, *wrong], only=[DN1])
    assert {(e.case, e.reason) for e in outcome.exclusions} == {
        (f"{DN1}/9", "the two sentences are the same"),
        (f"{DN1}/8", "the agreeing word does not stand in what both sentences share"),
    }
    assert len(outcome.cases) == 5


@pytest.mark.parametrize(
    ("verb", "number"),
    [("runs", "singular"), ("run", "plural"), ("passes", "singular"), ("pass", "plural"),
     ("hasn't", "singular"), ("don't", "plural"), ("were", "plural"), ("was", "singular")],
)  # fmt: skip
def test_the_number_of_a_verb(verb, number):
    assert verb_number(verb) == number


def test_the_number_of_a_pair():
    dn, sv, anaphor = AGREEMENT[1], AGREEMENT[2], AGREEMENT[0]
    assert number_of(dn, "This", "cup", before=True) == "singular"
    assert number_of(dn, "cups", "those", before=False) == "plural"
    assert number_of(sv, "boys", "run", before=True) == "plural"
    assert number_of(sv, "runs", "boy", before=False) == "singular"
    assert number_of(anaphor, "Ann", "herself", before=True) == "feminine"
    assert number_of("island_effects", "this", "run", before=True) == ""


def test_the_paradigms_are_blimps():
    assert len(BLIMP) == 67
    assert len(LEFT_TO_RIGHT) == 20
    assert not LEFT_TO_RIGHT & TWO_PREFIXES
    assert {p.id for p in BLIMP} >= LEFT_TO_RIGHT | TWO_PREFIXES
    by_id = {p.id: p for p in BLIMP}
    for paradigm in BLIMP:
        if paradigm.converse:
            assert by_id[paradigm.converse].converse == paradigm.id
            assert by_id[paradigm.converse].family == paradigm.family


def test_unrelated_paradigms_are_of_other_families_and_fixed():
    for paradigm in BLIMP:
        first, second = unrelated(paradigm, BLIMP)
        families = {p.id: p.family for p in BLIMP}
        assert len({paradigm.family, families[first], families[second]}) == 3
    assert unrelated(Paradigm("a", "f"), [Paradigm("a", "f"), Paradigm("b", "f")]) == ()


def test_number_classes_are_mutual():
    assert all(NUMBER_CLASS[NUMBER_CLASS[word]] == word for word in NUMBER_CLASS)


def test_the_cluster_of_a_pair_without_agreement_is_the_gaps_neighbour():
    analysed = analyse(
        MinimalPair("npi", "0", "Ann really left.", "Ann ever left."), "npi_licensing"
    )
    assert isinstance(analysed, Analysis)
    assert cluster(analysed) == "ann"
