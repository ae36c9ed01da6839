"""Which cases a run asks, where that takes more than reading the options.

    no --cases, a model of the user's own   PARAREL and BLiMP, or what can be had without them
    --known                                 cases that every model of the run answers unedited

Settled once, in the controller, before a worker is started: all processes then read the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from kn_bench.cases.sampling import stable_hash
from kn_bench.measure.protocols import SINGLE
from kn_bench.testing.options import EMBEDDED_LIMIT, Options
from kn_bench.testing.plan import limit_of

if TYPE_CHECKING:
    from kn_bench.cases.case import Case, Task

BLOCKS = (64, 192, 384)
"""Cases of a relation that are drawn for --known, up to the first number that is four times the
limit, then up to the next, then all."""

Known = Callable[[Sequence["Case"]], set[str]]
"""Which of some cases are known, by id."""
Shown = Callable[[Sequence["Case"]], Mapping[str, int]]
"""How many criteria, of those that depend on what the model knows, each known case can show."""


def settled(options: Options) -> tuple[Options, list[str]]:
    """Return the options with their cases settled, and what to say of it before the run.

    Raises:
        ValueError: one sentence, where no case is left.
    """
    lines: list[str] = []
    if not options.cases:
        from kn_bench.cases.sources.defaults import default_specs
        from kn_bench.model import embedded

        specs, line = default_specs(options.models or embedded.NAMES)
        # the embedded ones are chosen from; a protocol of several edits says itself how many
        few: int | Literal["all"] = EMBEDDED_LIMIT if options.protocol == SINGLE else "all"
        chosen = specs == ("embedded",) and options.protocol == SINGLE and not options.known
        limit = few if options.limit is None and not chosen else options.limit
        options = replace(options, cases=specs, limit=limit)
        lines += [line] if line else []
    if options.known:
        options, line = _known_only(options)
        lines.append(line)
    return options, lines


def _known_only(options: Options) -> tuple[Options, str]:
    from kn_bench.model import embedded
    from kn_bench.model.progress import Bars
    from kn_bench.testing.devices import settle
    from kn_bench.testing.models import Models

    names = options.models or embedded.NAMES
    settle(1, names)
    models = Models(options, options.devices[0], {}, progress=Bars())

    def known(cases: Sequence[Case]) -> set[str]:
        from kn_bench.measure.known import known_ids

        left = list(cases)
        for name in names:
            ids = known_ids(models.engine(name), left)
            left = [case for case in left if case.id in ids]
        return {case.id for case in left}

    def shown(cases: Sequence[Case]) -> dict[str, int]:
        from kn_bench.measure.known import shown_by

        by_model = [shown_by(models.engine(name), cases) for name in names]
        return {case.id: min(counts[case.id] for counts in by_model) for case in cases}

    chosen, asked = select_known(options, known, shown)
    tasks = Counter(case.task for case in chosen)
    if not chosen:
        raise ValueError(
            f"--known: of {sum(asked.values())} cases asked, {' and '.join(names)} answer none "
            "rightly; name other relations, or leave --known out"
        )
    named: tuple[tuple[Task, str], ...] = (("fact", "facts"), ("pair", "pairs"))
    counts = ", ".join(
        f"{tasks[task]} of {asked[task]} {what} asked" for task, what in named if asked[task]
    )
    line = f"known to {' and '.join(names)}: {counts}"
    return replace(options, known_ids=tuple(sorted(case.id for case in chosen))), line


def select_known(
    options: Options, known: Known, shown: Shown = lambda _: {}
) -> tuple[list[Case], Counter[str]]:
    """Draw cases until each relation has as many known ones as the limit says.

    Of more known cases than the limit those come first that can show more: a fact that the model
    knows in one wording only says nothing about generality.

    Returns:
        The known cases chosen; a larger limit contains a smaller one, since blocks of cases are
        gone through in the order that a limit draws them in. And how many facts and pairs were
        asked.
    """
    from kn_bench.cases import sources

    limit = limit_of(options)
    asked: dict[str, Case] = {}
    answered: dict[str, list[str]] = defaultdict(list)  # relation -> ids
    relations: Sequence[str] = options.relations
    for pool in _pools(limit):
        drawn = [
            case
            for spec in options.cases
            for case in sources.load(spec, limit=pool, relations=relations, seed=options.seed).cases
        ]
        new = [case for case in drawn if case.id not in asked]
        asked |= {case.id: case for case in new}
        ids = known(new)
        for case in new:
            if case.id in ids:
                answered[case.relation].append(case.id)
        sizes = Counter(case.relation for case in asked.values())
        # what a larger pool could still add to
        relations = [
            relation
            for relation, size in sizes.items()
            if len(answered[relation]) < (limit or 0) and pool is not None and size >= pool
        ]
        if not relations:
            break
    choice = [i for ids in answered.values() if limit and len(ids) > limit for i in ids]
    counts = shown([asked[id] for id in choice]) if choice else {}
    block_of = _blocks(options.seed, asked.values())

    def rank(id: str) -> tuple[int, int, int]:
        return block_of[id], -counts.get(id, 0), stable_hash(options.seed, id)

    chosen = [asked[id] for ids in answered.values() for id in sorted(ids, key=rank)[:limit]]
    return chosen, Counter(case.task for case in asked.values())


def _pools(limit: int | None) -> list[int | None]:
    """Return how many cases of a relation are drawn, one number after the other; None for all."""
    if limit is None:
        return [None]
    return [*(size for size in BLOCKS if size >= 4 * limit), None]


def _blocks(seed: int, cases: Iterable[Case]) -> dict[str, int]:
    """Return the block of each case, by its place among those of its relation."""
    by_relation: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_relation[case.relation].append(case.id)
    return {
        id: sum(place >= size for size in BLOCKS)
        for ids in by_relation.values()
        for place, id in enumerate(sorted(ids, key=lambda id: stable_hash(seed, id)))
    }
