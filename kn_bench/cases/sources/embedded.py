"""Cases for the models that ship with the package: their own fact tables and their own grammar.

    tables/prompts.txt  P36 "The name of the capital of [X] is [Y]."  ┐
    facts               P36 Canada Ottawa                             ├─ fact_cases ─┐
    grammar             "This boy hugs the cats." / "This boy hug …"  ── pair_cases ─┴─ Selection

The pairs turn on combinations of words that training never showed, and on few nouns, so that
pairs share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import MappingProxyType

from kn_bench.cases.building.facts import fact_cases
from kn_bench.cases.building.pairs import pair_cases
from kn_bench.cases.building.paradigms import BLIMP, Paradigm
from kn_bench.cases.building.relations import Pattern, Relation, Rewording
from kn_bench.cases.building.spans import Analysis, MinimalPair, analyse
from kn_bench.cases.building.tables import Triple
from kn_bench.cases.case import Probe, Scoring, Selection
from kn_bench.cases.sampling import draw
from kn_bench.model.embedded import facts as taught
from kn_bench.model.embedded import grammar, lexicon

SOURCE = "embedded"
INVERSES = {"P36": "P1376", "P1376": "P36"}
PAIRS = 100
"""Pairs of each paradigm."""
NOUNS = 16
"""Nouns of each kind (regular and irregular) that pairs turn on."""
OTHER_TASK = 24
"""Probes that locality draws the other task's neighbours from."""


def load(
    *,
    only: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    real: bool = False,
) -> Selection:
    """Return the embedded cases.

    Args:
        only: relations and paradigms to build cases of; all when None.
        limit: cases of each relation and paradigm; all when None.
        seed: of all draws.
        real: leave out the facts about invented people, which no other model can know.

    Raises:
        ValueError: for a relation or paradigm that is not taught.
    """
    known = {*INVERSES, *taught.relations(), *grammar.PARADIGMS}
    for name in only or ():
        if name not in known:
            raise ValueError(
                f"relation or paradigm {name!r}: expected one of the embedded cases': "
                + ", ".join([*taught.relations(), *grammar.PARADIGMS])
            )
    names = [*taught.relations(), *grammar.PARADIGMS] if only is None else list(only)
    of_facts = fact_cases(
        relations(real=real),
        [fact for fact in facts() if not real or fact.subject not in taught.invented()],
        source=SOURCE,
        prefix=f"{SOURCE}/",
        only=[name for name in names if name in taught.relations()],
        limit=limit,
        seed=seed,
        neighbours=_pair_probes(),
    )
    of_pairs = pair_cases(
        paradigms(),
        pairs(),
        source=SOURCE,
        prefix=f"{SOURCE}/",
        only=[name for name in names if name in grammar.PARADIGMS],
        limit=limit,
        seed=seed,
        neighbours=_fact_probes(),
    )
    return Selection(of_facts.cases + of_pairs.cases, of_facts.exclusions + of_pairs.exclusions)


@cache
def facts() -> tuple[Triple, ...]:
    """Return the facts that the embedded models are taught."""
    return tuple(Triple(f.relation, f.subject, f.object) for f in taught.facts())


REAL_REWORDINGS = MappingProxyType(
    {
        "P36": (
            "The seat of government of [X] is the city of [Y].",
            "The parliament of [X] meets in the city of [Y].",
        ),
        "P1376": (
            "The country that has its seat of government in [X] is [Y].",
            "[X] is the seat of government of the country of [Y].",
        ),
    }
)
"""Further synonyms for real models: after "The seat of government of Canada is" they name a
building. The embedded models were not taught these."""


@cache
def relations(*, real: bool = False) -> tuple[Relation, ...]:
    """Return the relations that they belong to, with the prompts that ask for them.

    Args:
        real: with the rewordings that real models understand.
    """
    profession = MappingProxyType(_professions())
    rewordings = {
        "P101": (Rewording(Pattern("[X] became a [Y]."), profession),),
        "P106": (Rewording(Pattern("[X] is an expert in [Y]."), _swapped(profession)),),
    }
    return tuple(
        Relation(
            id=name,
            patterns=tuple(Pattern(text) for text in texts),
            rewordings=(
                *rewordings.get(name, ()),
                *(
                    Rewording(Pattern(text))
                    for text in (REAL_REWORDINGS.get(name, ()) if real else ())
                ),
            ),
            inverse=INVERSES.get(name, ""),
        )
        for name, texts in taught.prompts().items()
    )


def _professions() -> dict[str, str]:
    """Return field -> what one who works in it is called: ``linguistics`` -> ``linguist``."""
    names: dict[str, str] = {}
    for row in taught.people():
        field, occupation = row["field"], row["occupation"]
        if field and occupation and field[:4] == occupation[:4]:
            names.setdefault(field, occupation)
    return names


def _swapped(names: MappingProxyType[str, str]) -> MappingProxyType[str, str]:
    return MappingProxyType({value: key for key, value in names.items()})


@cache
def paradigms() -> tuple[Paradigm, ...]:
    """Return the paradigms that the grammar has."""
    return tuple(paradigm for paradigm in BLIMP if paradigm.id in grammar.PARADIGMS)


@cache
def pairs() -> tuple[MinimalPair, ...]:
    """Return the minimal pairs of all paradigms; the same in every process."""
    minimal_pairs = []
    for paradigm in grammar.PARADIGMS:
        source = grammar.Grammar(f"cases {paradigm}", held_out=True, nouns=_nouns())
        unlike = dict.fromkeys(source.pair(paradigm) for _ in range(2 * PAIRS))
        minimal_pairs += [_pair(pair, f"{i:03d}") for i, pair in enumerate([*unlike][:PAIRS])]
    return tuple(minimal_pairs)


def _nouns() -> list[lexicon.Noun]:
    """Return the nouns that pairs turn on: single words, plurals, and those with "of"."""
    single = [noun for noun in lexicon.nouns() if " " not in noun.singular]
    chosen = [noun for noun in single if noun.kind in ("relative", "text")]
    for irregular in (False, True):
        nouns = [noun for noun in single if noun.irregular == irregular and noun not in chosen]
        chosen += draw(nouns, NOUNS, "nouns")
    return chosen


def _pair(pair: grammar.Pair, number: str) -> MinimalPair:
    good = pair.sentence_good
    starts = good.lower().startswith(pair.word.lower() + " ")
    word = pair.word[0].upper() + pair.word[1:] if starts else pair.word
    # Where the agreeing word follows the gap, a causal model must read on past it.
    scoring: Scoring = "two_prefix" if pair.paradigm.endswith("_2") else "gap"
    return MinimalPair(pair.paradigm, number, good, pair.sentence_bad, word, scoring)


def _pair_probes() -> tuple[Probe, ...]:
    """Return pairs as a fact's neighbours of the other task: a few of each paradigm."""
    families = {paradigm.id: paradigm.family for paradigm in paradigms()}
    chosen = draw(pairs(), OTHER_TASK, "pairs", where=lambda pair: pair.scoring == "gap")
    parts = [(pair, analyse(pair, families[pair.paradigm])) for pair in chosen]
    return tuple(
        Probe(pair.id, "locality", part.cloze, part.good, part.bad, task="pair")
        for pair, part in parts
        if isinstance(part, Analysis)
    )


def _fact_probes() -> tuple[Probe, ...]:
    """Return facts as a pair's neighbours of the other task, asked with what theirs edits."""
    prompts = {relation.id: relation.canonical for relation in relations()}
    objects: dict[str, list[str]] = {}
    for fact in facts():
        objects.setdefault(fact.relation, []).append(fact.object)
    probes = []
    for fact in draw(facts(), OTHER_TASK, "facts"):
        pattern = prompts[fact.relation]
        other = [name for name in objects[fact.relation] if name != fact.object]
        others = draw(other, 1, fact.subject)
        if pattern and others:
            cloze = pattern.cloze(fact.subject)
            probes.append(Probe(fact.subject, "locality", cloze, fact.object, others[0]))
    return tuple(probes)
