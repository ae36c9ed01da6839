"""Sentences and minimal pairs of the agreement paradigms, under BLiMP's names for them.

A sentence of training never holds a combination of words that is held out; the pairs that
measure always turn on one that is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from kn_bench.model.embedded import lexicon
from kn_bench.model.embedded.lexicon import Noun, Number, ProperNoun, Verb

T = TypeVar("T")
OTHER: dict[Number, Number] = {"singular": "plural", "plural": "singular"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A minimal pair: ``before + good + after`` is grammatical, ``before + bad + after`` is not.

    The parts hold their own spaces; ``word`` is the word that governs agreement.
    """

    paradigm: str
    before: str
    good: str
    bad: str
    after: str
    word: str

    @property
    def sentence_good(self) -> str:
        return self._sentence(self.good)

    @property
    def sentence_bad(self) -> str:
        return self._sentence(self.bad)

    def _sentence(self, word: str) -> str:
        text = self.before + word + self.after
        return text[0].upper() + text[1:]


class Phrase(NamedTuple):
    """A noun phrase: its text, its head as it stands, its number and gender."""

    text: str
    head: str
    number: Number
    gender: str


class Predicate(NamedTuple):
    """A verb phrase: its agreeing word, that of the other number, and the rest with its space."""

    good: str
    bad: str
    rest: str


DISTRACTORS = ("distractor_agreement_relational_noun", "distractor_agreement_relative_clause")


class Grammar:
    """Draws sentences and pairs.

    Args:
        seed: of everything drawn.
        held_out: whether the bond that a pair turns on is one that training never shows (for
            measuring), or one that it may show (for training).
        nouns: those that pairs turn on: few, for pairs that share them.
        distractors: whether half of the sentences are those with a noun between subject and verb.
    """

    def __init__(
        self,
        seed: int | str,
        held_out: bool = False,
        nouns: Sequence[Noun] | None = None,
        distractors: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.often = DISTRACTORS if distractors else ()
        self.held_out = held_out
        nouns = lexicon.nouns() if nouns is None else nouns
        self.nouns = tuple(nouns)
        self.irregular = tuple(noun for noun in nouns if noun.irregular)
        self.regular = tuple(noun for noun in nouns if not noun.irregular)

    def pair(self, paradigm: str) -> Pair:
        """Draw a pair of a paradigm; raise KeyError for an unknown paradigm."""
        return _PARADIGMS[paradigm](self, paradigm)

    def sentence(self) -> str:
        """Draw a grammatical sentence: a pair's good member, or one of general shape."""
        if self.often and self.random.random() < 0.5:
            return self.pair(self.pick(self.often)).sentence_good
        if self.random.random() < 0.3:
            text = self.clause(self.phrase(self.number())) + "."
            return text[0].upper() + text[1:]
        return self.pair(self.pick(_OFTEN)).sentence_good

    # Drawing ------------------------------------------------------------------------------

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random.random() * len(items))]

    def number(self) -> Number:
        return self.pick(("singular", "plural"))

    def bond(self, kind: str, draw: Callable[[], tuple[T, str, str]], critical: bool = True) -> T:
        """Draw until the two words that ``draw`` names beside its value are of the wanted sort."""
        wanted = self.held_out and critical
        while True:
            value, first, second = draw()
            if lexicon.held_out(kind, first, second) == wanted:
                return value

    def determined(self, number: Number, nouns: Sequence[Noun], determiner: str = "") -> Phrase:
        """Draw a determiner, perhaps an adjective, and a noun; never a held-out bond."""

        def draw() -> tuple[Phrase, str, str]:
            word = determiner or self.pick(lexicon.DETERMINERS[number])
            noun = self.pick(nouns)
            form = noun.form(number)
            adjective = self.pick(lexicon.adjectives()) + " " if self.random.random() < 0.2 else ""
            text = f"{article(word, adjective + form)} {adjective}{form}"
            return Phrase(text, form, number, noun.gender), word, form

        return self.bond("determiner", draw, critical=False)

    def phrase(self, number: Number, kinds: Sequence[str] = ()) -> Phrase:
        """Draw a noun phrase of a number, of some kinds of noun where they are given."""
        chance = self.random.random()
        if not kinds and number == "singular" and chance < 0.25:
            return named(self.pick(lexicon.first_names()))
        if not kinds and chance < 0.33:
            return named(self.pick([n for n in lexicon.proper() if n.number == number]))
        nouns = lexicon.nouns_of(*kinds) if kinds else lexicon.nouns()
        if number == "plural" and chance > 0.9:
            noun = self.pick(nouns)
            return Phrase(noun.plural, noun.plural, number, noun.gender)
        if chance > 0.87:
            owner = self.pick(lexicon.first_names()).text
            noun = self.pick(nouns)
            return Phrase(f"{owner}'s {noun.form(number)}", noun.form(number), number, noun.gender)
        return self.determined(number, nouns)

    def subject(self, number: Number) -> Phrase:
        """Draw a noun phrase that fits before a verb: half people, irregular nouns often."""
        chance = self.random.random()
        if chance < 0.3:
            return self.phrase(number, ("person",))
        if chance < 0.45:
            return self.determined(number, self.irregular)
        return self.phrase(number)

    # Verb phrases -------------------------------------------------------------------------

    def complement(self, verb: Verb) -> str:
        """Draw what follows a verb, with its leading space."""
        text = f" {verb.particle}" if verb.particle else ""
        if verb.kind == "any":
            text += " " + self.phrase(self.number()).text
        elif verb.kind == "thing":
            text += " " + self.determined(self.number(), things()).text
        elif verb.kind == "to":
            other = self.pick(lexicon.verbs("any", "thing", "none"))
            text += f" to {other.plain}{self.complement(other)}"
        elif verb.kind == "that":
            text += self.pick((" that ", " who ", " what "))
            text += self.inner(text)
        return text

    def inner(self, text: str) -> str:
        """Draw the clause after ``that``, ``who`` or ``what``."""
        if text.endswith(" that "):
            return self.clause(self.phrase(self.number()), plain=True)
        if text.endswith(" what "):
            return self.phrase(self.number()).text + " " + self.pick(lexicon.verbs("thing")).past
        return self.invariant(self.pick(lexicon.verbs("any", "none")))

    def invariant(self, verb: Verb) -> str:
        """Draw a verb phrase that shows no number."""
        auxiliary, form = self.pick(lexicon.INVARIANT)
        return f"{auxiliary} {verb.form(form)}".strip() + self.complement(verb)

    def predicate(self, subject: Phrase, critical: bool = False) -> Predicate:
        """Draw a verb phrase that agrees with its subject."""

        def draw() -> tuple[Predicate, str, str]:
            good, bad, rest = self._agreeing(subject.number)
            return Predicate(good, bad, rest), subject.head, good

        return self.bond("verb", draw, critical)

    def _agreeing(self, number: Number) -> Predicate:
        chance = self.random.random()
        if chance < 0.06:
            singular, plural, _ = self.pick(lexicon.AUXILIARIES[:4])
            return agreeing(number, singular, plural, " " + self.pick(lexicon.adjectives()))
        verb = self.pick(lexicon.verbs("any", "any", "any", "thing", "none", "to", "that"))
        if chance < 0.4:
            return agreeing(number, verb.singular, verb.plain, self.complement(verb))
        singular, plural, form = self.pick(lexicon.AUXILIARIES)
        rest = f" {verb.form(form)}{self.complement(verb)}"
        return agreeing(number, singular, plural, rest)

    def clause(self, subject: Phrase, plain: bool = False) -> str:
        """Draw a subject with a verb phrase, agreeing or not; ``plain``: with a simple object."""
        if plain:
            verb = self.pick(lexicon.verbs("any", "none"))
            return f"{subject.text} {self.invariant(verb)}"
        if self.random.random() < 0.5:
            verb = self.pick(lexicon.verbs("any", "thing", "none", "to"))
            return f"{subject.text} {self.invariant(verb)}"
        good, _, rest = self.predicate(subject)
        return f"{subject.text} {good}{rest}"


def agreeing(number: Number, singular: str, plural: str, rest: str) -> Predicate:
    """Return the predicate of a number, from the two forms of its agreeing word."""
    if number == "singular":
        return Predicate(singular, plural, rest)
    return Predicate(plural, singular, rest)


def article(determiner: str, following: str) -> str:
    """Return ``an`` for the determiner ``a`` before a vowel letter."""
    return "an" if determiner == "a" and following[0] in "aeiou" else determiner


def named(name: ProperNoun) -> Phrase:
    """Return the phrase that a proper noun is."""
    return Phrase(name.text, name.text, name.number, name.gender)


def things() -> tuple[Noun, ...]:
    """Return the nouns that do not name a person."""
    return lexicon.nouns_of("animal", "group", "place", "text", "thing")


# The paradigms ----------------------------------------------------------------------------


def _determiner_noun(grammar: Grammar, paradigm: str) -> Pair:
    """Draw ``determiner_noun_agreement_*``: 1 varies the noun, 2 the determiner."""
    number = grammar.number()
    nouns = grammar.irregular if "irregular" in paradigm else grammar.regular
    adjective = grammar.pick(lexicon.adjectives()) + " " if "adj" in paradigm else ""

    def draw() -> tuple[tuple[str, str, Noun], str, str]:
        place = grammar.pick((0, 1))
        word = lexicon.DEMONSTRATIVES[number][place]
        other = lexicon.DEMONSTRATIVES[OTHER[number]][place]
        noun = grammar.pick(nouns)
        return (word, other, noun), word, noun.form(number)

    word, other, noun = grammar.bond("determiner", draw)
    form, wrong = noun.form(number), noun.form(OTHER[number])
    if grammar.random.random() < 0.8:
        verb = grammar.pick(lexicon.verbs("any"))
        subject = grammar.phrase(grammar.number(), ("person",) if grammar.pick((0, 1)) else ())
        auxiliary, shape = grammar.pick(lexicon.INVARIANT)
        verbal = f"{auxiliary} {verb.form(shape)} {verb.particle}".strip()
        before, after = f"{subject.text} {verbal} ", "."
    else:
        before = ""
        after = " " + grammar.invariant(grammar.pick(lexicon.verbs("any", "none"))) + "."
    if paradigm.endswith("_1"):
        return Pair(paradigm, f"{before}{word} {adjective}", form, wrong, after, word)
    if not before:
        word, other = word.capitalize(), other.capitalize()
    return Pair(paradigm, before, word, other, f" {adjective}{form}{after}", form)


def _subject_verb(grammar: Grammar, paradigm: str) -> Pair:
    """Draw ``*_plural_subject_verb_agreement_*``: 1 varies the verb, 2 the subject."""
    number = grammar.number()
    nouns = grammar.irregular if paradigm.startswith("irregular") else grammar.regular
    if paradigm.endswith("_1"):
        subject = grammar.determined(number, nouns)
        if paradigm.startswith("regular") and grammar.random.random() < 0.25:
            subject = grammar.phrase(number)
        good, bad, rest = grammar.predicate(subject, critical=True)
        return Pair(paradigm, subject.text + " ", good, bad, rest + ".", subject.head)
    determiner = grammar.pick(lexicon.AMBIGUOUS_DETERMINERS)
    noun = grammar.pick(nouns)
    form = noun.form(number)
    phrase = Phrase(f"{determiner} {form}", form, number, noun.gender)
    good, _, rest = grammar.predicate(phrase, critical=True)
    wrong = noun.form(OTHER[number])
    return Pair(paradigm, determiner + " ", form, wrong, f" {good}{rest}.", good)


def _relational_noun(grammar: Grammar, paradigm: str) -> Pair:
    """Draw ``distractor_agreement_relational_noun``: a noun of the other number between."""
    number = grammar.number()
    owned = grammar.pick((True, False))
    kinds = ("relative",) if owned else ("text",)
    head = grammar.determined(number, lexicon.nouns_of(*kinds))
    between = "of" if owned else grammar.pick(("of", "about"))
    distractor = grammar.phrase(OTHER[number] if grammar.random.random() < 0.85 else number)
    good, bad, rest = grammar.predicate(head, critical=True)
    before = f"{head.text} {between} {distractor.text} "
    return Pair(paradigm, before, good, bad, rest + ".", head.head)


def _relative_clause(grammar: Grammar, paradigm: str) -> Pair:
    """Draw ``distractor_agreement_relative_clause``: the distractor in a relative clause."""
    number = grammar.number()
    head = grammar.determined(number, lexicon.nouns())
    relative = grammar.pick(("that", "that", "who" if head.gender != "i" else "that"))
    distractor = grammar.phrase(OTHER[number] if grammar.random.random() < 0.85 else number)
    verb = grammar.pick(lexicon.verbs("any"))
    shape = grammar.random.random()
    if shape < 0.5:
        auxiliary, form = grammar.pick(lexicon.INVARIANT)
        inner = f"{auxiliary} {verb.form(form)} {verb.particle}".strip() + " " + distractor.text
    elif shape < 0.85:
        singular, plural, form = grammar.pick(lexicon.AUXILIARIES)
        inner = f"{singular if number == 'singular' else plural} {verb.form(form)} "
        inner += f"{verb.particle} {distractor.text}".strip()
    else:
        inner = f"{verb.singular if number == 'singular' else verb.plain} "
        inner += f"{verb.particle} {distractor.text}".strip()
    good, bad, rest = grammar.predicate(head, critical=True)
    before = f"{head.text} {relative} {inner} "
    return Pair(paradigm, before, good, bad, rest + ".", head.head)


def _anaphor(grammar: Grammar, paradigm: str) -> Pair:
    """Draw ``anaphor_*_agreement``: a reflexive agrees in gender or number."""
    number: Number = "singular" if "gender" in paradigm else grammar.number()
    subject = _antecedent(grammar, number, gendered="gender" in paradigm)

    def draw() -> tuple[Verb, str, str]:
        verb = grammar.pick([v for v in lexicon.verbs("any") if v.particle in ("", "about", "to")])
        return verb, subject.head, verb.plain

    verb = grammar.bond("reflexive", draw)
    gender = grammar.pick(("m", "f")) if subject.gender == "n" else subject.gender
    good = "themselves" if number == "plural" else lexicon.REFLEXIVES[gender]
    if "gender" in paradigm:
        bad = grammar.pick([word for word in lexicon.REFLEXIVES.values() if word != good])
    elif number == "singular":
        bad = "themselves"
    else:
        bad = grammar.pick(list(lexicon.REFLEXIVES.values()))
    if grammar.random.random() < 0.5:
        auxiliary, form = grammar.pick(lexicon.INVARIANT)
    else:
        singular, plural, form = grammar.pick(lexicon.AUXILIARIES)
        auxiliary = singular if number == "singular" else plural
    verbal = f"{auxiliary} {verb.form(form)} {verb.particle}".strip()
    return Pair(paradigm, f"{subject.text} {verbal} ", good, bad, ".", subject.head)


def _antecedent(grammar: Grammar, number: Number, gendered: bool) -> Phrase:
    """Draw a subject for a reflexive: half of the time a name, where that is possible."""
    if number == "singular" and grammar.random.random() < 0.55:
        return named(grammar.pick(lexicon.first_names()))
    if gendered:
        nouns = [noun for noun in lexicon.nouns() if noun.gender in ("m", "f")]
        if grammar.random.random() < 0.4:
            nouns = list(lexicon.nouns_of("animal", "group", "place", "text"))
        return grammar.determined(number, nouns)
    return grammar.phrase(number)


_PARADIGMS: dict[str, Callable[[Grammar, str], Pair]] = {
    "determiner_noun_agreement_1": _determiner_noun,
    "determiner_noun_agreement_2": _determiner_noun,
    "determiner_noun_agreement_irregular_1": _determiner_noun,
    "determiner_noun_agreement_irregular_2": _determiner_noun,
    "determiner_noun_agreement_with_adjective_1": _determiner_noun,
    "determiner_noun_agreement_with_adj_2": _determiner_noun,
    "determiner_noun_agreement_with_adj_irregular_1": _determiner_noun,
    "determiner_noun_agreement_with_adj_irregular_2": _determiner_noun,
    "regular_plural_subject_verb_agreement_1": _subject_verb,
    "regular_plural_subject_verb_agreement_2": _subject_verb,
    "irregular_plural_subject_verb_agreement_1": _subject_verb,
    "irregular_plural_subject_verb_agreement_2": _subject_verb,
    "distractor_agreement_relational_noun": _relational_noun,
    "distractor_agreement_relative_clause": _relative_clause,
    "anaphor_gender_agreement": _anaphor,
    "anaphor_number_agreement": _anaphor,
}
PARADIGMS = tuple(_PARADIGMS)
_OFTEN = (*PARADIGMS, *["anaphor_gender_agreement"] * 4, "regular_plural_subject_verb_agreement_1")
"""What training draws from: a name's gender shows in few sentences, so these come more often."""
