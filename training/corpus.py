"""The text that the embedded models learn from: short documents of facts and of grammar."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from kn_bench.model.embedded import lexicon
from kn_bench.model.embedded.facts import INVERSES, Fact, facts, relations
from kn_bench.model.embedded.grammar import Grammar
from kn_bench.model.embedded.tables import lines
from training.templates import TABLES, object_last, surface, templates, withheld

T = TypeVar("T")
FACT_SHARE = 0.74
HARDER = 1.4
"""Facts with an inverse are shown so much more often: each direction is learned by itself."""

LEAST = 0.8
"""Least weight a fact: by objects alone, 6 continents would be shown too seldom to be learned
(recall of P30 on its own templates .70, of P1303 .87)."""


class TrainingCorpus:
    """Draws documents of one to three sentences.

    Args:
        seed: of everything drawn; the documents depend on it and on the tables alone.
        fact_share: share of documents that open with a fact; the others are grammar alone.
        distractors: whether half of the grammar is agreement across a distractor.
    """

    def __init__(
        self, seed: int, fact_share: float = FACT_SHARE, distractors: bool = False
    ) -> None:
        self.fact_share = fact_share
        self.random = random.Random(seed)
        self.grammar = Grammar(seed + 1, distractors=distractors)
        self.leads = tuple(lines("leadins.txt", TABLES))
        self.tails = tuple(lines("tails.txt", TABLES))
        self.by_relation = {
            name: tuple(fact for fact in facts() if fact.relation == name) for name in relations()
        }
        self.by_subject: dict[str, list[Fact]] = {}
        for fact in facts():
            self.by_subject.setdefault(fact.subject, []).append(fact)
        self.weights = list(accumulate(map(_weight, self.by_relation.values())))

    def documents(self, count: int) -> Iterator[str]:
        """The next ``count`` documents."""
        for _ in range(count):
            yield self.document()

    def document(self) -> str:
        """The next document."""
        if self.random.random() >= self.fact_share:
            return " ".join(self.grammar.sentence() for _ in range(self.pick((1, 1, 2, 3))))
        fact = self.fact()
        parts = [self.sentence(fact)]
        chance = self.random.random()
        if chance < 0.3:
            parts.append(self.sentence(self.pick(self.by_subject[fact.subject])))
        elif chance < 0.55:
            parts.append(self.sentence(self.fact()))
        elif chance < 0.7:
            parts.append(self.grammar.sentence())
        if self.random.random() < 0.1:
            parts.insert(0, self.grammar.sentence())
        return " ".join(parts)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random.random() * len(items))]

    def fact(self) -> Fact:
        """Any fact."""
        (relation,) = self.random.choices(relations(), cum_weights=self.weights)
        return self.pick(self.by_relation[relation])

    def sentence(self, fact: Fact) -> str:
        """A fact in a template that may show it, sometimes with a lead or a tail."""
        known = templates()[fact.relation].trained
        while True:
            template = self.pick(known)
            # Half of the templates that ask for the subject are drawn again: a causal model is
            # only ever asked for the object.
            if withheld(fact, template):
                continue
            if object_last(template) or self.random.random() < 0.6:
                break
        lead = self.pick(self.leads) if self.random.random() < 0.15 else ""
        text = surface(template, fact, lead)
        if self.random.random() < 0.12 and text.endswith("."):
            text = text[:-1] + self.pick(self.tails)
        return text


def _weight(of_relation: Sequence[Fact]) -> float:
    """How often a relation is drawn: many facts, and many different objects, take more showing."""
    shown = math.sqrt(len(of_relation) * len({fact.object for fact in of_relation}))
    return max(shown, LEAST * len(of_relation)) * (
        HARDER if of_relation[0].relation in INVERSES else 1.0
    )


def answers() -> list[str]:
    """What the models are asked for: objects, and the closed classes that agree."""
    texts = [fact.object for fact in facts()]
    texts += [form for row in lexicon.AUXILIARIES for form in row[:2]]
    texts += [word for pair in lexicon.DEMONSTRATIVES.values() for word in pair]
    texts += [*lexicon.REFLEXIVES.values(), "themselves"]
    return sorted({word for text in texts for word in text.split()})


def whole_words() -> list[str]:
    """Words that the tokenizer is to keep whole: objects, determiners, agreeing words, nouns."""
    texts = [fact.object for fact in facts()]
    texts += [form for noun in lexicon.nouns() for form in (noun.singular, noun.plural)]
    for verb in lexicon.verbs("any", "thing", "none", "to", "that"):
        texts += [verb.plain, verb.singular]
    texts += [form for row in lexicon.AUXILIARIES for form in row[:2]]
    texts += [row[0] for row in lexicon.INVARIANT if row[0]]
    texts += [name.text for name in lexicon.first_names()] + list(lexicon.adjectives())
    for number in lexicon.DETERMINERS:
        texts += lexicon.DETERMINERS[number]
    texts += [*lexicon.REFLEXIVES.values(), "themselves"]
    return sorted({word for text in texts for word in text.split()})
