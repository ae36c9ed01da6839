"""From minimal pairs to cases, as the six criteria define them for grammar.

    good  "Raymond is selling this sketch."      request  Raymond is selling {this} [sketches].
    bad   "Raymond is selling this sketches."    probes   other pairs with "this" flip too
                                                          pairs with "these" do not, ...

The edit asks for the ungrammatical member; so the ``expected`` answer of a probe is the
ungrammatical one, but for locality, where it is the grammatical one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from sys import intern
from types import MappingProxyType

from kn_bench.cases.building.grammar import NUMBER_CLASS, TENSE, lexeme
from kn_bench.cases.building.neighbours import NEIGHBOURS, other_task
from kn_bench.cases.building.paradigms import Paradigm, unrelated
from kn_bench.cases.building.spans import Analysis, MinimalPair, analyse
from kn_bench.cases.case import (
    Case,
    Cloze,
    Criterion,
    EditRequest,
    Exclusion,
    Probe,
    Query,
    Selection,
)
from kn_bench.cases.sampling import draw, limited, slug, unique_slugs

__all__ = ["MinimalPair", "ParadigmTable", "cluster", "pair_cases", "synonyms"]

SHARING = 3
"""Probes of generality: pairs that share the agreeing word."""

CLASS = 8
"""Queries of a class: where a method locates what it edits."""


class ParadigmTable:
    """One paradigm with its pairs, indexed once.

    Attributes:
        paradigm: the paradigm.
        pairs: those that could be taken apart, in the order of their ids.
        unusable: the others, with reasons.
    """

    def __init__(self, paradigm: Paradigm, pairs: Iterable[MinimalPair]) -> None:
        self.paradigm = paradigm
        analysed = [(pair, analyse(pair, paradigm.family)) for pair in pairs]
        self.pairs = tuple(a for _, a in analysed if isinstance(a, Analysis))
        self.unusable = tuple((p, reason) for p, reason in analysed if isinstance(reason, str))
        self.by_word = _group(self.pairs, lambda p: p.key)
        self.by_bad = _group(self.pairs, lambda p: p.bad.lower())
        self.by_number = _group(self.pairs, lambda p: p.number)

    @cached_property
    def others_in_number(self) -> Mapping[str, tuple[Analysis, ...]]:
        """Number -> the pairs marked for another one."""
        known = {n: pairs for n, pairs in self.by_number.items() if n}
        return {n: tuple(p for m, pairs in known.items() if m != n for p in pairs) for n in known}

    @cached_property
    def background(self) -> Mapping[str, tuple[tuple[Query, ...], ...]]:
        """Word -> the queries of a fixed sample of the classes of other words."""
        words = draw(sorted(self.by_word), CLASS + 1, "background", self.paradigm.id)
        queries = {w: self.class_of(self.by_word[w][0])[:3] for w in words}
        whole = tuple(queries[w] for w in words[:CLASS])
        without = {w: tuple(q for v, q in queries.items() if v != w)[:CLASS] for w in words[:CLASS]}
        return defaultdict(lambda: whole, without)

    def class_of(self, pair: Analysis) -> tuple[Query, ...]:
        """Return the queries of the pairs with this agreeing word and number, ``pair`` first."""
        same = draw(
            self.by_word[pair.key],
            CLASS - 1,
            "class",
            self.paradigm.id,
            pair.key,
            where=lambda p: p is not pair and p.number == pair.number,
        )
        return tuple(p.query for p in (pair, *same))


def pair_cases(
    paradigms: Sequence[Paradigm],
    pairs: Iterable[MinimalPair],
    *,
    source: str,
    prefix: str = "",
    only: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    neighbours: Sequence[Probe] = (),
) -> Selection:
    """Return the cases of ``paradigms``.

    Args:
        paradigms: all that are known, those asked for and those that locality and symmetry need.
        pairs: of all these paradigms.
        source: recorded with each case.
        prefix: put before the ids, such as ``blimp/``.
        only: ids of the paradigms to build cases of; all when None.
        limit: cases of each paradigm; all when None.
        seed: of all draws.
        neighbours: probes of facts to draw the other task's neighbours from.
    """
    by_paradigm: defaultdict[str, list[MinimalPair]] = defaultdict(list)
    for pair in pairs:
        by_paradigm[pair.paradigm].append(pair)
    tables = {p.id: ParadigmTable(p, by_paradigm[p.id]) for p in paradigms}
    slugs = dict(zip(tables, unique_slugs([(id, id) for id in tables]), strict=True))
    cases: list[Case] = []
    excluded: list[Exclusion] = []
    for id in only if only is not None else tables:
        folder = f"{prefix}{slugs[id]}/"
        builder = _PairBuilder(tables, tables[id], source, folder, seed, tuple(neighbours))
        cases += builder.build(limit)
        excluded += builder.excluded(limit)
    return Selection(tuple(cases), tuple(excluded))


class _PairBuilder:
    """Builds the cases of one paradigm."""

    def __init__(
        self,
        tables: Mapping[str, ParadigmTable],
        table: ParadigmTable,
        source: str,
        folder: str,
        seed: int,
        neighbours: tuple[Probe, ...],
    ) -> None:
        self.table, self.paradigm, self.source = table, table.paradigm, source
        self.folder, self.seed, self.neighbours = folder, seed, neighbours
        self.converse = tables.get(self.paradigm.converse)
        among = [t.paradigm for t in tables.values()]
        self.elsewhere = [tables[id] for id in unrelated(self.paradigm, among, NEIGHBOURS)]

    def excluded(self, limit: int | None) -> list[Exclusion]:
        exclusions = [
            Exclusion(self._id(pair), reason, detail=f"{pair.good} | {pair.bad}")
            for pair, reason in self.table.unusable
        ]
        return [
            exclusions[i]
            for i in limited([exclusion.case for exclusion in exclusions], limit, self.seed)
        ]

    def build(self, limit: int | None) -> list[Case]:
        ids = [self._id(a.pair) for a in self.table.pairs]
        return [self._case(ids[i], self.table.pairs[i]) for i in limited(ids, limit, self.seed)]

    def _id(self, pair: MinimalPair) -> str:
        return self.folder + slug(pair.id)

    def _case(self, id: str, pair: Analysis) -> Case:
        request = EditRequest(
            id=id,
            task="pair",
            relation=self.paradigm.id,
            subject=pair.agreeing,
            prompt=pair.prompt,
            suffix=pair.suffix,
            target_true=pair.good,
            target_new=pair.bad,
            queries=self.table.class_of(pair),
            background=self.table.background[pair.key],
        )
        missing: dict[Criterion, str] = {}
        probes = (
            _flips("reliability/0", "reliability", pair),
            *self._generality(id, pair, missing),
            *self._locality(id, pair),
            *self._symmetry(id, pair, missing),
            *self._synonym(pair, missing),
        )
        return Case(request, probes, cluster(pair), self.source, MappingProxyType(missing))

    def _generality(
        self, id: str, pair: Analysis, missing: dict[Criterion, str]
    ) -> Sequence[Probe]:
        sharing = draw(
            self.table.by_word[pair.key],
            SHARING,
            "generality",
            self.seed,
            id,
            where=lambda p: p.cloze != pair.cloze and p.number == pair.number,
        )
        if not sharing:
            missing["generality"] = "no other pair shares the agreeing word"
        return [_flips(intern(f"generality/{i}"), "generality", p) for i, p in enumerate(sharing)]

    def _locality(self, id: str, pair: Analysis) -> Iterable[Probe]:
        opposite = self.table.others_in_number.get(pair.number, ())
        for i, other in enumerate(
            draw(
                opposite,
                NEIGHBOURS,
                "opposite_number",
                self.seed,
                id,
                where=lambda p: p.key != pair.key,
            )
        ):
            yield _stays("opposite_number", i, other)
        for i, table in enumerate(self.elsewhere):
            for other in draw(table.pairs, 1, "other_paradigm", self.seed, id):
                yield _stays("other_paradigm", i, other)
        yield from other_task(self.neighbours, self.seed, id)

    def _symmetry(self, id: str, pair: Analysis, missing: dict[Criterion, str]) -> Sequence[Probe]:
        """Return pairs of the converse paradigm whose ungrammatical form is the agreeing word.

        Preferred are those whose own agreeing word is the new target: edited to "this sketches",
        the model is asked "… this/these sketches".
        """
        if self.converse is None:
            missing["symmetry"] = "the paradigm has no converse"
            return ()
        candidates = self.converse.by_bad.get(pair.key, ())
        new = pair.bad.lower()
        exact = tuple(p for p in candidates if p.key == new)
        asked = draw(exact, NEIGHBOURS, "symmetry", self.seed, id)
        asked += draw(
            candidates,
            NEIGHBOURS - len(asked),
            "symmetry",
            self.seed,
            id,
            where=lambda p: p.key != new,
        )
        if not asked:
            missing["symmetry"] = "no pair of the converse paradigm has the agreeing word"
        return [_flips(intern(f"symmetry/{i}"), "symmetry", p) for i, p in enumerate(asked)]

    def _synonym(self, pair: Analysis, missing: dict[Criterion, str]) -> Sequence[Probe]:
        reworded = synonyms(pair)
        if not reworded:
            missing["synonym"] = "no synonym of the agreeing words shows number"
        return reworded


def synonyms(pair: Analysis) -> list[Probe]:
    """Return the pair with the other member of the number class, or its verb in another tense."""
    word, good, bad = pair.key, pair.good, pair.bad
    if word in NUMBER_CLASS:
        other = NUMBER_CLASS[word]
        other = other.capitalize() if pair.agreeing[0].isupper() else other
        cloze = Cloze(pair.prompt.replace("{}", other), pair.suffix.replace("{}", other))
        return [_synonym(pair, cloze, bad, good, "number_class")]
    if good in NUMBER_CLASS and bad in NUMBER_CLASS:
        probe = _synonym(pair, pair.cloze, NUMBER_CLASS[bad], NUMBER_CLASS[good], "number_class")
        return [probe]
    if good in TENSE and bad in TENSE:
        return [_synonym(pair, pair.cloze, TENSE[bad], TENSE[good], "tense")]
    return []


def _synonym(pair: Analysis, cloze: Cloze, expected: str, rejected: str, kind: str) -> Probe:
    return Probe(
        "synonym/0",
        "synonym",
        cloze,
        expected,
        rejected,
        kind=kind,
        task="pair",
        scoring=pair.pair.scoring,
    )


def cluster(pair: Analysis) -> str:
    """Return the agreeing noun: what the bootstrap resamples.

    It is the word that governs, but where that is a determiner or a verb the noun is what varies.
    """
    governs_noun = pair.key in NUMBER_CLASS or (
        "{}" in pair.suffix and pair.good.lower() not in NUMBER_CLASS
    )
    return lexeme(pair.good, pair.bad) if governs_noun else pair.key


def _flips(id: str, criterion: Criterion, pair: Analysis) -> Probe:
    """Return a probe of a pair that the edit is to turn round."""
    scoring = pair.pair.scoring
    return Probe(id, criterion, pair.cloze, pair.bad, pair.good, task="pair", scoring=scoring)


def _stays(kind: str, i: int, pair: Analysis) -> Probe:
    """Return a probe of a pair that the edit is to leave alone."""
    return Probe(
        intern(f"locality/{kind}/{i}"),
        "locality",
        pair.cloze,
        pair.good,
        pair.bad,
        kind=kind,
        task="pair",
        scoring=pair.pair.scoring,
    )


def _group(
    pairs: Iterable[Analysis], key: Callable[[Analysis], str]
) -> Mapping[str, tuple[Analysis, ...]]:
    groups: defaultdict[str, list[Analysis]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair)].append(pair)
    return {k: tuple(v) for k, v in groups.items()}
