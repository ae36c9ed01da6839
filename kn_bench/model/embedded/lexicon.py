"""The words of the embedded models' grammar, and which combinations of them are held out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from kn_bench.model.embedded.tables import rows, share, words

Number = Literal["singular", "plural"]

HELD_OUT_COMBINATIONS = 0.25

DEMONSTRATIVES: dict[Number, tuple[str, str]] = {
    "singular": ("this", "that"),
    "plural": ("these", "those"),
}
DETERMINERS: dict[Number, tuple[str, ...]] = {
    "singular": ("the", "the", "a", "some", "every", "each", "this", "that"),
    "plural": (("the", "the", "some", "all", "most", "many", "a lot of", "few", "these", "those")),
}
AMBIGUOUS_DETERMINERS = ("the", "the", "some", "no")
REFLEXIVES = {"m": "himself", "f": "herself", "i": "itself"}
AUXILIARIES: tuple[tuple[str, str, str], ...] = (
    ("is", "are", "ing"),
    ("isn't", "aren't", "ing"),
    ("was", "were", "ing"),
    ("wasn't", "weren't", "ing"),
    ("has", "have", "participle"),
    ("hasn't", "haven't", "participle"),
    ("does", "do", "plain"),
    ("doesn't", "don't", "plain"),
)
"""Auxiliaries that agree: the singular form, the plural form, the verb form that follows."""
INVARIANT: tuple[tuple[str, str], ...] = (
    ("", "past"),
    ("", "past"),
    ("", "past"),
    ("had", "participle"),
    ("hadn't", "participle"),
    ("did", "plain"),
    ("didn't", "plain"),
    ("can", "plain"),
    ("can't", "plain"),
    ("could", "plain"),
    ("couldn't", "plain"),
    ("will", "plain"),
    ("won't", "plain"),
    ("would", "plain"),
    ("wouldn't", "plain"),
    ("might", "plain"),
    ("should", "plain"),
    ("shouldn't", "plain"),
)
"""Auxiliaries (or none) that do not agree, and the verb form that follows."""


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun: its two forms, whether its plural is irregular, what it names, and its gender.

    ``gender`` is ``m``, ``f``, ``n`` (a person of either) or ``i`` (no person).
    """

    singular: str
    plural: str
    irregular: bool
    kind: str
    gender: str

    def form(self, number: Number) -> str:
        return self.singular if number == "singular" else self.plural


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: its forms, the particle that follows it, and what it takes.

    ``kind`` is ``any`` (a noun phrase), ``thing`` (one that names no person), ``none``, ``to``
    (an infinitive) or ``that`` (a clause).
    """

    plain: str
    singular: str
    past: str
    participle: str
    ing: str
    particle: str
    kind: str

    def form(self, name: str) -> str:
        text: str = getattr(self, name)
        return text


@dataclass(frozen=True, slots=True)
class ProperNoun:
    """A proper noun phrase, its number and its gender."""

    text: str
    number: Number
    gender: str


@cache
def nouns() -> tuple[Noun, ...]:
    """Return all common nouns."""
    return tuple(
        Noun(row["singular"], row["plural"], row["form"] == "irregular", row["kind"], row["gender"])
        for row in rows("nouns.tsv")
    )


@lru_cache(maxsize=64)
def nouns_of(*kinds: str) -> tuple[Noun, ...]:
    """Return the nouns of some kinds."""
    return tuple(noun for noun in nouns() if noun.kind in kinds)


@lru_cache(maxsize=64)
def verbs(*kinds: str) -> tuple[Verb, ...]:
    """Return the verbs of some kinds."""
    return tuple(Verb(**row) for row in rows("verbs.tsv") if row["kind"] in kinds)


@cache
def adjectives() -> tuple[str, ...]:
    """Return all adjectives."""
    return words("adjectives.txt")


@cache
def first_names() -> tuple[ProperNoun, ...]:
    """Return first names of people."""
    return tuple(ProperNoun(row["name"], "singular", row["gender"]) for row in rows("names.tsv"))


@cache
def proper() -> tuple[ProperNoun, ...]:
    """Return other proper and mass nouns: families, institutions, substances."""
    return tuple(
        ProperNoun(
            row["name"], "plural" if row["number"] == "plural" else "singular", row["gender"]
        )
        for row in rows("proper.tsv")
    )


def held_out(kind: str, first: str, second: str) -> bool:
    """Tell whether training never shows these two words in this bond (a hash decides)."""
    return share("pair", kind, first, second) < HELD_OUT_COMBINATIONS
