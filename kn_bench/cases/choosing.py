"""Choosing few cases that show much: enough of them behind every criterion, and no more.

A plain draw of facts has few that can show symmetry, which only one-to-one facts can. So the next
case is always the one that shows most of the criteria that lack cases still: relation by relation,
a relation's most telling case first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from kn_bench.cases.case import CRITERIA, Case, Criterion, Exclusion
from kn_bench.cases.sampling import stable_hash

ENOUGH = 20
"""Cases behind every figure."""
SPARE = 2
"""More of them: a model may not know an answer, or have no single token for it."""


def shows(case: Case) -> frozenset[Criterion]:
    """Return the criteria that ``case`` has probes for; overturn reads the reliability probe."""
    asked = {probe.criterion for probe in case.probes}
    return frozenset(asked | {"overturn"} if "reliability" in asked else asked)


def choose(cases: Sequence[Case], *, seed: int = 0) -> tuple[Case, ...]:
    """Return cases of each task, in the given order: each criterion's share of them.

    Args:
        cases: to choose from.
        seed: of what is arbitrary.
    """
    chosen: set[str] = set()
    for task in ("fact", "pair"):
        chosen.update(case.id for case in _of_task([c for c in cases if c.task == task], seed))
    return tuple(case for case in cases if case.id in chosen)


def _of_task(cases: Sequence[Case], seed: int) -> list[Case]:
    ordered = list(_in_turn(cases, seed))
    # methods that write at the subject cannot edit an answer that stands before it
    for_all = [case for case in ordered if "{}" in case.request.prompt]
    chosen: dict[str, Case] = {}
    for pool in (for_all, ordered):
        _serve(pool, chosen)
    return list(chosen.values())


def _serve(pool: Sequence[Case], chosen: dict[str, Case]) -> None:
    """Add cases of ``pool`` until each criterion that it can show has its share of them."""
    have = Counter(criterion for case in chosen.values() for criterion in shows(case))
    left = [(case, shows(case)) for case in pool if case.id not in chosen]

    def lacking(criteria: frozenset[Criterion]) -> int:
        return sum(have[criterion] < ENOUGH + SPARE for criterion in criteria)

    while left and (best := max(left, key=lambda item: lacking(item[1]))) and lacking(best[1]):
        left.remove(best)
        chosen[best[0].id] = best[0]
        have.update(best[1])


def _in_turn(cases: Sequence[Case], seed: int) -> Iterator[Case]:
    """Yield the relations' first cases, then their second ones, the most telling first."""
    by_relation: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_relation[case.relation].append(case)
    for members in by_relation.values():
        members.sort(key=lambda case: (*_telling(case), stable_hash(seed, case.id)))
    for turn in range(max(map(len, by_relation.values()), default=0)):
        yield from (members[turn] for members in by_relation.values() if turn < len(members))


def _telling(case: Case) -> tuple[int, bool]:
    """Return most criteria first; of these, cases whose answers are all single words.

    A masked model answers with one token: it cannot be asked for a name of several words.
    """
    answers = (
        answer
        for probe in case.probes
        if probe.criterion != "locality"
        for answer in (probe.expected, probe.rejected)
    )
    return -len(shows(case)), any(" " in answer or "-" in answer for answer in answers)


def unshown(cases: Sequence[Case]) -> Iterator[Exclusion]:
    """Yield what cannot be asked: each criterion of each case that has no probe for it."""
    for case in cases:
        shown = shows(case)
        for criterion in CRITERIA:
            if criterion not in shown:
                reason = case.not_applicable.get(criterion, "the case has no such probe")
                yield Exclusion(case.id, f"{criterion}: {reason}")
