"""Symmetry and synonym rates of edits, beside the published ones (Figure 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_bench.cases.case import Case, Criterion
from kn_bench.cases.sampling import stable_hash
from kn_bench.measure.criteria import judge
from kn_bench.measure.engine import Engine
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.measure.verdict import Verdict
from kn_bench.results import tables
from kn_bench.study.edited import methods, unmeasured
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.paper import PUBLISHED
from kn_bench.study.plots import COLOURS, HATCHES, bars, legend_below, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SHOWN: tuple[Criterion, ...] = ("reliability", "generality", "symmetry", "synonym")


@dataclass(frozen=True)
class JudgedCase:
    """A verdict with the method, case and criterion that it is about."""

    method: str
    relation: str
    cluster: str
    criterion: Criterion
    verdict: Verdict


def run(material: Material) -> Section:
    """Compute this section of the study."""
    cases = chosen(material)
    if not cases:
        raise NothingToShow("No fact has an inverse or a synonym among the cases.")
    judged, notes = measure(material, cases)
    return Section(
        "invariance",
        "Do edits reach the inverse and the synonym?",
        "Facts with an inverse relation or a wording in synonyms are edited, and judged by what "
        "the edited model generates. If an edit changed what the model knows, its inverse and its "
        "synonyms would follow.",
        _findings(judged),
        tables=(_table(judged), _outcomes(judged)),
        figures=(
            SectionFigure(
                "rates",
                "Rates of each method over all facts edited, with 95 % intervals over subjects; "
                "the crosses are the paper's (ROME on GPT-2 XL, P101).",
                lambda: _draw(judged),
                "Figure 11",
            ),
        ),
        notes=notes,
    )


def chosen(material: Material) -> list[Case]:
    """Return facts with a probe for symmetry or synonyms, a few per relation."""
    by_relation: dict[str, list[Case]] = {}
    for case in material.cases:
        if case.task == "fact" and {"symmetry", "synonym"} & {p.criterion for p in case.probes}:
            by_relation.setdefault(case.relation, []).append(case)
    return [
        case
        for cases in by_relation.values()
        for case in sorted(cases, key=lambda c: stable_hash("invariance", c.id))[
            : material.settings.edited
        ]
    ]


def measure(material: Material, cases: Sequence[Case]) -> tuple[list[JudgedCase], tuple[str, ...]]:
    """Edit each case by each method, judge it by the shown criteria; note what is left out."""
    engine = Engine(material.lm)
    judged: list[JudgedCase] = []
    notes: tuple[str, ...] = ()
    for name, method in methods(material.lm):
        results = engine.measure(name, method, cases).results
        notes += unmeasured(name, results.values())
        judged += [
            JudgedCase(name, case.relation, case.cluster, criterion, verdict)
            for case in cases
            for criterion in SHOWN
            for verdict in (judge(criterion, case, results[case.id]),)
        ]
    return judged, notes


def rate(judged: Sequence[JudgedCase], criterion: Criterion) -> Interval:
    """Return the mean score of a criterion over the cases that count for it."""
    mine = [
        judgement
        for judgement in judged
        if judgement.criterion == criterion and judgement.verdict.score is not None
    ]
    scores = [judgement.verdict.score or 0.0 for judgement in mine]
    return mean_interval(scores, [judgement.cluster for judgement in mine])


def _table(judged: Sequence[JudgedCase]) -> SectionTable:
    rows: list[TableRow] = []
    methods_ = list(dict.fromkeys(judgement.method for judgement in judged))
    for relation in [*dict.fromkeys(judgement.relation for judgement in judged), "all"]:
        for method in methods_:
            mine = [
                judgement
                for judgement in judged
                if judgement.method == method and relation in (judgement.relation, "all")
            ]
            rows.append((relation, method, *(rate(mine, criterion) for criterion in SHOWN)))
    for relation in dict.fromkeys(published.relation for published in PUBLISHED):
        known = {
            published.criterion: published
            for published in PUBLISHED
            if published.relation == relation
        }
        first = next(iter(known.values()))
        rates = (known[c].rate if c in known else None for c in SHOWN)
        rows.append((f"{relation}, published", f"{first.method} on {first.model}", *rates))
    return SectionTable(
        "rates",
        "Reliability, generality, symmetry and synonym invariance by relation and method, with "
        "95 % intervals; in the last rows the paper's own figures.",
        ("relation", "method", *SHOWN),
        tuple(rows),
        left=2,
        digits=4,
    )


def _outcomes(judged: Sequence[JudgedCase]) -> SectionTable:
    rows: list[TableRow] = []
    for method in dict.fromkeys(judgement.method for judgement in judged):
        verdicts = [
            judgement.verdict
            for judgement in judged
            if judgement.method == method and judgement.criterion == "symmetry"
        ]
        outcomes = [verdict.symmetry for verdict in verdicts if verdict.symmetry]
        revoked = [
            verdict.symmetry.old_revoked
            for verdict in verdicts
            if verdict.symmetry and verdict.inverse_known
        ]
        if outcomes:
            rows.append(
                (
                    method,
                    len(outcomes),
                    sum(o.new_learned for o in outcomes),
                    len(revoked),
                    sum(map(bool, revoked)),
                    sum(o.displaced_kept for o in outcomes),
                    sum(o.other for o in outcomes),
                )
            )
    return SectionTable(
        "symmetry",
        "What the edited model answers to the inverse: cases in which the new inverse is learned, "
        "the old one revoked (of those in which the unedited model knew it), the displaced pair's "
        "kept, or something else comes.",
        (
            "method",
            "cases",
            "new learned",
            "old known",
            "old revoked",
            "displaced kept",
            "other",
        ),
        tuple(rows),
    )


def _findings(judged: Sequence[JudgedCase]) -> tuple[str, ...]:
    sentences = []
    for method in dict.fromkeys(judgement.method for judgement in judged):
        mine = [judgement for judgement in judged if judgement.method == method]
        parts = []
        for criterion in ("reliability", "symmetry", "synonym"):
            r = rate(mine, criterion)
            if r.n:
                parts.append(f"{criterion} {tables.share(r, 1)} (n={r.n})")
        sentences.append(f"{method}: {', '.join(parts) or 'nothing could be measured'}.")
    return tuple(sentences)


def _draw(judged: Sequence[JudgedCase]) -> Drawing:
    figure, (axes,) = panels(1, width=6.5, height=2.9)
    names = list(dict.fromkeys(judgement.method for judgement in judged))
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        mine = [judgement for judgement in judged if judgement.method == name]
        places = [i - 0.4 + width * (number + 0.5) for i in range(len(SHOWN))]
        values = [rate(mine, criterion) for criterion in SHOWN]
        bars(
            axes,
            places,
            values,
            colour=COLOURS[number],
            hatch=HATCHES[number],
            width=width,
            label=name,
        )
    x = [SHOWN.index(published.criterion) for published in PUBLISHED]
    y = [published.rate for published in PUBLISHED]
    of = PUBLISHED[0]
    label = f"published: {of.method}, {of.model}, {of.relation}"
    axes.plot(x, y, "x", color="black", markersize=8, linestyle="none", label=label)
    axes.set_xticks(range(len(SHOWN)), SHOWN)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("rate")
    legend_below(figure, axes)
    return figure
