"""Control 7: edits from right to wrong and from wrong to right, by the new answer's prior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kn_bench.cases.case import EditRequest
from kn_bench.cases.sampling import stable_hash
from kn_bench.editing.edit import Method, NotApplicable
from kn_bench.localise.interventions import answers
from kn_bench.results import tables
from kn_bench.study.edited import (
    EditOutcome,
    EditTrial,
    editable,
    edits_by,
    methods,
    rate,
    took,
    trials_of,
)
from kn_bench.study.material import Material
from kn_bench.study.page import Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import COLOURS, MARKERS, TASK, panels, whiskers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

BINS = (0.0, 1e-6, 1e-4, 1e-2, 1.0)
BIN_LABELS = ("< 1e-6", "1e-6 to 1e-4", "1e-4 to 0.01", "> 0.01")
DIRECTIONS = ("right to wrong", "wrong to right")
LOOKED_AT = 40
"""Requests per relation that are searched for wrong answers."""


def run(material: Material) -> Section:
    """Compute this section of the study.

    Raises:
        NothingToShow: if no request can be edited on the model.
    """
    requests, left_out = directed(material)
    outcomes = [
        (name, direction, request, outcome)
        for name, method in methods(material.lm)
        for (direction, request), outcome in _edited(material, method, requests)
    ]
    notes = [f"Left out of both directions: {n} {reason}." for reason, n in left_out.items()]
    trials, missing = trials_of(outcomes, material.cluster_of, notes)
    return Section(
        "direction",
        "Control 7: is it easier to make right or wrong?",
        "Requests that the model answers rightly are edited to the wrong answer, and those that "
        "it answers wrongly to the right one. An edit may take because the new answer was "
        "probable all along: so success is shown by the prior probability of the new answer.",
        _findings(trials),
        tables=(_table(trials), _by_prior(trials)),
        figures=(
            SectionFigure(
                "prior",
                "Share of edits after which the new answer is given (argmax), by its probability "
                "before the edit, with 95 % intervals over subjects or nouns.",
                lambda: _draw(trials),
            ),
        ),
        notes=(
            *(
                f"{direction}: {tables.counted(n, 'request')}."
                for direction in DIRECTIONS
                for n in [sum(d == direction for d, _ in requests)]
            ),
            *missing,
        ),
    )


def directed(material: Material) -> tuple[list[tuple[str, EditRequest]], Counter[str]]:
    """Return requests with their direction, at most the same number per relation and direction.

    With them the number of those that are left out, by reason.
    """
    offered: dict[str, list[EditRequest]] = {}
    for case in material.cases:
        offered.setdefault(case.relation, []).append(case.request)
    directed_requests: list[tuple[str, EditRequest]] = []
    left_out: Counter[str] = Counter()
    for requests in offered.values():
        chosen = sorted(requests, key=lambda r: stable_hash("direction", r.id))[:LOOKED_AT]
        usable, others = editable(material.lm, chosen)
        left_out += others
        read = answers(material.lm, [query for pair in usable for query in pair])
        right: list[EditRequest] = []
        wrong: list[EditRequest] = []
        for i, request in enumerate(usable.values()):
            knows = read.log_prob[2 * i] > read.log_prob[2 * i + 1]
            if request.task == "fact":
                knows = read.right[2 * i]
            (right if knows else wrong).append(request)
        each = max(1, material.settings.edited // 2)
        directed_requests += [(DIRECTIONS[0], r) for r in right[:each]]
        directed_requests += [(DIRECTIONS[1], _swapped(r)) for r in wrong[:each]]
    return directed_requests, left_out


def _swapped(request: EditRequest) -> EditRequest:
    """Swap the targets, so that the edit leads from the wrong answer to the right one.

    Neurons are located by the answer that the edit leaves, here the wrong one.
    """
    old, new = request.target_true, request.target_new
    queries = tuple(q._replace(answer=new) if q.answer == old else q for q in request.queries)
    return replace(request, target_true=new, target_new=old, queries=queries)


def _edited(
    material: Material, method: Method, requests: Sequence[tuple[str, EditRequest]]
) -> Iterable[tuple[tuple[str, EditRequest], EditOutcome | NotApplicable]]:
    asked = [request for _, request in requests]
    outcomes = took(material.lm, asked, edits_by(method, asked))
    return zip(requests, outcomes, strict=True)


def _table(trials: Sequence[EditTrial]) -> SectionTable:
    rows: list[TableRow] = []
    for method in dict.fromkeys(trial.method for trial in trials):
        for direction in DIRECTIONS:
            for task, (_, _, label) in TASK.items():
                mine = [
                    o for o in trials if (o.method, o.kind, o.task) == (method, direction, task)
                ]
                if mine:
                    prior = float(np.exp(np.mean([np.log(o.outcome.prior) for o in mine])))
                    rates = (rate(mine, name) for name in ("argmax", "preferred", "before"))
                    rows.append((method, direction, label, prior, *rates))
    return SectionTable(
        "direction",
        "Edits by direction: the geometric mean of the new answer's prior probability, and shares "
        "in which it is given (argmax), preferred, and was preferred before.",
        ("method", "direction", "task", "prior", "given", "preferred", "preferred before"),
        tuple(rows),
        left=3,
        digits=3,
    )


def _binned(mine: Sequence[EditTrial]) -> list[list[EditTrial]]:
    places = np.digitize([trial.outcome.prior for trial in mine], BINS[1:-1])
    return [
        [trial for trial, at in zip(mine, places, strict=True) if at == i]
        for i in range(len(BINS) - 1)
    ]


def _by_prior(trials: Sequence[EditTrial]) -> SectionTable:
    rows: list[TableRow] = []
    for method in dict.fromkeys(trial.method for trial in trials):
        for direction in DIRECTIONS:
            mine = [o for o in trials if (o.method, o.kind) == (method, direction)]
            rates = [rate(group) if group else None for group in _binned(mine)]
            if mine:
                rows.append((method, direction, *rates))
    return SectionTable(
        "by_prior",
        "Share of edits after which the new answer is given, by its probability before.",
        ("method", "direction", *BIN_LABELS),
        tuple(rows),
        left=2,
    )


def _findings(trials: Sequence[EditTrial]) -> tuple[str, ...]:
    sentences = []
    for method in dict.fromkeys(trial.method for trial in trials):
        parts = []
        for direction in DIRECTIONS:
            mine = [o for o in trials if (o.method, o.kind) == (method, direction)]
            if mine:
                share = rate(mine)
                parts.append(f"{direction} {tables.share(share)} (n={share.n})")
        sentences.append(f"{method} gives the new answer: {', '.join(parts)}.")
    return tuple(sentences)


def _draw(trials: Sequence[EditTrial]) -> Drawing:
    names = list(dict.fromkeys(trial.method for trial in trials))
    figure, axes = panels(len(names), width=3.6 * len(names) + 0.4, height=2.8, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for number, direction in enumerate(DIRECTIONS):
            mine = [o for o in trials if (o.method, o.kind) == (name, direction)]
            groups = _binned(mine)
            places = [i + 0.12 * (2 * number - 1) for i, group in enumerate(groups) if group]
            values = [rate(group) for group in groups if group]
            whiskers(ax, places, values, colour=COLOURS[number], marker=MARKERS[number],
                     label=direction)  # fmt: skip
        ax.set_xticks(range(len(BINS) - 1), BIN_LABELS, fontsize=7.5)
        ax.set_title(name)
        ax.set_xlabel("probability of the new answer before")
        ax.set_ylim(-0.03, 1.03)
    axes[0].set_ylabel("share of edits that take")
    axes[0].legend()
    return figure
