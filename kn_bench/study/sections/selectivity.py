"""Control 3: what else do a group's neurons carry?

They are suppressed, and the prompts of all other groups are measured: a selectivity matrix over
relations, and of facts against syntax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from kn_bench.editing.edit import NoEdit
from kn_bench.localise.interventions import crossed, suppress
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neurons
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.model.language_model import LanguageModel
from kn_bench.study.material import Material
from kn_bench.study.page import Section, SectionFigure, SectionTable, TableRow
from kn_bench.study.plots import heat_map, panels, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

GROUPS, PROMPTS = 3, 2
"""Groups per relation, and prompts per group, that are measured."""


@dataclass(frozen=True)
class SuppressedGroup:
    """A group whose neurons are suppressed.

    Attributes:
        name: name of the group.
        row: the relation or paradigm it is shown under.
        neurons: the neurons that are suppressed.
    """

    name: str
    row: str
    neurons: Neurons


@dataclass(frozen=True)
class GroupPrompts:
    """Prompts of one group whose answers are measured.

    Attributes:
        name: name of the group; the entry "own" is for the neurons of the same group.
        column: the relation or paradigm it is shown under.
        queries: the prompts.
    """

    name: str
    column: str
    queries: tuple[Fitted, ...]


@dataclass(frozen=True)
class Cell:
    """Mean change of log P (nats) of a column's prompts when a row's neurons are suppressed.

    Attributes:
        row, column: relations or paradigms.
        own: True for the prompts over which the neurons were located, False for all others.
        change: the mean with its interval over the suppressed groups.
    """

    row: str
    column: str
    own: bool
    change: Interval


def selectivity(
    lm: LanguageModel, suppressed: Sequence[SuppressedGroup], asked: Sequence[GroupPrompts]
) -> list[Cell]:
    """Measure all cells of the matrix; a group's own prompts get a cell apart from its relation."""
    queries = [query for question in asked for query in question.queries]
    edits = [NoEdit(), *(suppress(group.neurons) for group in suppressed)]
    log_probs = crossed(lm, queries, edits).log_prob
    changes = log_probs[1:] - log_probs[0]
    names = np.array([question.name for question in asked for _ in question.queries])
    columns = np.array([question.column for question in asked for _ in question.queries])
    cells: dict[tuple[str, str, bool], list[tuple[float, str]]] = {}
    for i, group in enumerate(suppressed):
        in_group = names == group.name
        for column in dict.fromkeys(columns.tolist()):
            for own, where in ((True, in_group), (False, ~in_group)):
                counted = where & (columns == column)
                if counted.any():
                    entry = (float(changes[i, counted].mean()), group.name)
                    cells.setdefault((group.row, column, own), []).append(entry)
    return [
        Cell(*key, mean_interval([v for v, _ in entries], [c for _, c in entries], bounds=None))
        for key, entries in cells.items()
    ]


def run(material: Material) -> Section:
    """Compute this section of the study."""
    cells = measure(material)
    return Section(
        "selectivity",
        "Control 3: what else do the neurons carry?",
        "The located neurons of a fact or class are suppressed, and everything else is asked "
        "about: other facts of its relation, every other relation, every paradigm. The first "
        f"column is the group's own prompts. Of each relation and paradigm the first {GROUPS} "
        f"facts or classes are taken at most, and {PROMPTS} prompts of each.",
        _findings(material, cells),
        tables=(_table(cells),),
        figures=(
            SectionFigure(
                "matrix",
                "Mean change of log P(answer) in nats of a column's prompts when a row's neurons "
                "are suppressed; a group's own prompts are in the first column only.",
                lambda: _draw(material, cells),
            ),
        ),
    )


def measure(material: Material) -> list[Cell]:
    """Measure the matrix over a few groups of every relation and paradigm."""
    chosen = [
        profile
        for relation in material.relations
        for profile in [p for p in material.profiles if p.group.relation == relation][:GROUPS]
    ]
    return selectivity(
        material.lm,
        [SuppressedGroup(p.group.id, p.group.relation, material.neurons(p)) for p in chosen],
        [GroupPrompts(p.group.id, p.group.relation, p.encoded[:PROMPTS]) for p in chosen],
    )


def matrix(material: Material, cells: Sequence[Cell]) -> Float[np.ndarray, "rows columns"]:
    """Arrange cells as a matrix, own prompts first; nan where a cell has no prompts."""
    at = {relation: i for i, relation in enumerate(material.relations)}
    values = np.full((len(at), 1 + len(at)), np.nan)
    for cell in cells:
        values[at[cell.row], 0 if cell.own else 1 + at[cell.column]] = cell.change.mean
    return values


def _table(cells: Sequence[Cell]) -> SectionTable:
    rows: list[TableRow] = [
        (c.row, c.column, "own" if c.own else "others", c.change) for c in cells
    ]
    return SectionTable(
        "selectivity",
        "Mean change of log P(answer) in nats, with 95 % intervals over the suppressed groups.",
        ("neurons of", "prompts of", "prompts", "change"),
        tuple(rows),
        left=3,
        shown=0,
    )


def _findings(material: Material, cells: Sequence[Cell]) -> tuple[str, ...]:
    sentences = []
    for task, name, other in (("fact", "facts", "pair"), ("pair", "syntax", "fact")):
        of_task = [c for c in cells if material.task_of[c.row] == task]
        if not of_task:
            continue
        parts = {
            "its own prompts": [c for c in of_task if c.own],
            "others of its relation": [c for c in of_task if not c.own and c.column == c.row],
            "other relations": [
                c for c in of_task if c.column != c.row and material.task_of[c.column] == task
            ],
            "the other task": [c for c in of_task if material.task_of[c.column] == other],
        }
        texts = [
            f"{np.mean([c.change.mean for c in part]):+.2f} on {what}"
            for what, part in parts.items()
            if part
        ]
        sentences.append(f"Suppressing neurons of {name} moves log P by {', '.join(texts)}.")
    return tuple(sentences)


def _draw(material: Material, cells: Sequence[Cell]) -> Drawing:
    values = matrix(material, cells)
    n = len(values)
    figure, (axes,) = panels(1, width=3.6 + 0.27 * n, height=2.6 + 0.21 * n)
    # one odd cell must not wash out the rest
    limit = float(np.nanpercentile(np.abs(values), 97)) or None
    heat_map(
        axes,
        values,
        rows=[short(r) for r in material.relations],
        columns=["own", *(short(r) for r in material.relations)],
        two_sided=True,
        limit=limit,
        label="change of log P (nats)",
        rotate=60,
    )
    axes.set_ylabel("neurons of … suppressed")
    axes.set_xlabel("prompts of …")
    axes.axvline(0.5, color="black", linewidth=1.2)
    facts = sum(material.task_of[r] == "fact" for r in material.relations)
    axes.axvline(0.5 + facts, color="black", linewidth=0.8, linestyle="--")
    axes.axhline(facts - 0.5, color="black", linewidth=0.8, linestyle="--")
    return figure
