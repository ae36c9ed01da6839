"""BLiMP's 67 paradigms: their families, and which asks the converse of which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kn_bench.cases.case import Scoring


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FAMILIES = {
    "anaphor_agreement": "anaphor_gender_agreement anaphor_number_agreement",
    "argument_structure": "causative drop_argument inchoative intransitive passive_1 passive_2 "
    "transitive",
    "binding": "principle_A_c_command principle_A_case_1 principle_A_case_2 principle_A_domain_1 "
    "principle_A_domain_2 principle_A_domain_3 principle_A_reconstruction",
    "control_raising": "existential_there_object_raising existential_there_subject_raising "
    "expletive_it_object_raising tough_vs_raising_1 tough_vs_raising_2",
    "determiner_noun_agreement": "determiner_noun_agreement_1 determiner_noun_agreement_2 "
    "determiner_noun_agreement_irregular_1 determiner_noun_agreement_irregular_2 "
    "determiner_noun_agreement_with_adj_2 determiner_noun_agreement_with_adj_irregular_1 "
    "determiner_noun_agreement_with_adj_irregular_2 determiner_noun_agreement_with_adjective_1",
    "ellipsis": "ellipsis_n_bar_1 ellipsis_n_bar_2",
    "filler_gap_dependency": "wh_questions_object_gap wh_questions_subject_gap "
    "wh_questions_subject_gap_long_distance wh_vs_that_no_gap wh_vs_that_no_gap_long_distance "
    "wh_vs_that_with_gap wh_vs_that_with_gap_long_distance",
    "irregular_forms": "irregular_past_participle_adjectives irregular_past_participle_verbs",
    "island_effects": "adjunct_island complex_NP_island "
    "coordinate_structure_constraint_complex_left_branch "
    "coordinate_structure_constraint_object_extraction left_branch_island_echo_question "
    "left_branch_island_simple_question sentential_subject_island wh_island",
    "npi_licensing": "matrix_question_npi_licensor_present npi_present_1 npi_present_2 "
    "only_npi_licensor_present only_npi_scope sentential_negation_npi_licensor_present "
    "sentential_negation_npi_scope",
    "quantifiers": "existential_there_quantifiers_1 existential_there_quantifiers_2 "
    "superlative_quantifiers_1 superlative_quantifiers_2",
    "s-selection": "animate_subject_passive animate_subject_trans",
    "subject_verb_agreement": "distractor_agreement_relational_noun "
    "distractor_agreement_relative_clause irregular_plural_subject_verb_agreement_1 "
    "irregular_plural_subject_verb_agreement_2 regular_plural_subject_verb_agreement_1 "
    "regular_plural_subject_verb_agreement_2",
}

CONVERSES = (
    ("determiner_noun_agreement_1", "determiner_noun_agreement_2"),
    ("determiner_noun_agreement_irregular_1", "determiner_noun_agreement_irregular_2"),
    ("determiner_noun_agreement_with_adjective_1", "determiner_noun_agreement_with_adj_2"),
    (
        "determiner_noun_agreement_with_adj_irregular_1",
        "determiner_noun_agreement_with_adj_irregular_2",
    ),
    ("irregular_plural_subject_verb_agreement_1", "irregular_plural_subject_verb_agreement_2"),
    ("regular_plural_subject_verb_agreement_1", "regular_plural_subject_verb_agreement_2"),
)
"""The noun varies against the determiner varies; the verb varies against the noun varies."""

LEFT_TO_RIGHT = _names(
    """anaphor_gender_agreement anaphor_number_agreement animate_subject_passive
    determiner_noun_agreement_1 determiner_noun_agreement_irregular_1
    determiner_noun_agreement_with_adj_irregular_1 determiner_noun_agreement_with_adjective_1
    distractor_agreement_relational_noun distractor_agreement_relative_clause
    irregular_past_participle_verbs irregular_plural_subject_verb_agreement_1 npi_present_1
    npi_present_2 principle_A_c_command principle_A_case_1 principle_A_case_2 principle_A_domain_1
    principle_A_domain_2 regular_plural_subject_verb_agreement_1 wh_island"""
)
"""The 20 that can be answered from the left context (BLiMP's ``one_prefix_method``)."""

TWO_PREFIXES = _names(
    """animate_subject_trans determiner_noun_agreement_2 determiner_noun_agreement_irregular_2
    existential_there_object_raising irregular_past_participle_adjectives
    irregular_plural_subject_verb_agreement_2 left_branch_island_echo_question
    regular_plural_subject_verb_agreement_2 sentential_negation_npi_licensor_present
    sentential_negation_npi_scope transitive"""
)
"""Those in which what tells right from wrong follows the gap at once (``two_prefix_method``).

BLiMP has 12 more of that method in which other words come between; all but these two sets are
scored as whole sentences.
"""

AGREEMENT = ("anaphor_agreement", "determiner_noun_agreement", "subject_verb_agreement")
"""The families in which one word governs the form of another."""


@dataclass(frozen=True, slots=True)
class Paradigm:
    """One kind of minimal pair.

    Attributes:
        id: BLiMP's name of it.
        family: BLiMP's linguistic term; paradigms of other families are unrelated.
        converse: the paradigm in which the other of the two agreeing words varies; "" for none.
        scoring: how a causal model compares the two members.
        shares_context: False where the two sentences have no word in place in common ("Had Bruce
            ever played?", "Bruce had ever played."), so that there is nothing to ask at.
    """

    id: str
    family: str
    converse: str = ""
    scoring: Scoring = "sentence"
    shares_context: bool = True


def _paradigms() -> tuple[Paradigm, ...]:
    converse = dict([*CONVERSES, *((b, a) for a, b in CONVERSES)])
    paradigms = [
        Paradigm(
            id,
            family,
            converse.get(id, ""),
            "gap" if id in LEFT_TO_RIGHT else "two_prefix" if id in TWO_PREFIXES else "sentence",
            shares_context=not id.startswith("matrix_question"),
        )
        for family, ids in FAMILIES.items()
        for id in ids.split()
    ]
    return tuple(sorted(paradigms, key=lambda p: p.id))


BLIMP: tuple[Paradigm, ...] = _paradigms()
"""All 67, by name."""


def unrelated(paradigm: Paradigm, among: Sequence[Paradigm], k: int = 2) -> tuple[str, ...]:
    """Return the next ``k`` paradigms by name from other families, each from another one.

    Fixed, so that a case's neighbours do not depend on which other paradigms are loaded.
    """
    ordered = sorted(among, key=lambda p: p.id)
    at = next(i for i, p in enumerate(ordered) if p.id == paradigm.id)
    chosen: dict[str, str] = {}
    for other in [*ordered[at + 1 :], *ordered[:at]]:
        if other.family != paradigm.family and other.shares_context and len(chosen) < k:
            chosen.setdefault(other.family, other.id)
    return tuple(chosen.values())
