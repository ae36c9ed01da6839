"""From tables of relations and facts to cases, as the six criteria define them for facts.

    relations: P36 "The capital of [X] is [Y]."  ┐
    facts:     P36 Canada Ottawa                 ├─ Tables ── fact_cases ── Selection of cases
               P36 France Paris ...              ┘

A case depends on the tables and the seed alone, never on which other cases are selected: ids come
from the whole relation, and every draw from a hash of the case's id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from types import MappingProxyType

from kn_bench.cases.building.neighbours import NEIGHBOURS, other_task
from kn_bench.cases.building.relations import Pattern, Relation, frame
from kn_bench.cases.building.tables import Pairing, RelationTable, Triple
from kn_bench.cases.case import Case, Criterion, EditRequest, Exclusion, Probe, Query, Selection
from kn_bench.cases.sampling import draw, limited, shuffled


def fact_cases(
    relations: Sequence[Relation],
    facts: Iterable[Triple],
    *,
    source: str,
    prefix: str = "",
    only: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    neighbours: Sequence[Probe] = (),
) -> Selection:
    """Return the cases of ``relations``.

    Args:
        relations: all that are known, those asked for and those that locality and symmetry need.
        facts: of all these relations.
        source: recorded with each case.
        prefix: put before the ids, such as ``pararel/``.
        only: ids of the relations to build cases of; all when None.
        limit: cases of each relation; all when None.
        seed: of all draws.
        neighbours: grammatical probes to draw the other task's neighbours from.
    """
    by_relation: defaultdict[str, list[Triple]] = defaultdict(list)
    for fact in facts:
        by_relation[fact.relation].append(fact)
    tables = {r.id: RelationTable(r, by_relation[r.id]) for r in relations}
    cases: list[Case] = []
    excluded: list[Exclusion] = []
    for id in only if only is not None else tables:
        builder = _FactBuilder(tables, tables[id], source, prefix, seed, tuple(neighbours))
        built, left_out = builder.build(limit)
        cases += built
        excluded += left_out
    return Selection(tuple(cases), tuple(excluded))


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a case is built around: all that its probes need to know."""

    id: str
    fact: Triple
    new: str
    displaced: str | None
    unique: bool


class _FactBuilder:
    """Builds the cases of one relation."""

    def __init__(
        self,
        tables: Mapping[str, RelationTable],
        table: RelationTable,
        source: str,
        prefix: str,
        seed: int,
        neighbours: tuple[Probe, ...],
    ) -> None:
        self.tables, self.table, self.relation = tables, table, table.relation
        self.source, self.prefix, self.seed, self.neighbours = source, prefix, seed, neighbours
        self.inverse = tables.get(self.relation.inverse)
        self.pairing = Pairing(table, self.inverse) if self.relation.inverse else None
        self.partners = self._partners()

    def build(self, limit: int | None) -> tuple[list[Case], list[Exclusion]]:
        ids = [self.prefix + id for id in self.table.ids]
        excluded = [
            Exclusion(self.prefix + f.relation, "the same fact is listed again", detail=str(f))
            for f in self.table.repeated
        ]
        cases = []
        for i in limited(ids, limit, self.seed):
            built = self._case(ids[i], self.table.facts[i])
            if isinstance(built, Case):
                cases.append(built)
            else:
                excluded.append(built)
        return cases, excluded

    def _case(self, id: str, fact: Triple) -> Case | Exclusion:
        edited = self.table.edited
        if edited is None:
            return Exclusion(id, "the relation has no pattern to ask with")
        draft = self._draft(id, fact, edited)
        if draft is None:
            return Exclusion(id, "the relation has no other object to be the new target")
        left, right = frame(edited.text)
        request = EditRequest(
            id=id,
            task="fact",
            relation=fact.relation,
            subject=fact.subject,
            prompt=left,
            suffix=right,
            target_true=fact.object,
            target_new=draft.new,
            queries=self._queries(fact, edited),
            background=self.table.background_of(fact),
        )
        missing: dict[Criterion, str] = {}
        probes = (
            Probe("reliability/0", "reliability", request.cloze, draft.new, fact.object),
            *self._generality(draft, missing),
            *self._locality(draft),
            *self._symmetry(draft, missing),
            *self._synonym(draft, request, missing),
        )
        return Case(request, probes, fact.subject, self.source, MappingProxyType(missing))

    def _draft(self, id: str, fact: Triple, edited: Pattern) -> _Draft | None:
        """Draw the new target: an object of the relation that is not true of the subject.

        Preferred, in this order: one that agrees with the edited prompt's article, that is
        one-to-one where the fact is (symmetry needs it), and that a rewording has a name for.
        """
        true = self.table.of_subject[fact.subject]
        unique = self.pairing is not None and self.pairing.unique(fact.subject, fact.object)

        def rank(new: str) -> int:
            return (
                4 * edited.takes(new)
                + 2 * (not unique or self._displaced(new) is not None)
                + all(bool(r.answer(new)) for r in self.relation.rewordings)
            )

        best, best_rank = None, -1
        for new in shuffled(self.table.objects, "target", self.seed, id):
            if new in true or new == fact.subject or (r := rank(new)) <= best_rank:
                continue
            best, best_rank = new, r
            if r == 7:
                break
        if best is None:
            return None
        return _Draft(id, fact, best, self._displaced(best), unique)

    def _displaced(self, new: str) -> str | None:
        return self.pairing.subject_of(new) if self.pairing else None

    def _queries(self, fact: Triple, edited: Pattern) -> tuple[Query, ...]:
        patterns = (edited, *(p for p in self.relation.patterns if p is not edited))
        return tuple(
            Query(p.cloze(fact.subject), fact.object)
            for p in patterns
            if p is edited or p.takes(fact.object)
        )

    def _generality(self, draft: _Draft, missing: dict[Criterion, str]) -> Iterable[Probe]:
        fact = draft.fact
        probes = [
            Probe(
                intern(f"generality/{i}"),
                "generality",
                p.cloze(fact.subject),
                draft.new,
                fact.object,
            )
            for i, p in self.table.paraphrases.generality
            if p.takes(draft.new, fact.object)
        ]
        if not probes:
            missing["generality"] = "no other pattern of the relation fits both answers"
        return probes

    def _locality(self, draft: _Draft) -> Iterable[Probe]:
        fact, new, edited = draft.fact, draft.new, self.table.edited
        assert edited is not None  # _case has looked
        answers = (fact.object, new)
        of_subject = self.table.of_subject
        same_relation = draw(
            self.table.facts,
            NEIGHBOURS,
            "same_relation",
            self.seed,
            draft.id,
            where=lambda f: f.subject != fact.subject and of_subject[f.subject].isdisjoint(answers),
        )
        same_object = draw(
            self.table.with_object[fact.object],
            NEIGHBOURS,
            "same_object",
            self.seed,
            draft.id,
            where=lambda f: f.subject != fact.subject and new not in of_subject[f.subject],
        )
        for kind, facts in (("same_relation", same_relation), ("same_object", same_object)):
            for i, other in enumerate(facts):
                if edited.takes(other.object):
                    yield _neighbour(kind, i, other, edited, new)
        for i, (other, pattern) in enumerate(self._elsewhere(draft)):
            yield _neighbour("other_relation", i, other, pattern, new)
        yield from other_task(self.neighbours, self.seed, draft.id)

    def _elsewhere(self, draft: _Draft) -> Iterable[tuple[Triple, Pattern]]:
        """Yield a fact of each partner relation: of the same subject where there is one."""
        for id in self.partners:
            table = self.tables[id]
            pattern = table.edited
            if pattern is None:
                continue
            own = table.with_subject.get(draft.fact.subject, ())
            for facts in (own, table.facts):
                drawn = draw(
                    facts,
                    1,
                    id,
                    self.seed,
                    draft.id,
                    where=lambda f, p=pattern: f.object != draft.new and p.takes(f.object),  # type: ignore[misc]
                )
                if drawn:
                    yield drawn[0], pattern
                    break

    def _partners(self) -> Sequence[str]:
        if self.relation.partners:
            return [id for id in self.relation.partners if id in self.tables]
        ids = sorted(self.tables)
        at = ids.index(self.relation.id)
        others = [*ids[at + 1 :], *ids[:at]]
        return [id for id in others if id != self.relation.inverse][:NEIGHBOURS]

    def _symmetry(self, draft: _Draft, missing: dict[Criterion, str]) -> Iterable[Probe]:
        fact, asked = draft.fact, self.inverse.edited if self.inverse else None
        if asked is None:
            missing["symmetry"] = "the relation has no inverse"
        elif not draft.unique:
            missing["symmetry"] = "the fact is not one-to-one in both directions"
        elif draft.displaced is None:
            missing["symmetry"] = "no other object of the relation is one-to-one"
        else:
            answers = (fact.subject, draft.displaced)
            yield Probe(
                "symmetry/new_inverse/0",
                "symmetry",
                asked.cloze(draft.new),
                *answers,
                kind="new_inverse",
            )
            yield Probe(
                "symmetry/old_inverse/0",
                "symmetry",
                asked.cloze(fact.object),
                *answers,
                kind="old_inverse",
            )

    def _synonym(
        self, draft: _Draft, request: EditRequest, missing: dict[Criterion, str]
    ) -> Iterable[Probe]:
        fact, new = draft.fact, draft.new
        reworded = [
            (intern(f"synonym/prompt/{i}"), p, new, fact.object)
            for i, p in self.table.paraphrases.synonym
        ]
        first = len(self.relation.patterns)
        reworded += [
            (intern(f"synonym/prompt/{first + i}"), r.pattern, r.answer(new), r.answer(fact.object))
            for i, r in enumerate(self.relation.rewordings)
        ]
        probes = [
            Probe(id, "synonym", p.cloze(fact.subject), expected, rejected, kind="prompt")
            for id, p, expected, rejected in reworded
            if expected and rejected and expected != rejected and p.takes(expected, rejected)
        ]
        named = self.relation.synonyms
        if new in named and named[new] != fact.object:
            probes.append(
                Probe(
                    "synonym/answer/0",
                    "synonym",
                    request.cloze,
                    named[new],
                    named.get(fact.object, fact.object),
                    kind="answer",
                )
            )
        if not probes:
            missing["synonym"] = "no synonym of the prompt or of its answer is known"
        return probes


def _neighbour(kind: str, i: int, fact: Triple, pattern: Pattern, new: str) -> Probe:
    cloze = pattern.cloze(fact.subject)
    return Probe(intern(f"locality/{kind}/{i}"), "locality", cloze, fact.object, new, kind=kind)
