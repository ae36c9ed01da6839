"""Addresses of tests, and the units of work they fall into.

    suites/test_reliability.py::test_reliability[rome-tiny_gpt2-P36/Canada]
                                 criterion       method model    label
    suites/test_reliability.py::test_reliability[rome-tiny_gpt2-sequence_100.0.retained-P36/Canada]
                                                                occasion

A *unit* is model x method x a few dozen cases: what one worker computes at once. A test is one of
ours because of the parameter it was made with, never because of how its id is spelled: another
plug-in may add parameters of its own, and another project may have tests of the same name. The
controller, which has only ids, is told by its workers what they mean (:func:`tell`, :func:`told`).
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.cases.sampling import slug
from kn_bench.measure.protocols import occasion_of

CASES_PER_UNIT = 32
CASES_PER_LARGE_UNIT = 12
"""The same for models that are not embedded, on a CPU. With more, workers end minutes apart, and
one that takes over a unit locates the neurons of its cases again; with fewer, so few prompts are
asked together that reading the weights takes longer than the arithmetic."""


class NodeId(NamedTuple):
    """What a node id of ours says: slugs, not names; ``label`` is a case or a relation.

    ``occasion`` is "" under the protocol ``single``, else ``sequence_100.0.retained``.
    """

    criterion: str
    method: str
    model: str
    label: str
    occasion: str = ""


class UnitKey(NamedTuple):
    """One unit. Units that share ``model`` and ``chunk`` have the same cases.

    Under a protocol of several edits a unit is one whole batch or sequence, ``chunk`` its number.
    """

    model: str
    chunk: int
    method: str


def model_slug(name: str) -> str:
    """Return a model's name in the alphabet of test ids; of a path or a hub id the last part."""
    return slug(name.rstrip("/").rsplit("/", 1)[-1])


def units(
    node_ids: Iterable[NodeId | None], *, labels_per_unit: int = CASES_PER_UNIT
) -> list[UnitKey | None]:
    """Return the unit of each test, None for a foreign test.

    The labels of a model are cut into chunks in the order of their first appearance, the same
    chunks for all of its methods: what methods share they share on one worker. A relation that
    fits into a chunk is not cut: its cases share their background.
    """
    node_ids = list(node_ids)
    chunks = _chunks(node_ids, labels_per_unit)
    same: dict[UnitKey, UnitKey] = {}  # one object for the hundreds of tests of a unit
    keys: list[UnitKey | None] = []
    for node_id in node_ids:
        if node_id is None:
            keys.append(None)
            continue
        if node_id.occasion:
            number = occasion_of(node_id.occasion).sequence
        else:
            number = chunks[node_id.model][node_id.label]
        key = UnitKey(node_id.model, number, node_id.method)
        keys.append(same.setdefault(key, key))
    return keys


def _chunks(node_ids: Iterable[NodeId | None], size: int) -> dict[str, dict[str, int]]:
    """Return model -> label -> chunk, of tests without an occasion."""
    labels: defaultdict[str, dict[str, None]] = defaultdict(dict)  # in order, each once
    for node_id in node_ids:
        if node_id is not None and not node_id.occasion:
            labels[node_id.model][node_id.label] = None
    chunks: dict[str, dict[str, int]] = {}
    for model, of_model in labels.items():
        by_relation: defaultdict[str, list[str]] = defaultdict(list)
        for label in of_model:
            by_relation[label.rpartition("/")[0]].append(label)
        number, used = 0, 0
        chunk_of = chunks[model] = {}
        for members in by_relation.values():
            if used and used + len(members) > size:
                number, used = number + 1, 0
            for label in members:
                if used == size:
                    number, used = number + 1, 0
                chunk_of[label] = number
                used += 1
    return chunks


def order(node_ids: Sequence[NodeId | None], *, labels_per_unit: int = CASES_PER_UNIT) -> list[int]:
    """Return the tests' indices in running order: foreign tests as they were, then by unit.

    Units with the same cases follow one another. Inside a unit the criteria follow one another,
    so that the terminal names each file once a unit.
    """
    ranks: tuple[dict[Hashable, int], ...] = ({}, {}, {}, {}, {})

    def rank(level: int, name: Hashable) -> int:
        return ranks[level].setdefault(name, len(ranks[level]))

    keys: list[tuple[int, ...]] = []
    for node_id, unit in zip(
        node_ids, units(node_ids, labels_per_unit=labels_per_unit), strict=True
    ):
        if unit is None or node_id is None:
            keys.append((-1,))
            continue
        criterion, method, model, label, occasion = node_id
        of_cases = (rank(0, model), unit.chunk, rank(1, method))
        within = (rank(2, criterion), rank(3, occasion), rank(4, (model, label)))
        keys.append((*of_cases, *within))
    return sorted(range(len(keys)), key=keys.__getitem__)


# -- from a worker to the controller -------------------------------------------------------------


TOLD_AT_ONCE = 5_000
"""Tests a line of the message."""


def new_message() -> Path:
    """Name a file by which one worker is to tell the controller of its tests; it is not made yet.

    xdist sends ids and has no message for what a plug-in wants to say of them.
    """
    return Path(tempfile.gettempdir()) / f"kn_bench-{uuid.uuid4().hex}.json"


class Collected(NamedTuple):
    """What a process has collected of our suites.

    Attributes:
        meanings: what the tests to be run ask, by id.
        done: how many more were left out, for a resumed run has them.
        selection: of a shard, a digest of the tests that it was cut from; "" where there are none.
    """

    meanings: Mapping[str, NodeId]
    done: int = 0
    selection: str = ""


def tell(
    message: Path, meanings: Iterable[tuple[str, NodeId]], done: int = 0, selection: str = ""
) -> None:
    """Write down which of a worker's tests are ours, and the rest of its :class:`Collected`.

    Some thousand tests a line, and then the rest: in one piece the message would take as much
    memory as the tests.

    Where there is no room for it, the missing last line tells the controller so, which ends the
    session; an error here would be a traceback of each worker.
    """
    pairs = iter(meanings)
    with suppress(OSError), message.open("w", encoding="ascii") as file:
        while part := list(islice(pairs, TOLD_AT_ONCE)):
            file.write(json.dumps(part) + "\n")
        file.write(json.dumps({"done": done, "selection": selection}) + "\n")


def told(message: Path) -> Collected:
    """Read and remove what :func:`tell` wrote; nothing when the worker has no suite of ours.

    Raises:
        ValueError: when it is cut off: without it nothing could be recorded.
    """
    meanings: dict[str, NodeId] = {}
    rest: dict[str, Any] | None = None
    try:
        with message.open(encoding="ascii") as file, suppress(ValueError):
            for line in file:
                part = json.loads(line)
                if isinstance(part, dict):
                    rest = part
                else:
                    meanings.update((nodeid, NodeId(*fields)) for nodeid, fields in part)
    except FileNotFoundError:
        return Collected({})
    size = message.stat().st_size
    message.unlink()
    if rest is None:
        raise ValueError(
            f"{message} cannot be written (no room for {size} bytes and more); make room in "
            f"{message.parent}, or set TMPDIR"
        )
    return Collected(meanings, **rest)
