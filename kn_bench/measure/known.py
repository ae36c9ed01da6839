"""Which cases an unedited model answers: facts it generates, pairs whose good member it prefers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kn_bench.cases.case import Case, EditRequest
from kn_bench.editing.edit import NoEdit
from kn_bench.measure.criteria import known_before
from kn_bench.measure.engine import Engine


class _Unedited:
    """A method that edits nothing."""

    def edit(self, requests: Sequence[EditRequest]) -> list[NoEdit]:
        return [NoEdit() for _ in requests]


def known_ids(engine: Engine, cases: Sequence[Case]) -> set[str]:
    """Return the ids of those ``cases`` whose edited prompt the unedited model answers rightly."""
    asked = [
        replace(case, probes=tuple(p for p in case.probes if p.criterion == "reliability"))
        for case in cases
    ]
    results = engine.measure("none", _Unedited(), asked).results
    return {case.id for case in cases if known_before(case.task, results[case.id].measurements)}
