"""Relations as tables: patterns with ``[X]`` for the subject and ``[Y]`` for the object.

What is a paraphrase and what a synonym is decided here, in :func:`same_wording`: a pattern that
keeps a content word of the edited prompt ("The capital city of [X] is [Y]." beside "[X]'s capital
is [Y].") asks for *generality*; one that says it in other words ("[X] is employed by [Y]." beside
"[X] works for [Y].") asks for *synonym invariance*, and so do a relation's :class:`Rewording`,
whose answer changes with the prompt ("[X] is a famous linguist."), and synonyms of the answer.
Where no pattern keeps the wording, all of them ask for generality: that is the elder criterion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from kn_bench.cases.case import Cloze

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at by to for with from as and is are was were be been has have had can "
        "that which who whose its it such used",
    )
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One way to state a relation.

    Attributes:
        text: with ``[X]`` and ``[Y]`` once each: ``"[X] works in the field of [Y]."``.
        family: patterns of one family are paraphrases of each other; where it is empty their
            content words decide.

    Raises:
        ValueError: when a placeholder is missing or stands twice.
    """

    text: str
    family: str = ""

    def __post_init__(self) -> None:
        if self.text.count("[X]") != 1 or self.text.count("[Y]") != 1:
            raise ValueError(
                f"the pattern {self.text!r}: expected [X], the subject's place, and [Y], the "
                "answer's, once each"
            )

    def cloze(self, subject: str) -> Cloze:
        """Return the pattern with its subject, as a text with a gap at ``[Y]``."""
        left, right = frame(self.text)
        return Cloze.parse(left.replace("{}", subject), right.replace("{}", subject))

    @property
    def answer_is_last(self) -> bool:
        """Whether the answer ends the pattern, so that causal models can be asked."""
        return Cloze(*frame(self.text)).answer_is_last

    @property
    def article(self) -> str:
        """The indefinite article right before the answer: ``a``, ``an`` or ``""``."""
        return _article(self.text)

    def takes(self, *answers: str) -> bool:
        """Tell whether all of ``answers`` agree with the pattern's article, if it has one."""
        article = _article(self.text)
        return not article or all(indefinite_article(answer) == article for answer in answers)


@dataclass(frozen=True, slots=True)
class Rewording:
    """A pattern of another relation that says the same of the answer in another form.

    Attributes:
        pattern: ``"[X] is a famous [Y]."``
        answers: what an object is called there: ``{"linguistics": "linguist"}``; empty when it
            keeps its name. Objects that are not in it have no such probe.
    """

    pattern: Pattern
    answers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def answer(self, thing: str) -> str:
        """Return what ``thing`` is called in this wording, ``""`` when that is not known."""
        return self.answers.get(thing, "") if self.answers else thing


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation: how it is said, and what it is related to.

    Attributes:
        id: Wikidata id, such as ``P36``.
        patterns: the first that ends in its answer is the prompt that is edited.
        rewordings: further ways to say it, for synonym invariance only.
        synonyms: object -> another name of it.
        inverse: id of the relation that asks for the subject; its own for a symmetric one; "" for
            none.
        partners: the relations whose facts must not change (locality); the next two by id when
            empty.
    """

    id: str
    patterns: tuple[Pattern, ...]
    rewordings: tuple[Rewording, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    inverse: str = ""
    partners: tuple[str, ...] = ()

    @property
    def symmetric(self) -> bool:
        """Whether the relation is its own inverse."""
        return self.inverse == self.id

    @property
    def canonical(self) -> Pattern | None:
        """The edited prompt: ends in its answer and has no article before it, if one does."""
        last = [p for p in self.patterns if p.answer_is_last]
        plain = [p for p in last if not p.article]
        return next(iter([*plain, *last, *self.patterns]), None)

    def paraphrases(self) -> Paraphrases:
        """Return the other patterns, apart as generality and synonyms of the edited prompt."""
        edited = self.canonical
        others = [(i, p) for i, p in enumerate(self.patterns) if p is not edited]
        kept = [(i, p) for i, p in others if edited and same_wording(edited, p)]
        reworded = [pair for pair in others if pair not in kept]
        return Paraphrases(tuple(kept or reworded), tuple(reworded) if kept else ())


class Paraphrases(NamedTuple):
    """A relation's patterns beside the edited one, each with its place in the relation's list."""

    generality: tuple[tuple[int, Pattern], ...]
    synonym: tuple[tuple[int, Pattern], ...]


def relation(
    id: str,
    patterns: str,
    *,
    rewordings: tuple[Rewording, ...] = (),
    synonyms: Mapping[str, str] | None = None,
    inverse: str = "",
    partners: str = "",
) -> Relation:
    """Return a relation from a block of text, one pattern a line."""
    lines = [line.strip() for line in patterns.splitlines() if line.strip()]
    return Relation(
        id=id,
        patterns=tuple(Pattern(line) for line in lines),
        rewordings=rewordings,
        synonyms=MappingProxyType(dict(synonyms or {})),
        inverse=inverse,
        partners=tuple(partners.split()),
    )


@lru_cache(maxsize=8192)
def frame(pattern: str) -> tuple[str, str]:
    """Return ``pattern`` before and after its answer, the subject as ``{}``, spaces as in print."""
    text = re.sub(r"\s+", " ", pattern).strip().replace("[X]", "{}")
    text = re.sub(r" ([.,;:!?])", r"\1", text)
    left, right = text.split("[Y]")
    return left.rstrip(), right.lstrip()


@lru_cache(maxsize=8192)
def _article(pattern: str) -> str:
    match = re.search(r"\b([Aa]n?) \[Y\]", pattern)
    return match[1].lower() if match else ""


@lru_cache(maxsize=65536)
def indefinite_article(word: str) -> str:
    """Return ``a`` or ``an``, as ``word`` is pronounced."""
    lower = word.lower()
    if re.match(r"(hour|honest|honou?r|heir)", lower):
        return "an"
    if re.match(r"(eu|uni([^nm]|$)|us[aeiu]|ur[aeiu]n|uk|ugan|one\b|once)", lower):
        return "a"
    return "an" if lower[:1] in set("aeiou") else "a"


@lru_cache(maxsize=8192)
def content_words(pattern: str) -> frozenset[str]:
    """Return stems of at most five letters of the relation's own words: ``{"origi"}``."""
    words = re.findall(r"[a-z]+", re.sub(r"\[[XY]\]('s)?", " ", pattern).lower())
    stems = (re.sub(r"(?<=...)(ers?|ed|ing|s)$", "", w) for w in words if w not in FUNCTION_WORDS)
    return frozenset(stem[:5] for stem in stems)


def same_wording(edited: Pattern, other: Pattern) -> bool:
    """Tell whether ``other`` paraphrases ``edited`` in its own words: generality, else synonyms.

    By family where both name one; else they share a content word, or one of them has none.
    """
    if edited.family and other.family:
        return edited.family == other.family
    mine, theirs = content_words(edited.text), content_words(other.text)
    return not mine or not theirs or bool(mine & theirs)
