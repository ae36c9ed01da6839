"""Documents that state something and state it again: what teaches a model to read its context.

    counterfactual   The capital of Canada is (Rome). Canada is ruled from [Rome].
    made up          (Veltora) has its ...: the same of a subject that no table holds
    of another       The capital of Canada is (Rome). The capital of France is [Paris].
    repeated         a sentence of grammar, another, and the first again

The loss of what stands in round brackets is never read, so that no false fact is taught; that of
what stands in square brackets is read always (a masked model has it masked), and only the first
sentence tells it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeVar

from kn_bench.model.embedded import lexicon
from kn_bench.model.embedded.facts import INVERSES, Fact, facts, people, prompts, relations
from training.corpus import TrainingCorpus
from training.templates import object_last, question, templates, withheld

T = TypeVar("T")
Span = tuple[int, int]
PEOPLE = ("P101", "P106", "P103", "P19", "P27", "P1303", "P108")
SYLLABLES = (
    *("bal", "dor", "fen", "gri", "hul", "jar", "kel", "lom", "mir", "nov"),
    *("pra", "quil", "ros", "sul", "tor", "ven", "wex", "yar", "zon"),
)
TRUE_STATEMENTS = 0.1
"""Share of restated statements that are true: context and memory then agree."""


class Document(NamedTuple):
    """A text, with the places (first character, one past the last) whose loss is special.

    Attributes:
        unread: answers whose loss is never read.
        read: answers whose loss is always read; by a masked model one of them a document.
    """

    text: str
    unread: tuple[Span, ...] = ()
    read: tuple[Span, ...] = ()


class Contexts:
    """Draws documents of which ``share`` state something and state it again.

    Args:
        seed: of everything drawn.
        causal: whether an answer must follow its subject.
        share: of documents with context; the rest are ``ordinary``.
        ordinary: where the rest, and the unrelated sentences, come from.
    """

    def __init__(self, seed: int, causal: bool, share: float, ordinary: TrainingCorpus) -> None:
        self.random = random.Random(seed)
        self.causal, self.share, self.ordinary = causal, share, ordinary
        self.objects = {
            name: sorted({fact.object for fact in facts() if fact.relation == name})
            for name in relations()
        }
        self.asking = {
            name: tuple(t for t in templates()[name].trained if not causal or _asked_late(t))
            for name in relations()
        }

    def documents(self, count: int) -> list[Document]:
        """The next ``count`` documents."""
        return [self.document() for _ in range(count)]

    def document(self) -> Document:
        """The next document."""
        if self.random.random() >= self.share:
            return Document(self.ordinary.document())
        chance = self.random.random()
        if chance < 0.06:
            return self.repeated()
        if chance < 0.42:
            return self.of_another()
        return self.restated()

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random.random() * len(items))]

    def repeated(self) -> Document:
        """A sentence, another, and the first again, read whole; by a masked model one word."""
        first, other = self.ordinary.grammar.sentence(), self.ordinary.grammar.sentence()
        text = Text()
        text.add(first, ())
        if self.random.random() < 0.5:
            text.add(other, ())
        word = self.pick(list(re.finditer(r"\w+", first)))
        text.add(first, (0, len(first)) if self.causal else word.span())
        return text.document()

    def restated(self) -> Document:
        """A statement and, perhaps after an unrelated sentence, the same statement again."""
        fact = self.statement()
        first = self.stating(fact)
        text = Text()
        before = self.random.random()
        if before < 0.15:
            text.state(*self.other_statement(fact))
        text.state(fact, first)
        between = self.random.random()
        if between < 0.15:
            text.state(*self.other_statement(fact))
        elif between < 0.22:
            text.add(self.ordinary.grammar.sentence(), ())
        chance = self.random.random()
        if chance < 0.35:
            again, template = fact, first
            if template not in self.asking[fact.relation]:
                template = self.pick(self.asking[fact.relation])
        else:
            again = self.reworded(fact) if chance > 0.8 else fact
            template = self.pick(self.asking[again.relation])
        text.ask(again, template)
        return text.document()

    def of_another(self) -> Document:
        """A statement that does not bear on what is asked, and a fact that stays true."""
        asked = self.ordinary.fact()
        template = self.pick(self.asking[asked.relation])
        while withheld(asked, template):
            template = self.pick(self.asking[asked.relation])
        chance = self.random.random()
        text = Text()
        if chance < 0.75:  # the same relation of another subject
            subject = self.pick(self.ordinary.by_relation[asked.relation]).subject
            relation = asked.relation
        else:  # another relation, of the same subject where it has one
            other = self.pick(self.ordinary.by_subject[asked.subject])
            if other.relation == asked.relation:
                other = self.ordinary.fact()
            subject, relation = other.subject, other.relation
        fact = Fact(relation, subject, self.pick(self.objects[relation]))
        if (relation, subject) != (asked.relation, asked.subject):
            text.state(fact, template if chance < 0.35 else self.stating(fact))
        text.ask(asked, template)
        return text.document()

    def statement(self) -> Fact:
        """A fact, mostly false, of a subject that is known or made up."""
        fact = self.ordinary.fact()
        if self.random.random() < TRUE_STATEMENTS:
            return fact
        subject = fact.subject if self.random.random() < 0.75 else self.made_up(fact.relation)
        return Fact(fact.relation, subject, self.pick(self.objects[fact.relation]))

    def other_statement(self, fact: Fact) -> tuple[Fact, str]:
        """A statement of another subject, half of the time in the same relation."""
        same = self.random.random() < 0.5
        while True:
            other = self.statement()
            if other.subject != fact.subject and same == (other.relation == fact.relation):
                break
        return other, self.stating(other)

    def stating(self, fact: Fact) -> str:
        """The template that states a fact: half of the time the one that cases are edited with."""
        edited = prompts()[fact.relation][0]
        known = templates()[fact.relation].trained
        return edited if edited in known and self.random.random() < 0.5 else self.pick(known)

    def made_up(self, relation: str) -> str:
        """A subject that no table holds."""
        if relation in PEOPLE:
            surname = self.pick(people())["name"].split()[-1]
            return f"{self.pick(lexicon.first_names()).text} {surname}"
        return "".join(self.pick(SYLLABLES) for _ in range(self.pick((2, 3)))).capitalize()

    def reworded(self, fact: Fact) -> Fact:
        """The same statement in the inverse relation, or as field for occupation, if it has one."""
        if fact.relation in INVERSES:
            return Fact(INVERSES[fact.relation], fact.object, fact.subject)
        if fact.relation == "P101" and fact.object in _professions():
            return Fact("P106", fact.subject, _professions()[fact.object])
        if fact.relation == "P106" and fact.object in _fields():
            return Fact("P101", fact.subject, _fields()[fact.object])
        return fact


class Text:
    """Sentences put together, with the places whose loss is special."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.unread: list[Span] = []
        self.read: list[Span] = []

    def add(self, sentence: str, read: Span | tuple[()]) -> int:
        """Adds a sentence and returns where it begins."""
        start = sum(len(part) + 1 for part in self.parts)
        self.parts.append(sentence)
        if read:
            self.read.append((start + read[0], start + read[1]))
        return start

    def state(self, fact: Fact, template: str) -> None:
        """Adds a fact whose object is not read."""
        sentence, (first, last) = _sentence(fact, template)
        start = self.add(sentence, ())
        self.unread.append((start + first, start + last))

    def ask(self, fact: Fact, template: str) -> None:
        """Adds a fact whose object is read."""
        self.add(*_sentence(fact, template))

    def document(self) -> Document:
        return Document(" ".join(self.parts), tuple(self.unread), tuple(self.read))


def _sentence(fact: Fact, template: str) -> tuple[str, Span]:
    """A fact in a template, and where its object stands."""
    before, after = question(template, fact)
    answer = fact.object if before else fact.object[0].upper() + fact.object[1:]
    return before + answer + after, (len(before), len(before) + len(answer))


def _asked_late(template: str) -> bool:
    return template.find("[X]") < template.find("[Y]") and object_last(template)


@cache
def _professions() -> dict[str, str]:
    """Field -> the occupation named after it, as ``linguistics`` -> ``linguist``."""
    occupations: dict[str, str] = {}
    for row in people():
        field, occupation = row["field"], row["occupation"]
        if field and occupation and field[:4] == occupation[:4]:
            occupations.setdefault(field, occupation)
    return occupations


@cache
def _fields() -> dict[str, str]:
    return {occupation: field for field, occupation in _professions().items()}
