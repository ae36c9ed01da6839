"""``--generations`` and ``--references``: what is written freely, and how it is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kn_bench.testing.models import kind_of
from kn_bench.testing.options import Options

if TYPE_CHECKING:
    from kn_bench.measure.writing import Writer
    from kn_bench.testing.plan import TestPlan


def writer(options: Options) -> Writer | None:
    """Return what has the models write; None where nobody asked for it.

    Raises:
        ValueError: one sentence, when it cannot be measured.
    """
    if not options.generations:
        return None
    from kn_bench.measure.writing import Writer, read_references

    references = read_references(options.references) if options.references else None
    return Writer(options.generations, references, options.seed)


def announced(options: Options, plan: TestPlan) -> tuple[dict[str, str], list[str]]:
    """Return what a run's manifest says of its generations, and what its header does.

    Raises:
        ValueError: one sentence, when they cannot be measured.
    """
    asked = writer(options)
    if asked is None:
        return {}, []
    names = list(plan.models.values())
    masked = [name for name in names if kind_of(name) == "masked"]
    cases = [case for labelled in plan.labels.values() for case in labelled]
    covered = asked.covered(cases, causal=len(masked) < len(names))
    lines = [f"generations: masked models write nothing: {', '.join(masked)}"] if masked else []
    if asked.references:
        lines.append(f"references: about the new target of {covered} of {len(cases)} cases")
    return asked.described, lines
