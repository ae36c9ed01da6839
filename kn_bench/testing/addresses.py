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

CASES_PER_UNIT = 32

# strict, for with xdist the ids are all that tells our tests from those of another project; the
# file has no name in them where it is pytest's root
_ADDRESS = re.compile(
    r"(?:^|(?:^|/)test_(\w+)\.py)::test_(reliability|generality|locality|symmetry|synonym|overturn)"
    r"\[([A-Za-z0-9_.]+)-([A-Za-z0-9_.]+)-([A-Za-z0-9_./]+)\]$"
)
_FOREIGN_TO_IDS = re.compile(r"[^A-Za-z0-9_.]")


class Address(NamedTuple):
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


def slug(name: str) -> str:
    """A name in the alphabet of test ids, where '-' separates: ``rome-no-c`` -> ``rome_no_c``.

    Of a path or a hub id the last part is kept.
    """
    return _FOREIGN_TO_IDS.sub("_", name.rstrip("/").rsplit("/", 1)[-1])


def parse(nodeid: str) -> Address | None:
    """The address in a node id; None for a test that is not ours."""
    found = _ADDRESS.search(nodeid)
    if not found or found[1] not in (None, found[2]):
        return None
    return Address(*found.groups()[1:])


def units(
    addresses: Iterable[Address | None], *, labels_per_unit: int = CASES_PER_UNIT
) -> list[UnitKey | None]:
    """The unit of each test, None for a foreign test.

    The labels of a model are cut into chunks in the order of their first appearance, the same
    chunks for all of its methods: what methods share they share on one worker.
    """
    seen: dict[str, dict[str, int]] = {}
    keys: list[UnitKey | None] = []
    for address in addresses:
        if address is None:
            keys.append(None)
            continue
        labels = seen.setdefault(address.model, {})
        number = labels.setdefault(address.label, len(labels))
        keys.append(UnitKey(address.model, number // labels_per_unit, address.method))
    return keys


def order(
    addresses: Sequence[Address | None], *, labels_per_unit: int = CASES_PER_UNIT
) -> list[int]:
    """Indices of the tests in running order: foreign tests as they were, then unit after unit.

    Units with the same cases follow one another. Inside a unit the criteria follow one another,
    so that the terminal names each file once a unit.
    """
    ranks: tuple[dict[Hashable, int], ...] = ({}, {}, {}, {})

    def rank(place: int, name: Hashable) -> int:
        return ranks[place].setdefault(name, len(ranks[place]))

    keys: list[tuple[int, ...]] = []
    for address, unit in zip(
        addresses, units(addresses, labels_per_unit=labels_per_unit), strict=True
    ):
        if unit is None or address is None:
            keys.append((-1,))
            continue
        criterion, method, model, label = address
        of_cases = (rank(0, model), unit.chunk, rank(1, method))
        keys.append((*of_cases, rank(2, criterion), rank(3, (model, label))))
    return sorted(range(len(keys)), key=keys.__getitem__)
