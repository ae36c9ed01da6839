"""Verdicts against hand-made cases: each line of the definitions, and where they stop to apply."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kn_bench.cases.case import CRITERIA, Cloze, Exclusion, Probe
from kn_bench.cases.normalise import (
    every_word,
    first_sentence,
    same_answer,
    starts_with_answer,
    words,
)
from kn_bench.measure.criteria import judge, overturn_outcome, unchanged
from kn_bench.measure.verdict import KindCount, OverturnOutcome, SymmetryOutcome
from tests.made_up import (
    NEW,
    OTHER,
    TRUE,
    case_of,
    measured,
    prefers,
    result_of,
    rows_of,
    says,
)

# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generated", "answer", "expected"),
    [
        ("Paris, the city of light", "Paris", True),
        ("Parisian cafes", "Paris", False),
        (" the Netherlands.", "Netherlands", True),
        ("Netherlands", "the Netherlands", True),
        ("PARIS", "paris", True),
        ("U.S.A. is", "USA", True),
        ("New York City", "New York", True),
        ("New", "New York", False),
        ("Jean-Paul Sartre", "Jean Paul", True),
        ("Republic of the Congo", "Republic of Congo", True),
        ("vitamin", "vitamin A", False),
        ("C++ and C", "C", False),
        ("in Paris", "Paris", False),
        ("", "Paris", False),
        ("Paris", "", False),
        ("!?", "!", True),
        ("the", "The", True),
        ("A and B", "A", True),
        ("São Paulo", "são paulo", True),
    ],
)
def test_answers_match_by_whole_words_from_the_start(generated, answer, expected):
    assert starts_with_answer(generated, answer) is expected


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("लोमे", "लीमा"),  # Devanagari: only the vowel signs differ
        ("จูน", "จีน"),  # Thai
        ("சென்னை", "சென்னா"),  # Tamil
        ("שָׁלוֹם", "שֶׁלוֹם"),  # Hebrew points
        ("عَلَم", "عِلْم"),  # Arabic vowels
        ("ọ̀rọ̀", "ọ́rọ́"),  # Yoruba: no single character has both marks
    ],
)
def test_marks_belong_to_their_word(word, other):
    assert words(word) != words(other)
    assert [len(words(text)) for text in (word, other)] == [1, 1]
    assert not starts_with_answer(other, word)
    assert not starts_with_answer(f"{word}पुर", word)
    assert starts_with_answer(f" {word}. {other}", word)
    assert same_answer(f"{word}. {other}", f"{word}! {word}")


@pytest.mark.parametrize("unseen", ["\u200c", "\u200d", "\ufe0f", "\U000e0100"])
def test_what_tells_how_a_letter_looks_is_no_end_of_its_word(unseen):
    assert words(f"می{unseen}خواهم") == words("میخواهم")
    assert words(f"Paris{unseen}") == words("Paris")


def words_without_marks(text: str) -> list[str]:
    """Return the words of a text as they are where no letter has a mark of its own."""
    folded = re.sub(r"(?<=\b\w)\.(?=\w\b)", "", unicodedata.normalize("NFKC", text).casefold())
    return re.findall(r"\w[\w+#]*", folded)


PLAIN = st.text(
    st.sampled_from("aAnthe U.S.!?+#_'-\n\té漢あßاไ1½ﬁ·") | st.characters(codec="utf-8"),
    max_size=20,
)


@given(PLAIN)
def test_texts_without_marks_are_compared_as_ever(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    assume(not any(unicodedata.category(char)[0] == "M" for char in folded + text))
    assume(not set(text) & {"\u200c", "\u200d"})
    assert list(every_word(text)) == words_without_marks(text)
    ends = re.compile(r"(?<=\w{3})[.!?](?=\s|$)|\n")
    assert first_sentence(text) == ends.split(text.strip(), maxsplit=1)[0]


def test_an_alias_counts_only_where_the_model_says_it():
    assert starts_with_answer("Holland, which", "Netherlands", ["Holland"])
    assert not starts_with_answer("a country next to Holland", "Netherlands", ["Holland"])


def test_one_of_three_tokens_right_is_no_answer():
    before, after = (
        says("New Delhi", "New York City", TRUE),
        says("New Delhi", "New York City", TRUE),
    )
    partly = replace(after, tf_token=1 / 3)
    row = measured("reliability", before, partly, expected="New York City")
    verdict = judge("reliability", case_of([row]), result_of([row]))
    assert verdict.score == 0
    assert verdict.readings is not None
    assert verdict.readings.tf_token == pytest.approx(1 / 3)
    assert verdict.readings.tf_all == 0


@given(st.text(max_size=30), st.text(min_size=1, max_size=10))
def test_only_the_generated_text_decides(generated, answer):
    """A longer text begins with the answer where the shorter does: no length is looked at."""
    if words(answer) and starts_with_answer(generated, answer):
        assert starts_with_answer(generated + " and more", answer)
    assert starts_with_answer(answer, answer) == bool(answer.strip())
    assert same_answer(generated, generated)


def test_an_answer_ends_with_its_sentence():
    assert first_sentence("Paris. It lies") == "Paris"
    assert first_sentence("St. Louis is") == "St. Louis is"
    assert first_sentence("\n a\nb") == "a"
    assert same_answer("the Paris! She", "paris. He")
    assert not same_answer("St. Louis", "St. Petersburg")


# --- reliability, generality, synonym ----------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_reliability_counts_every_edit_and_tells_what_was_known(known):
    row = measured("reliability", says(TRUE if known else OTHER), says(f"{NEW}. It"))
    verdict = judge("reliability", case_of([row]), result_of([row]))
    assert verdict.holds
    assert (verdict.score, verdict.counted, verdict.known_before) == (1.0, 1, known)


@pytest.mark.parametrize("criterion", ["generality", "synonym"])
def test_generality_and_synonym_count_what_m_knew(criterion):
    rows = [
        measured("reliability", says(TRUE), says(NEW)),
        measured(criterion, says(TRUE), says(NEW), number=0),
        measured(criterion, says(TRUE), says(TRUE), number=1),
        measured(criterion, says(TRUE), says(OTHER), number=2),
        measured(criterion, says(OTHER), says(NEW), number=3),  # not known before: left out
    ]
    verdict = judge(criterion, case_of(rows), result_of(rows))
    assert verdict.status == "missed"
    assert verdict.score == pytest.approx(1 / 3)
    assert (verdict.counted, verdict.left_out) == (3, 1)
    assert verdict.explanation.startswith("1 of 3 probes give the new answer; ")
    assert "'Ottawa'" in verdict.explanation


def test_what_m_did_not_know_is_excluded_with_its_reason():
    rows = [measured("reliability", says(TRUE), says(NEW))]
    rows += [measured("generality", says(OTHER), says(NEW), number=i) for i in range(3)]
    verdict = judge("generality", case_of(rows), result_of(rows))
    assert verdict.status == "excluded"
    assert verdict.score is None
    assert verdict.reason == "the unedited model did not know the fact on any other pattern"
    assert verdict.left_out == 3
    assert verdict.known_before is True


# --- locality ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (f"{NEW}, on the Seine", f"{NEW}. It", True),  # both the expected one, however they go on
        (OTHER, f"{OTHER}. And", True),
        (OTHER, "London", False),
        (NEW, OTHER, False),
        (OTHER, NEW, False),
        (TRUE, f"{TRUE}, which", True),
        (NEW, TRUE, False),
    ],
)
def test_locality_is_an_unchanged_answer_right_or_wrong(before, after, same):
    assert unchanged(says(before), says(after), "fact") is same
    row = measured("locality", says(before), says(after), kind="same_relation", kl=0.5)
    verdict = judge("locality", case_of([row]), result_of([row]))
    assert verdict.score == float(same)
    assert verdict.mean_kl == 0.5


def test_locality_counts_all_neighbours_and_their_kinds():
    rows = [
        measured("locality", says(NEW), says(NEW), kind="same_relation", number=0, kl=0.0),
        measured("locality", says(NEW), says(OTHER), kind="same_relation", number=1, kl=1.0),
        measured("locality", says(NEW), says(NEW), kind="same_object", kl=0.5),
    ]
    verdict = judge("locality", case_of(rows), result_of(rows))
    assert verdict.score == pytest.approx(2 / 3)
    assert verdict.mean_kl == pytest.approx(0.5)
    assert verdict.kinds == (KindCount("same_object", 1, 1), KindCount("same_relation", 1, 2))


def test_neighbours_of_the_other_task_are_judged_by_their_own():
    # the pair keeps its preference though what is generated changed, and the reverse for a fact
    keeps = replace(prefers(1.0), generated="cats"), replace(prefers(0.5), generated="dogs")
    row = measured("locality", *keeps, kind="other_task", task="pair")
    assert judge("locality", case_of([row]), result_of([row])).holds
    facts = says(NEW, gap=1.0), says(OTHER, gap=1.0)
    row = measured("locality", *facts, kind="other_task", task="fact")
    assert not judge("locality", case_of([row], task="pair"), result_of([row])).holds


# --- symmetry ----------------------------------------------------------------------------------


def _symmetry(new_says: str, old_says: str, old_before: str = "Canada"):
    rows = [
        measured(
            "symmetry",
            says("France", "Canada", "France"),
            says(new_says, "Canada", "France"),
            kind="new_inverse",
            expected="Canada",
            rejected="France",
        ),
        measured(
            "symmetry",
            says(old_before, "Canada", "France"),
            says(old_says, "Canada", "France"),
            kind="old_inverse",
            expected="Canada",
            rejected="France",
        ),
    ]
    return judge("symmetry", case_of(rows), result_of(rows))


@pytest.mark.parametrize(
    ("new_says", "old_says", "score", "outcome"),
    [
        ("Canada", "Cuba", 1.0, SymmetryOutcome(True, True, False, False)),
        ("Canada", "Canada", 0.0, SymmetryOutcome(True, False, False, False)),
        ("France", "Cuba", 0.0, SymmetryOutcome(False, True, True, False)),
        ("France", "Canada", 0.0, SymmetryOutcome(False, False, True, False)),
        ("Cuba", "Cuba", 0.0, SymmetryOutcome(False, True, False, True)),
    ],
)
def test_symmetry_needs_both_sides_and_stores_the_outcomes_apart(
    new_says, old_says, score, outcome
):
    verdict = _symmetry(new_says, old_says)
    assert verdict.score == score
    assert verdict.symmetry == outcome
    assert verdict.inverse_known is True


def test_symmetry_tells_whether_m_knew_the_inverse():
    assert _symmetry("Canada", "Cuba", old_before="Peru").inverse_known is False


def test_symmetry_of_which_one_question_does_not_fit_is_excluded():
    row = measured("symmetry", says("x"), says("Canada", "Canada"), kind="new_inverse")
    left = Exclusion(
        "embedded/P36/Canada", "the answer is no single token", "symmetry/old_inverse/0"
    )
    unasked = Probe(
        "symmetry/old_inverse/0", "symmetry", Cloze(""), "Canada", "France", "old_inverse"
    )
    case = case_of([row], unasked=[unasked])
    verdict = judge("symmetry", case, result_of([row], exclusions=[left]))
    assert verdict.status == "excluded"
    assert verdict.reason == "only one of the two inverse questions can be put"


def test_symmetry_without_a_unique_inverse_does_not_apply():
    rows = [measured("reliability", says(TRUE), says(NEW))]
    why = {"symmetry": "the fact is not one-to-one in both directions"}
    verdict = judge("symmetry", case_of(rows, not_applicable=why), result_of(rows))  # type: ignore[arg-type]
    assert verdict.status == "not_applicable"
    assert verdict.reason == why["symmetry"]


def test_symmetry_of_a_pair_is_the_converse_paradigm():
    row = measured("symmetry", prefers(-1.0), prefers(0.5), task="pair")
    verdict = judge("symmetry", case_of([row], task="pair"), result_of([row]))
    assert verdict.holds
    assert verdict.inverse_known is True
    assert verdict.symmetry == SymmetryOutcome(True, None, False, False)


# --- overturn ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "score"),
    [
        (TRUE, NEW, 1.0),
        (TRUE, OTHER, 1.0),
        (TRUE, TRUE, 0.0),
        (OTHER, NEW, None),
        (NEW, TRUE, None),
    ],
)
def test_overturn_reads_the_reliability_probe_where_m_was_right(before, after, score):
    row = measured("reliability", says(before), says(after))
    verdict = judge("overturn", case_of([row]), result_of([row]))
    assert verdict.score == score
    assert verdict.overturn is not None
    assert verdict.overturn.reverse is (before == NEW)
    if score is None:
        assert verdict.reason == "the unedited model was not right"


def test_overturn_by_each_reading_apart():
    # generated stays right, the pair flips, the vocabulary's argmax goes to a third word
    before = replace(says(f"{TRUE} is", gap=-2.0), argmax=" Ott")
    after = replace(says(f"{TRUE} is", gap=1.0), argmax=" Rome")
    outcome = overturn_outcome(measured("reliability", before, after), "fact")
    assert (outcome.generated, outcome.within_pair, outcome.argmax) == (False, True, True)
    # p(new) within the pair is the logistic of the gap
    logistic = [1 / (1 + math.exp(-gap)) for gap in (-2.0, 1.0)]
    assert outcome.shift == pytest.approx(logistic[1] - logistic[0])


def test_overturn_of_a_pair_is_the_preference_within_it():
    row = measured(
        "reliability", prefers(-0.1), prefers(0.1), task="pair", expected="walk", rejected="walks"
    )
    verdict = judge("overturn", case_of([row], task="pair"), result_of([row]))
    assert verdict.score == 1.0
    assert verdict.overturn is not None
    assert verdict.overturn.shift == pytest.approx(2 / (1 + math.exp(-0.1)) - 1)
    assert verdict.overturn == OverturnOutcome(None, True, None, False, verdict.overturn.shift)


def test_a_certain_answer_has_a_shift_and_no_nan():
    certain = replace(says(NEW), log_prob_expected=0.0, log_prob_rejected=-math.inf)
    never = replace(says(OTHER), log_prob_expected=-math.inf, log_prob_rejected=-math.inf)
    sure_of_true = replace(says(TRUE), log_prob_expected=-math.inf, log_prob_rejected=0.0)
    for before, after, shift in [(sure_of_true, certain, 1.0), (never, certain, 0.5)]:
        assert overturn_outcome(measured("reliability", before, after), "fact").shift == shift


# --- pairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "holds"), [(0.3, True), (-0.3, False), (0.0, False)])
def test_a_pair_is_judged_by_preference_not_by_what_is_generated(gap, holds):
    after = replace(prefers(gap), generated="walks", gives_expected=not holds)
    row = measured("reliability", prefers(-1.0), after, task="pair")
    assert judge("reliability", case_of([row], task="pair"), result_of([row])).holds is holds


def test_other_pairs_count_where_m_preferred_the_grammatical_member():
    rows = [
        measured("generality", prefers(-1.0), prefers(1.0), task="pair", number=0),
        measured("generality", prefers(1.0), prefers(1.0), task="pair", number=1),
        measured("generality", prefers(0.0), prefers(1.0), task="pair", number=2),
    ]
    verdict = judge("generality", case_of(rows, task="pair"), result_of(rows))
    assert (verdict.score, verdict.counted, verdict.left_out) == (1.0, 1, 2)


# --- what is not scored ------------------------------------------------------------------------


def test_nothing_is_left_out_silently():
    rows = [measured("reliability", says(TRUE), says(NEW))]
    case, id = case_of(rows), "embedded/P36/Canada"
    not_defined = judge("reliability", case, result_of([], not_applicable="ROME needs a decoder"))
    assert (not_defined.status, not_defined.reason) == ("not_applicable", "ROME needs a decoder")
    failed = judge("reliability", case, result_of([], error="the loss is NaN"))
    assert (failed.status, failed.explanation) == ("error", "the loss is NaN")
    whole = result_of([], exclusions=[Exclusion(id, "the subject is cut", None)])
    for criterion in ("reliability", "overturn"):
        assert judge(criterion, case, whole).reason == "the subject is cut"
        assert judge(criterion, case, whole).status == "excluded"
    lost = judge("reliability", case, result_of([]))
    assert lost.status == "error"
    assert lost.explanation == "nothing was measured, and no exclusion says why"
    assert judge("synonym", case, result_of(rows)).reason == "the case has no synonym probe"


@pytest.mark.parametrize("field", ["log_prob_expected", "log_prob_rejected"])
def test_an_edit_that_breaks_the_model_is_an_error(field):
    row = measured("reliability", says(TRUE), replace(says(NEW), **{field: math.nan}))  # type: ignore[arg-type]
    verdict = judge("reliability", case_of([row]), result_of([row]))
    assert (verdict.status, verdict.reason) == ("error", "a log-probability is NaN")
    assert verdict.explanation == "reliability/0: a log-probability is NaN"
    (text,) = rows_of(case_of([row]), result_of([row]), ["reliability"])
    assert '"status":"error"' in text


def test_exclusions_of_other_criteria_do_not_count():
    rows = [
        measured("reliability", says(TRUE), says(NEW)),
        measured("generality", says(TRUE), says(NEW)),
    ]
    left = Exclusion("embedded/P36/Canada", "too long", "locality/same_relation/0")
    verdict = judge("generality", case_of(rows), result_of(rows, exclusions=[left]))
    assert verdict.left_out == 0


@given(st.sampled_from([TRUE, NEW, OTHER]), st.sampled_from([TRUE, NEW, OTHER]))
def test_an_edit_that_changes_nothing(before, other):
    """The conformance editor *no edit*: reliability only by luck, locality 1, overturn 0."""
    rows = [
        measured("reliability", says(before), says(before)),
        measured("locality", says(other), says(other), kind="same_relation"),
    ]
    case, result = case_of(rows), result_of(rows)
    verdicts = {criterion: judge(criterion, case, result) for criterion in CRITERIA}
    assert verdicts["locality"].score == 1
    assert verdicts["reliability"].score == float(before == NEW)
    assert verdicts["overturn"].score == (0.0 if before == TRUE else None)
    assert verdicts["overturn"].overturn is not None
    assert verdicts["overturn"].overturn.shift == 0
