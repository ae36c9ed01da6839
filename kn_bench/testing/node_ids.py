"""Addresses of tests, and the units of work they fall into.

    suites/test_reliability.py::test_reliability[rome-tiny_gpt2-P36/Canada]
                                 criterion       method model    label

A *unit* is model x method x a few dozen cases: what one worker computes at once. Everything here
is a function of the node ids alone, so that the workers, which have the tests, and the controller,
which has only their ids, come to the same units without talking to each other.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from kn_bench.cases.sampling import slug

CASES_PER_UNIT = 32

# strict, for with xdist the ids are all that tells our tests from those of another project; the
# file has no name in them where it is pytest's root
_ADDRESS = re.compile(
    r"(?:^|(?:^|/)test_(\w+)\.py)::test_(reliability|generality|locality|symmetry|synonym|overturn)"
    r"\[([A-Za-z0-9_.]+)-([A-Za-z0-9_.]+)-([A-Za-z0-9_./]+)\]$"
)


class NodeId(NamedTuple):
    """What a node id of ours says: slugs, not names; ``label`` is a case or a relation."""

    criterion: str
    method: str
    model: str
    label: str


class UnitKey(NamedTuple):
    """One unit. Units that share ``model`` and ``chunk`` have the same cases."""

    model: str
    chunk: int
    method: str


def model_slug(name: str) -> str:
    """Return a model's name in the alphabet of test ids; of a path or a hub id the last part."""
    return slug(name.rstrip("/").rsplit("/", 1)[-1])


def parse(nodeid: str) -> NodeId | None:
    """The address in a node id; None for a test that is not ours."""
    found = _ADDRESS.search(nodeid)
    if not found or found[1] not in (None, found[2]):
        return None
    return NodeId(*found.groups()[1:])


def units(
    node_ids: Iterable[NodeId | None], *, labels_per_unit: int = CASES_PER_UNIT
) -> list[UnitKey | None]:
    """The unit of each test, None for a foreign test.

    The labels of a model are cut into chunks in the order of their first appearance, the same
    chunks for all of its methods: what methods share they share on one worker.
    """
    seen: dict[str, dict[str, int]] = {}
    keys: list[UnitKey | None] = []
    for node_id in node_ids:
        if node_id is None:
            keys.append(None)
            continue
        labels = seen.setdefault(node_id.model, {})
        number = labels.setdefault(node_id.label, len(labels))
        keys.append(UnitKey(node_id.model, number // labels_per_unit, node_id.method))
    return keys


def order(node_ids: Sequence[NodeId | None], *, labels_per_unit: int = CASES_PER_UNIT) -> list[int]:
    """Indices of the tests in running order: foreign tests as they were, then unit after unit.

    Units with the same cases follow one another. Inside a unit the criteria follow one another,
    so that the terminal names each file once a unit.
    """
    ranks: tuple[dict[Hashable, int], ...] = ({}, {}, {}, {})

    def rank(worker_config: int, name: Hashable) -> int:
        return ranks[worker_config].setdefault(name, len(ranks[worker_config]))

    keys: list[tuple[int, ...]] = []
    for node_id, unit in zip(
        node_ids, units(node_ids, labels_per_unit=labels_per_unit), strict=True
    ):
        if unit is None or node_id is None:
            keys.append((-1,))
            continue
        criterion, method, model, label = node_id
        of_cases = (rank(0, model), unit.chunk, rank(1, method))
        keys.append((*of_cases, rank(2, criterion), rank(3, (model, label))))
    return sorted(range(len(keys)), key=keys.__getitem__)
