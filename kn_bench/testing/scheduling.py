"""Hand out whole units, so that one worker makes a unit's edits, and once.

xdist's own ``loadgroup`` does not do it: with pytest 9.2 it silently stops grouping
(pytest-dev/pytest-xdist#1386), it is quadratic in the number of tests (#1212), and a crashed worker
can hang it or run its tests again (#1323, #1327, #1371, #1378).

Units with the same cases form a group. A worker takes a group and works through its units, because
what methods share (the unedited model's answers) is in that worker's memory. Units of methods that
share most of their work (located neurons, an optimisation) form a bundle in it, which is never
divided: the second worker would do that work again. A worker that finds no group left takes a
bundle from the end of the longest group under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from kn_bench.cases.sampling import slug
from kn_bench.measure.protocols import Protocol
from kn_bench.testing import node_ids
from kn_bench.testing.node_ids import NodeId

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

Unit = list[int]
"""Indices of the tests of one unit that are still to be run, in running order."""
Bundle = Sequence[Unit]
"""Units of the same cases that one worker computes."""
AHEAD = 2
"""Tests to keep queued on a worker: it starts a test only when it knows the next one."""


class Backlog:
    """The units that no worker has yet, in groups of bundles."""

    def __init__(self) -> None:
        self._free: deque[deque[deque[Unit]]] = deque()
        self._taken: dict[Hashable, deque[deque[Unit]]] = {}
        self._begun: dict[Hashable, deque[Unit]] = {}

    def __bool__(self) -> bool:
        return bool(self._free) or any(self._taken.values()) or any(self._begun.values())

    def add(self, group: Sequence[Bundle]) -> None:
        """Put a group at the end."""
        self._free.append(deque(map(deque, group)))

    def next(self, worker: Hashable) -> Unit | None:
        """Return the unit that suits ``worker`` best: of its bundle, its group, a new or another's.

        None when nothing is left but bundles that others have begun.
        """
        if not self._begun.get(worker):
            if not self._taken.get(worker) and not self._take(worker):
                return None
            self._begun[worker] = self._taken[worker].popleft()
        return self._begun[worker].popleft()

    def _take(self, worker: Hashable) -> bool:
        """Give ``worker`` a new group, or the last bundle of the longest that is under way."""
        if self._free:
            self._taken[worker] = self._free.popleft()
            return True
        longest = max(self._taken.values(), key=lambda group: sum(map(len, group)), default=None)
        if not longest:
            return False
        self._taken[worker] = deque([longest.pop()])
        return True

    def leave(self, worker: Hashable) -> None:
        """Free what is left of the group of a worker that is gone."""
        rest = self._taken.pop(worker, deque())
        if begun := self._begun.pop(worker, None):
            rest.appendleft(begun)
        if rest:
            self._free.appendleft(rest)


class UnitScheduling:
    """An xdist scheduler that never splits a unit; every operation is O(1) a test."""

    def __init__(
        self,
        workers: int,
        meanings: Mapping[str, NodeId],
        labels_per_unit: int = node_ids.CASES_PER_UNIT,
        shares: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.numnodes = workers
        self._meanings = meanings
        self._shares = shares
        self.labels_per_unit = labels_per_unit
        self.collection: list[str] | None = None
        self.pending: dict[WorkerController, dict[int, None]] = {}
        self._collected: dict[WorkerController, list[str]] = {}
        self._units: list[node_ids.UnitKey | None] = []
        self._backlog = Backlog()

    @property
    def nodes(self) -> list[WorkerController]:
        return list(self.pending)

    @property
    def collection_is_completed(self) -> bool:
        return self.collection is not None or len(self._collected) >= self.numnodes

    @property
    def has_pending(self) -> bool:
        return bool(self._backlog) or any(self.pending.values())

    @property
    def tests_finished(self) -> bool:
        return (
            self.collection_is_completed
            and not self._backlog
            and all(len(tests) < AHEAD for tests in self.pending.values())
        )

    def add_node(self, node: WorkerController) -> None:
        self.pending[node] = {}

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        self._collected[node] = list(collection)

    def schedule(self) -> None:
        """Cut the collection into units the first time, and give every idle worker some."""
        if self.collection is None:
            self.collection = next(iter(self._collected.values()))
            known = map(self._meanings.get, self.collection)
            self._units = node_ids.units(known, labels_per_unit=self.labels_per_unit)
            for group in groups(self._units, self._shares):
                self._backlog.add(group)
        for node, collected in self._collected.items():
            if collected != self.collection:
                raise pytest.UsageError(
                    f"{node.gateway.id} collected other tests than the first worker did: cases "
                    "and ids must not depend on the process that makes them"
                )
        for node in self.nodes:
            self._feed(node)

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        self.pending[node].pop(item_index, None)
        self._feed(node)

    def mark_test_pending(self, item: str) -> None:
        raise NotImplementedError("a test is run once")

    def remove_pending_tests_from_node(
        self, node: WorkerController, indices: Sequence[int]
    ) -> None:
        raise NotImplementedError("no test is taken back from a worker")

    def remove_node(self, node: WorkerController) -> str | None:
        """Put back what a dead worker had left, except the test that killed it; returns that test.

        It goes to the end: should the same unit kill its next worker too, everything else is
        measured by then.
        """
        tests = list(self.pending.pop(node))
        rest = tests[1:]
        self._backlog.leave(node)
        for group in groups([self._units[index] for index in rest], self._shares):
            self._backlog.add([[[rest[i] for i in unit] for unit in bundle] for bundle in group])
        for other in self.nodes:
            self._feed(other)
        return self.collection[tests[0]] if tests and self.collection else None

    def _feed(self, node: WorkerController) -> None:
        if node.shutting_down or self.collection is None or node not in self._collected:
            return
        pending = self.pending[node]
        while len(pending) < AHEAD and (unit := self._backlog.next(node)) is not None:
            pending.update(dict.fromkeys(unit))
            node.send_runtest_some(unit)
        if len(pending) < AHEAD or not self._backlog:  # told so, it runs its last test
            node.shutdown()


def shares_by_slug(shares: Mapping[str, str], protocol: Protocol) -> dict[str, str]:
    """Return what keeps methods on one worker, by slug, of those that share anything.

    Nothing does in a sequence: after its first step each method has a model of its own.

    Args:
        shares: what each method has in common with others, by name; "" for nothing.
    """
    if protocol.name == "sequence":
        return {}
    return {slug(name): what for name, what in shares.items() if what}


def groups(
    units: Sequence[node_ids.UnitKey | None], shares: Mapping[str, str] = MappingProxyType({})
) -> list[list[Bundle]]:
    """Return indices by unit, units by bundle, and bundles by group.

    A foreign test is a unit, a bundle and a group of its own.

    Args:
        shares: what methods have in common with others, by slug.
    """
    groups: dict[Hashable, dict[Hashable, dict[Hashable, Unit]]] = {}
    for index, unit in enumerate(units):
        group: Hashable = (unit.model, unit.chunk) if unit else index
        bundle = shares.get(unit.method, unit.method) if unit else ""
        members = groups.setdefault(group, {}).setdefault(bundle, {})
        members.setdefault(unit, []).append(index)
    return [[list(members.values()) for members in group.values()] for group in groups.values()]


class ChoosingScheduler:
    """Decides when the first tests are known: units of ours, or xdist's own way.

    Which tests there are is known only after the scheduler is chosen, and a session without a
    suite of ours is not ours to schedule.
    """

    def __init__(
        self,
        meanings: Mapping[str, NodeId],
        ours: Callable[[], Any],
        theirs: Callable[[], Any],
    ) -> None:
        self._meanings = meanings
        self._makers = (ours, theirs)
        self._waiting: list[WorkerController] = []
        self._chosen: Any = None

    def add_node(self, node: WorkerController) -> None:
        if self._chosen is None:
            self._waiting.append(node)
        else:
            self._chosen.add_node(node)

    def remove_node(self, node: WorkerController) -> str | None:
        if self._chosen is not None:
            return self._chosen.remove_node(node)  # type: ignore[no-any-return]
        if node not in self._waiting:
            raise KeyError(node)
        self._waiting.remove(node)
        return None

    @property
    def nodes(self) -> list[WorkerController]:
        return list(self._waiting) if self._chosen is None else self._chosen.nodes

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        if self._chosen is None:
            ours, theirs = self._makers
            has_ours = any(nodeid in self._meanings for nodeid in collection)
            self._chosen = (ours if has_ours else theirs)()
            for waiting in self._waiting:
                self._chosen.add_node(waiting)
        self._chosen.add_node_collection(node, collection)

    @property
    def collection_is_completed(self) -> bool:
        return self._chosen is not None and self._chosen.collection_is_completed

    @property
    def has_pending(self) -> bool:
        return self._chosen is not None and self._chosen.has_pending

    @property
    def tests_finished(self) -> bool:
        return self._chosen is not None and self._chosen.tests_finished

    def __getattr__(self, name: str) -> Any:
        """Everything that is called after the tests are known goes to the chosen scheduler."""
        if self._chosen is None:
            raise AttributeError(f"no scheduler is chosen yet that has {name!r}")
        return getattr(self._chosen, name)


def make_scheduler(
    config: pytest.Config,
    log: Any,
    meanings: Mapping[str, NodeId],
    labels_per_unit: int,
    shares: Mapping[str, str],
) -> ChoosingScheduler | None:
    """The scheduler of a session whose user named no ``--dist``; None where he did."""
    if named_dist(config):
        return None
    from xdist.scheduler import LoadScheduling
    from xdist.workermanage import parse_tx_spec_config

    workers = len(parse_tx_spec_config(config))
    return ChoosingScheduler(
        meanings,
        ours=lambda: UnitScheduling(workers, meanings, labels_per_unit, shares),
        theirs=lambda: LoadScheduling(config, log),
    )


def named_dist(config: pytest.Config) -> bool:
    """Whether the user chose a distribution himself.

    ``-n`` sets ``dist`` to ``load`` too, so the words themselves are looked at.
    """
    if config.getoption("dist", "no") not in ("load", "no"):
        return True
    from kn_bench.testing.options import command_line

    return any(word == "-d" or word.startswith("--dist") for word in command_line(config))
