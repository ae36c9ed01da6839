"""Control 3: the selectivity matrix, relation by relation and facts against syntax.

What else do a group's neurons carry? Suppress them, and ask about everything else.
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
from kn_bench.study.page import Figure, Row, Section, Table
from kn_bench.study.plots import heat_map, panels, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

GROUPS, PROMPTS = 3, 2
"""Groups of each relation, and prompts of each, that are asked about."""


@dataclass(frozen=True)
class Suppressed:
    """A group whose neurons are suppressed.

    Attributes:
        name: of the group.
        row: the relation or paradigm it is shown under.
        neurons: what is suppressed.
    """

    name: str
    row: str
    neurons: Neurons


@dataclass(frozen=True)
class Asked:
    """Prompts of one group that are asked about.

    Attributes:
        name: of the group; its own neurons make the entry "own".
        column: the relation or paradigm it is shown under.
        queries: the prompts.
    """

    name: str
    column: str
    queries: tuple[Fitted, ...]


@dataclass(frozen=True)
class Cell:
    """Mean change of log P (nats) of a column's prompts, a row's neurons suppressed.

    Attributes:
        row, column: relations or paradigms.
        own: whether the prompts are those that the neurons were found over; else they are left out.
        change: with its interval over the suppressed groups.
    """

    row: str
    column: str
    own: bool
    change: Interval


def selectivity(
    lm: LanguageModel, suppressed: Sequence[Suppressed], asked: Sequence[Asked]
) -> list[Cell]:
    """The matrix of :class:`Cell`, own prompts apart from those of others of the same relation."""
    queries = [query for question in asked for query in question.queries]
    edits = [NoEdit(), *(suppress(one.neurons) for one in suppressed)]
    log_probs, _ = crossed(lm, queries, edits)
    changes = log_probs[1:] - log_probs[0]
    names = np.array([question.name for question in asked for _ in question.queries])
    columns = np.array([question.column for question in asked for _ in question.queries])
    cells: dict[tuple[str, str, bool], list[tuple[float, str]]] = {}
    for i, one in enumerate(suppressed):
        mine = names == one.name
        for column in dict.fromkeys(columns.tolist()):
            for own, where in ((True, mine), (False, ~mine)):
                there = where & (columns == column)
                if there.any():
                    entry = (float(changes[i, there].mean()), one.name)
                    cells.setdefault((one.row, column, own), []).append(entry)
    return [
        Cell(*key, mean_interval([v for v, _ in entries], [c for _, c in entries], bounds=None))
        for key, entries in cells.items()
    ]


def run(material: Material) -> Section:
    """The section."""
    cells = measure(material)
    return Section(
        "selectivity",
        "Control 3: what else do the neurons carry?",
        "The located neurons of a fact or class are suppressed, and everything else is asked "
        "about: other facts of its relation, every other relation, every paradigm. The first "
        "column is the group's own prompts.",
        _findings(material, cells),
        tables=(_table(cells),),
        figures=(
            Figure(
                "matrix",
                "Mean change of log P(answer) in nats of a column's prompts when a row's neurons "
                "are suppressed; a group's own prompts are in the first column only.",
                lambda: _draw(material, cells),
            ),
        ),
    )


def measure(material: Material) -> list[Cell]:
    """The matrix over a few groups of every relation and paradigm."""
    chosen = [
        profile
        for relation in material.relations
        for profile in [p for p in material.profiles if p.group.relation == relation][:GROUPS]
    ]
    return selectivity(
        material.lm,
        [Suppressed(p.group.id, p.group.relation, material.neurons(p)) for p in chosen],
        [Asked(p.group.id, p.group.relation, p.encoded[:PROMPTS]) for p in chosen],
    )


def matrix(material: Material, cells: Sequence[Cell]) -> Float[np.ndarray, "rows columns"]:
    """Own prompts first, then every column's; nan where there is nothing to ask."""
    at = {relation: i for i, relation in enumerate(material.relations)}
    values = np.full((len(at), 1 + len(at)), np.nan)
    for cell in cells:
        values[at[cell.row], 0 if cell.own else 1 + at[cell.column]] = cell.change.mean
    return values


def _table(cells: Sequence[Cell]) -> Table:
    rows: list[Row] = [(c.row, c.column, "own" if c.own else "others", c.change) for c in cells]
    return Table(
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
        mine = [c for c in cells if material.task_of[c.row] == task]
        if not mine:
            continue
        parts = {
            "its own prompts": [c for c in mine if c.own],
            "others of its relation": [c for c in mine if not c.own and c.column == c.row],
            "other relations": [
                c for c in mine if c.column != c.row and material.task_of[c.column] == task
            ],
            "the other task": [c for c in mine if material.task_of[c.column] == other],
        }
        texts = [
            f"{np.mean([c.change.mean for c in found]):+.2f} on {what}"
            for what, found in parts.items()
            if found
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
