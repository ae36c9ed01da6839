"""Results of units that could not be measured, and errors that say where a method stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kn_bench.editing.faults import reason_of
from kn_bench.measure.measurement import CaseResult, UnitResult
from kn_bench.testing import units
from kn_bench.testing.points import Work

CHANGED = ("the model's parameters", " differs after ")
"""What errors say by which weights are found changed."""


def all_cases(work: Work, *, not_applicable: str = "", error: str = "") -> UnitResult:
    """Return the same outcome for all cases of a unit."""
    results = {
        case.id: CaseResult(case.id, None, (), not_applicable=not_applicable, error=error)
        for case in work.cases
    }
    retained = dict(results) if work.sequence else {}
    return UnitResult(work.model, work.method.name, results, 0.0, 0.0, retained)


def with_origin(result: UnitResult, origin: str, others: Sequence[str] = ()) -> UnitResult:
    """Add to errors where the method stands that made them, and who else may have.

    Args:
        result: of a unit.
        origin: file and line of its method.
        others: methods that had left a thread running.
    """

    def told(error: str) -> str:
        return suspecting(f"{error} ({origin})", others)

    def of(results: Mapping[str, CaseResult]) -> dict[str, CaseResult]:
        return {
            case: replace(result, error=told(result.error)) if result.error else result
            for case, result in results.items()
        }

    return replace(result, results=of(result.results), retained=of(result.retained))


def suspecting(error: str, others: Sequence[str]) -> str:
    """Name the ``others`` that left a thread running, where ``error`` is of changed parameters."""
    if not others or not any(sign in error for sign in CHANGED):
        return error
    return f"{error}; or a thread that {' and '.join(others)} left running did it"


def sentence(work: Work, error: BaseException) -> str:
    """Return why a unit could not be computed: what, where, why."""
    method = work.method
    reason = reason_of(error).splitlines()[0]
    return (
        f"{method.name} on {work.model} could not be measured: "
        f"{type(error).__name__}: {reason} ({method.origin})"
    )


def ended_workers(work: Work) -> str:
    """Return why a unit is not computed again."""
    method = work.method
    return (
        f"{method.name} on {work.model} ended {units.ATTEMPTS} worker processes in this session "
        f"(a crash in native code, or no memory left), and is not run again ({method.origin})"
    )
