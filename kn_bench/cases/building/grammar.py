"""What agrees with what: the little grammar that cases of minimal pairs need.

Closed classes only (demonstratives, auxiliaries, reflexives); the nouns and verbs themselves come
from the pairs.
"""

from __future__ import annotations

import re
from typing import Literal

from kn_bench.cases.building.paradigms import AGREEMENT

Number = Literal["singular", "plural", "feminine", "masculine", "neuter", ""]
"""What an agreeing word is marked for; "" where that is not known."""

NUMBER_CLASS = {"this": "that", "that": "this", "these": "those", "those": "these"}
"""Demonstrative -> the other member of its number class."""

TENSE = {
    present + negation: past + negation
    for present, past in (("is", "was"), ("are", "were"))
    for negation in ("", "n't")
}
"""Auxiliary -> the same in the past. Only *be* shows number in both tenses: *had* does not."""
TENSE |= {past: present for present, past in TENSE.items()}

_DEMONSTRATIVE: dict[str, Number] = {
    "this": "singular",
    "that": "singular",
    "these": "plural",
    "those": "plural",
}
_REFLEXIVE: dict[str, Number] = {
    "himself": "masculine",
    "herself": "feminine",
    "itself": "neuter",
    "themselves": "plural",
}
_SINGULAR_VERBS = {"is", "was", "has", "does"}
_PLURAL_VERBS = {"are", "were", "have", "do"}


def number_of(family: str, agreeing: str, good: str, *, before: bool) -> Number:
    """Return what the agreement of a pair is marked for.

    Args:
        family: of the pair's paradigm.
        agreeing: the word that governs.
        good: the grammatical form of the word that varies.
        before: whether the governing word stands before the varying one.
    """
    agreeing, good = agreeing.lower(), good.lower()
    if family not in AGREEMENT:
        return ""
    if good in _REFLEXIVE:
        return _REFLEXIVE[good]
    for word in (agreeing, good):
        if family == "determiner_noun_agreement" and word in _DEMONSTRATIVE:
            return _DEMONSTRATIVE[word]
    if family == "subject_verb_agreement":
        return verb_number(good if before else agreeing)
    return ""


def verb_number(verb: str) -> Number:
    """Return the number of a finite present verb (or *was*, *were*)."""
    stem = verb.removesuffix("n't").split(" ")[0]
    if stem in _SINGULAR_VERBS:
        return "singular"
    if stem in _PLURAL_VERBS:
        return "plural"
    return "singular" if re.search(r"[^s]s$", stem) else "plural"


def lexeme(good: str, bad: str) -> str:
    """Return one label for two forms of a word: ``sketch`` for *sketch* and *sketches*."""
    return min(good.lower(), bad.lower())
