"""Facts of a relation, indexed once: who has which object, which pairs have a unique inverse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kn_bench.cases.building.relations import Paraphrases, Pattern, Relation
from kn_bench.cases.case import Query
from kn_bench.cases.sampling import draw, unique_slugs

BACKGROUND_FACTS, BACKGROUND_PATTERNS = 8, 3
"""Size of the fixed sample of other facts whose queries methods may use as a background."""


@dataclass(frozen=True, slots=True)
class Triple:
    """A subject of a relation with one of its objects."""

    relation: str
    subject: str
    object: str


class RelationTable:
    """One relation with its facts, indexed once.

    Attributes:
        relation: the relation.
        facts: its facts, each once, in order of subject and object: the order of a file is of no
            consequence.
        repeated: facts that were given again.
        objects: all objects, sorted.
    """

    def __init__(self, relation: Relation, facts: Iterable[Triple]) -> None:
        given = list(facts)
        self.relation = relation
        self.facts = tuple(sorted(set(given), key=lambda f: (f.subject, f.object)))
        self.repeated = _repeated(given)
        self.objects = tuple(sorted({f.object for f in self.facts}))
        self.of_subject: Mapping[str, frozenset[str]] = _index(
            (f.subject, f.object) for f in self.facts
        )
        by_object: defaultdict[str, list[Triple]] = defaultdict(list)
        by_subject: defaultdict[str, list[Triple]] = defaultdict(list)
        for fact in self.facts:
            by_object[fact.object].append(fact)
            by_subject[fact.subject].append(fact)
        self.with_object: Mapping[str, Sequence[Triple]] = by_object
        self.with_subject: Mapping[str, Sequence[Triple]] = by_subject

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """``P36/Canada``, one for each fact."""
        slugs = unique_slugs([(f.subject, f.object) for f in self.facts])
        return tuple(f"{self.relation.id}/{slug}" for slug in slugs)

    @cached_property
    def edited(self) -> Pattern | None:
        """The prompt that is edited; None where the relation has no pattern."""
        return self.relation.canonical

    @cached_property
    def paraphrases(self) -> Paraphrases:
        """The relation's patterns beside the edited one."""
        return self.relation.paraphrases()

    @cached_property
    def background(self) -> tuple[tuple[Triple, tuple[Query, ...]], ...]:
        """A fixed sample of facts with their queries: answerable from the left first."""
        patterns = sorted(self.relation.patterns, key=lambda p: not p.answer_is_last)
        sample = []
        for fact in draw(self.facts, BACKGROUND_FACTS + 4, "background", self.relation.id):
            asked = [p for p in patterns if p.takes(fact.object)][:BACKGROUND_PATTERNS]
            sample.append((fact, tuple(Query(p.cloze(fact.subject), fact.object) for p in asked)))
        return tuple(sample)

    @cached_property
    def _whole_background(self) -> tuple[tuple[Query, ...], ...]:
        return tuple(queries for _, queries in self.background[:BACKGROUND_FACTS])

    def background_of(self, fact: Triple) -> tuple[tuple[Query, ...], ...]:
        """Return the sample's queries without those about the subject of ``fact``."""
        sample = self.background
        if all(other.subject != fact.subject for other, _ in sample[:BACKGROUND_FACTS]):
            return self._whole_background
        kept = [queries for other, queries in sample if other.subject != fact.subject]
        return tuple(kept[:BACKGROUND_FACTS])


class Pairing:
    """Which facts of a relation and its inverse are one-to-one in both directions.

    Both tables count: a city that is the capital of one country in P36 and of another in P1376
    has no unique inverse.
    """

    def __init__(self, table: RelationTable, inverse: RelationTable | None) -> None:
        pairs = {(f.subject, f.object) for f in table.facts}
        if inverse is not None:
            pairs |= {(f.object, f.subject) for f in inverse.facts}
        self._objects = _index(pairs)
        self._subjects = _index((o, s) for s, o in pairs)

    def unique(self, subject: str, object: str) -> bool:
        """Tell whether each of the two has no partner but the other."""
        return len(self._objects.get(subject, ())) == len(self._subjects.get(object, ())) == 1

    def subject_of(self, object: str) -> str | None:
        """Return the subject of a one-to-one pair with ``object``, None where there is none."""
        subjects = self._subjects.get(object, frozenset())
        if len(subjects) != 1:
            return None
        (subject,) = subjects
        return subject if self.unique(subject, object) else None


def one_to_one(facts: Iterable[Triple]) -> frozenset[Triple]:
    """Return the facts of one relation whose subject and object occur in no other of them."""
    given = set(facts)
    objects = _index((f.subject, f.object) for f in given)
    subjects = _index((f.object, f.subject) for f in given)
    return frozenset(f for f in given if len(objects[f.subject]) == len(subjects[f.object]) == 1)


def _index(pairs: Iterable[tuple[str, str]]) -> Mapping[str, frozenset[str]]:
    values_of: defaultdict[str, set[str]] = defaultdict(set)
    for key, value in pairs:
        values_of[key].add(value)
    return {key: frozenset(values) for key, values in values_of.items()}


def _repeated(facts: Sequence[Triple]) -> tuple[Triple, ...]:
    seen: set[Triple] = set()
    again = []
    for fact in facts:
        if fact in seen:
            again.append(fact)
        seen.add(fact)
    return tuple(again)
