"""What a session offers to measure: models and cases, known to workers and controller alike.

Text only: no model is loaded and torch is not imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kn_bench.cases.case import Case, Criterion, Exclusion, Selection, by_label
from kn_bench.cases.choosing import choose, shows, unshown
from kn_bench.cases.sampling import slug
from kn_bench.measure.protocols import SINGLE
from kn_bench.model import embedded
from kn_bench.testing.node_ids import CASES_PER_LARGE_UNIT, CASES_PER_UNIT, model_slug
from kn_bench.testing.options import EMBEDDED_LIMIT, Grain, Options

OFFERED = 16
"""Cases of each of the 30 embedded relations and paradigms that the default run chooses from."""
OFFERED_IN_ALL = 96
"""The same where few relations are asked for."""


@dataclass(frozen=True)
class TestPlan:
    """What can be measured.

    Attributes:
        models: names, by slug.
        labels: the last part of a test id -> its cases: one case, or all of a relation.
        exclusions: what the sources had to leave out.
        offered: source -> its cases.
        labels_per_unit: how many labels one worker computes at once.
    """

    models: Mapping[str, str]
    labels: Mapping[str, tuple[Case, ...]]
    exclusions: tuple[Exclusion, ...]
    offered: Mapping[str, Sequence[Case]]
    labels_per_unit: int

    @cached_property
    def data(self) -> dict[str, str]:
        """Source -> SHA-256 of what it offers: only the manifest asks for it."""
        from kn_bench.cases.sources import content_hash

        return {name: content_hash(cases) for name, cases in self.offered.items()}

    def showing(self, criterion: Criterion) -> dict[str, tuple[Case, ...]]:
        """Return the labels with the cases that can show ``criterion``, where there are any."""
        able = {}
        for (label, cases), shown in zip(self.labels.items(), self._shows, strict=True):
            kept = [c for c, criteria in zip(cases, shown, strict=True) if criterion in criteria]
            if kept:  # the same tuple for all criteria where it can be
                able[label] = cases if len(kept) == len(cases) else tuple(kept)
        return able

    @cached_property
    def _shows(self) -> list[tuple[frozenset[Criterion], ...]]:
        """What the cases of each label can show; one object for all labels that show the same."""
        same: dict[tuple[frozenset[Criterion], ...], tuple[frozenset[Criterion], ...]] = {}
        each = (tuple(map(shows, cases)) for cases in self.labels.values())
        return [same.setdefault(criteria, criteria) for criteria in each]


def labels_per_unit(options: Options) -> int:
    """Return how many labels make a unit: a few dozen cases, or the cases of one relation.

    On a CPU a larger model gains nothing from more than a few cases at once, and with units of
    many minutes workers end far apart.
    """
    if options.grain != "case":
        return 1
    small = set(options.models) <= set(embedded.NAMES)
    return CASES_PER_UNIT if small or options.devices != ("cpu",) else CASES_PER_LARGE_UNIT


def make_plan(options: Options) -> TestPlan:
    """Read the cases and name the models.

    Args:
        options: what is measured.

    Raises:
        ValueError: for what cannot be offered, one sentence.
    """
    from kn_bench.cases import sources

    known = frozenset(options.known_ids)
    cases: list[Case] = []
    exclusions: list[Exclusion] = []
    offered = {}
    for spec in options.cases:
        # known cases may lie anywhere in a source
        limit = None if options.known_ids else _read_limit(options)
        selection = sources.load(spec, limit=limit, relations=options.relations, seed=options.seed)
        if options.known_ids:
            selection = _only(selection, known)
        elif chooses(options):
            chosen = choose(selection.cases, seed=options.seed)
            selection = Selection(chosen, selection.exclusions)
        cases += selection.cases
        exclusions += selection.exclusions
        offered[_without_path(spec)] = selection.cases
    if not cases:
        raise ValueError(nothing_left(options, exclusions))
    exclusions += unshown(cases)
    return TestPlan(_models(options), _labels(cases, options.grain), tuple(exclusions), offered,
                 labels_per_unit(options))  # fmt: skip


def nothing_left(options: Options, exclusions: Sequence[Exclusion]) -> str:
    """Return the sentence for cases of which none can be measured, with the commonest reasons."""
    asked = f"--cases {' '.join(options.cases)}"
    if options.relations:
        asked += f" with relations {', '.join(options.relations)}"
    reasons = Counter(exclusion.reason for exclusion in exclusions)
    counted = "; ".join(f"{n} excluded: {reason}" for reason, n in reasons.most_common(3))
    return (
        f"{asked}: expected a case to measure, and none is left"
        + (f" ({counted})" if counted else "")
        + "; `kn-bench data` lists what is excluded, and why"
    )


def _only(selection: Selection, ids: Collection[str]) -> Selection:
    """Return the cases called ``ids``; what a source left out of others is not this run's."""
    return Selection(tuple(case for case in selection.cases if case.id in ids))


def chooses(options: Options) -> bool:
    """Tell whether the run chooses its cases by what they can show: embedded ones, by default."""
    settled = options.known or options.protocol != SINGLE
    return options.limit is None and options.cases == ("embedded",) and not settled


def _read_limit(options: Options) -> int | None:
    """Return cases of each relation or paradigm that are read, to be measured or chosen from."""
    if chooses(options):
        return max(OFFERED, OFFERED_IN_ALL // max(1, len(options.relations or range(30))))
    return limit_of(options)


def limit_as_text(options: Options) -> str:
    """Return the limit as the manifest has it."""
    return "chosen" if chooses(options) else str(limit_of(options) or "all")


def limit_of(options: Options) -> int | None:
    """Return the cases of each relation or paradigm: as asked; few of the embedded by default."""
    if options.protocol != SINGLE and options.limit is None:
        return None  # the protocol itself says how many are drawn
    if options.limit is None and options.cases == ("embedded",):
        return EMBEDDED_LIMIT
    return None if options.limit == "all" else options.limit


def _models(options: Options) -> dict[str, str]:
    from kn_bench.model import embedded

    by_slug: dict[str, str] = {}
    for name in options.models or embedded.NAMES:
        other = by_slug.setdefault(model_slug(name), name)
        if other != name:
            raise ValueError(
                f"--model {other} and --model {name} have the same name in test ids, "
                f"{model_slug(name)}: measure them in two runs"
            )
    return by_slug


def _labels(cases: Sequence[Case], grain: Grain) -> dict[str, tuple[Case, ...]]:
    if grain == "case":
        return {label: (case,) for label, case in by_label(cases).items()}
    labels: dict[str, list[Case]] = {}
    for case in cases:
        labels.setdefault(slug(case.relation), []).append(case)
    return {label: tuple(members) for label, members in labels.items()}


def _without_path(spec: str) -> str:
    """Return a source as the manifest names it: another machine may keep its files elsewhere."""
    name, equals, _ = spec.partition("=")
    return name if equals else Path(spec).name
