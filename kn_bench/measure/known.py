"""Which cases the unedited model answers correctly: by its text, or its preference in a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kn_bench.cases.case import Case, Criterion, EditRequest
from kn_bench.editing.edit import NoEdit
from kn_bench.measure.criteria import judge, known_before
from kn_bench.measure.engine import Engine

CONDITIONED: tuple[Criterion, ...] = ("generality", "synonym")
"""Criteria whose probes count only where the unedited model answers them."""


class Unedited:
    """A method that edits nothing."""

    def edit(self, requests: Sequence[EditRequest]) -> list[NoEdit]:
        return [NoEdit() for _ in requests]


def known_ids(engine: Engine, cases: Sequence[Case]) -> set[str]:
    """Return the ids of those ``cases`` whose edited prompt the unedited model answers rightly."""
    asked = [_with_probes(case, ("reliability",)) for case in cases]
    results = engine.measure("none", Unedited(), asked).results
    return {case.id for case in cases if known_before(case.task, results[case.id].measurements)}


def shown_by(engine: Engine, cases: Sequence[Case]) -> dict[str, int]:
    """Return of how many of :data:`CONDITIONED` each known case has a probe that counts.

    A case without any is measured all the same, but says nothing about these criteria.
    """
    asked = [_with_probes(case, ("reliability", *CONDITIONED)) for case in cases]
    results = engine.measure("none", Unedited(), asked).results
    return {
        case.id: sum(judge(criterion, case, results[case.id]).scored for criterion in CONDITIONED)
        for case in asked
    }


def _with_probes(case: Case, criteria: Sequence[Criterion]) -> Case:
    return replace(case, probes=tuple(p for p in case.probes if p.criterion in criteria))
