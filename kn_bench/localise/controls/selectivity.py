"""What else do a group's neurons carry? Suppress them, and ask about everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kn_bench.editing.edit import NoEdit
from kn_bench.localise.interventions import crossed, suppress
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neurons
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.model.language_model import LanguageModel


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
    queries = [query for one in asked for query in one.queries]
    edits = [NoEdit(), *(suppress(one.neurons) for one in suppressed)]
    log_probs, _ = crossed(lm, queries, edits)
    changes = log_probs[1:] - log_probs[0]
    names = np.array([one.name for one in asked for _ in one.queries])
    columns = np.array([one.column for one in asked for _ in one.queries])
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
