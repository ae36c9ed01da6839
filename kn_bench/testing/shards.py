"""Shards: a fixed part of a run's units, computed anywhere, merged by content.

Every machine collects all tests and so knows all units, in whatever order it has collected them.
Units are put in the order of a hash of what they hold, and dealt round: each machine knows its part
without talking to the others, and no shard has more than one unit above any other.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kn_bench.testing.node_ids import NodeId, UnitKey, units

_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")


class Shard(NamedTuple):
    """The ``number``-th of ``total`` shards; the first is 1, as CI matrices and people count."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def parse_shard(text: str) -> Shard:
    """Return the shard that ``text`` names, such as ``2/4``.

    Raises:
        ValueError: for any other form, or an index beyond the count.
    """
    match = _SHARD.fullmatch(text.strip())
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(
            f"--shard {text!r}: expected INDEX/COUNT with an index from 1 to the count, such as 2/4"
        )
    return Shard(int(match[1]), int(match[2]))


def in_shard(
    node_ids: Sequence[NodeId | None],
    shard: Shard,
    *,
    labels_per_unit: int,
    labels: Iterable[str] = (),
) -> list[bool]:
    """Return for each test whether its unit is in ``shard``; foreign tests are in every shard.

    Args:
        node_ids: the tests of all shards, in any order.
        shard: the one that is measured here.
        labels_per_unit: how many labels one worker computes at once.
        labels: all labels in the order of their source, which units keep.
    """
    unit_of = _units(node_ids, labels_per_unit, {label: i for i, label in enumerate(labels)})
    contents: defaultdict[UnitKey, set[tuple[str, str]]] = defaultdict(set)
    for node_id, unit in zip(node_ids, unit_of, strict=True):
        if node_id is not None and unit is not None:
            contents[unit].add((node_id.label, node_id.occasion))
    dealt = sorted(contents, key=lambda unit: _digest(unit, contents[unit]))
    mine = {unit for rank, unit in enumerate(dealt) if rank % shard.total == shard.number - 1}
    return [unit is None or unit in mine for unit in unit_of]


def _units(
    node_ids: Sequence[NodeId | None], labels_per_unit: int, rank: Mapping[str, int]
) -> list[UnitKey | None]:
    """Return the unit of each test as it is where nothing has put the tests in another order."""

    def place(index: int) -> tuple[str, int, str]:
        node_id = node_ids[index]
        if node_id is None:
            return ("", 0, "")
        return (node_id.criterion, rank.get(node_id.label, len(rank)), node_id.label)

    collected = sorted(range(len(node_ids)), key=place)
    cut = units([node_ids[index] for index in collected], labels_per_unit=labels_per_unit)
    unit_of: list[UnitKey | None] = [None] * len(node_ids)
    for index, unit in zip(collected, cut, strict=True):
        unit_of[index] = unit
    return unit_of


def selection(node_ids: Iterable[NodeId]) -> str:
    """Return a digest of the tests that shards were cut from; "" where there are none."""
    lines = sorted("\t".join(node_id) for node_id in node_ids)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def _digest(unit: UnitKey, labels: set[tuple[str, str]]) -> bytes:
    """Hash what a unit holds: its number depends on the order of collection, so it is left out."""
    content = repr((unit.model, unit.method, sorted(labels)))
    return hashlib.sha256(content.encode()).digest()
