"""What a model generates before and after an edit, probe by probe (Figure 10)."""

from __future__ import annotations

from kn_bench.cases.case import Case
from kn_bench.cases.sampling import stable_hash
from kn_bench.measure.criteria import probe_holds, probe_task
from kn_bench.measure.engine import Engine
from kn_bench.measure.measurement import CaseResult, Measurement
from kn_bench.study.edited import measured, methods, unmeasured
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section, SectionTable, TableRow

EACH = 1
"""Cases per relation."""
MOST = 10
"""Cases in total."""


def run(material: Material) -> Section:
    """Compute this section of the study."""
    cases = chosen(material)
    if not cases:
        raise NothingToShow("There are no facts among the cases: generations are read off facts.")
    rows: list[TableRow] = []
    notes: list[str] = []
    taken = counted = 0
    engine = Engine(material.lm)
    for name, method in methods(material.lm):
        results = engine.measure(name, method, cases).results
        notes += unmeasured(name, results.values())
        for case in cases:
            result = results[case.id]
            if not measured(result):
                continue
            rows += [_row(name, case, measurement) for measurement in _shown(result)]
            first = next(m for m in result.measurements if m.criterion == "reliability")
            taken, counted = taken + first.after.gives_expected, counted + 1
    if not counted:
        raise NothingToShow(" ".join(["No edit could be measured.", *notes]))
    return Section(
        "generations",
        "What does an edited model say?",
        "Facts are edited one by one, and the edited model goes on by itself (a masked model fills "
        "its gap). An edit that takes on its own prompt may leave a paraphrase, the inverse and a "
        "synonym as they were, and change neighbours it should not touch.",
        (f"Edits answered on their own prompt: {taken} of {counted}.",),
        tables=(
            SectionTable(
                "generations",
                "Texts before and after an edit; the answer that the edit asks for, and whether "
                "it came. In the place of the paper's Figure 10.",
                ("method", "edit", "asked", "prompt", "before", "after", "wanted", "given"),
                tuple(rows),
                left=7,
                shown=60,
            ),
        ),
        notes=tuple(notes),
    )


def chosen(material: Material) -> list[Case]:
    """Sample a fact of each relation by a hash; prefer facts with many kinds of probes."""
    by_relation: dict[str, list[Case]] = {}
    for case in material.cases:
        if case.task == "fact":
            by_relation.setdefault(case.relation, []).append(case)
    sampled = []
    for cases in by_relation.values():
        ordered = sorted(cases, key=lambda c: (-_kinds(c), stable_hash("generation", c.id)))
        sampled += ordered[:EACH]
    return sorted(sampled, key=lambda case: -_kinds(case))[:MOST]


def _kinds(case: Case) -> int:
    return len({probe.criterion for probe in case.probes})


def _shown(result: CaseResult) -> list[Measurement]:
    """Return the measurement of the first probe of each criterion."""
    first: dict[str, Measurement] = {}
    for measurement in result.measurements:
        first.setdefault(measurement.criterion, measurement)
    return list(first.values())


def _row(method: str, case: Case, measurement: Measurement) -> TableRow:
    request = case.request
    probe = next(p for p in case.probes if p.id == measurement.probe)
    wanted = measurement.expected
    if measurement.criterion == "locality":
        wanted = "as before"
    elif measurement.kind == "old_inverse":
        wanted = f"not {wanted}"
    task = probe_task(measurement, case.task)
    return (
        method,
        f"{request.subject}: {request.target_true} → {request.target_new}",
        measurement.criterion,
        probe.cloze.fill("▁"),
        measurement.before.generated.strip(),
        measurement.after.generated.strip(),
        wanted,
        "yes" if probe_holds(measurement.criterion, measurement, task) else "no",
    )
