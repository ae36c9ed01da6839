"""Which cases a run asks, where that takes more than reading the options.

    no --cases, a model of the user's own   PARAREL and BLiMP, or what can be had without them
    --known                                 cases that every model of the run answers unedited

Settled once, in the controller, before a worker is started: all processes then read the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from kn_bench.cases.sampling import stable_hash
from kn_bench.measure.protocols import SINGLE
from kn_bench.testing.options import EMBEDDED_LIMIT, Options
from kn_bench.testing.plan import limit_of

if TYPE_CHECKING:
    from kn_bench.cases.case import Case, Task

POOLS = (4, 16, None)
"""Times the limit that cases are drawn for --known, one after the other; None for all there are."""

Known = Callable[[Sequence["Case"]], set[str]]
"""Which of some cases are known, by id."""


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

    chosen, asked = select_known(options, known)
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


def select_known(options: Options, known: Known) -> tuple[list[Case], Counter[str]]:
    """Draw cases until each relation has as many known ones as the limit says.

    Returns:
        The first known cases of each relation in the order that a limit draws them in, so that a
        larger limit contains a smaller one; and how many facts and pairs were asked.
    """
    from kn_bench.cases import sources

    limit = limit_of(options)
    asked: dict[str, Case] = {}
    answered: dict[str, set[str]] = defaultdict(set)  # relation -> ids
    relations: Sequence[str] = options.relations
    for factor in POOLS if limit is not None else POOLS[-1:]:
        pool = None if limit is None or factor is None else limit * factor
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
                answered[case.relation].add(case.id)
        if limit is None:
            break
        sizes = Counter(case.relation for case in asked.values())
        # what a larger pool could still add to
        relations = [
            relation
            for relation, size in sizes.items()
            if len(answered[relation]) < limit and pool is not None and size >= pool
        ]
        if not relations:
            break
    chosen = [
        asked[id]
        for ids in answered.values()
        for id in sorted(ids, key=lambda id: stable_hash(options.seed, id))[:limit]
    ]
    return chosen, Counter(case.task for case in asked.values())
