"""Units are handed out whole, and every test is run once whatever happens to the workers."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import pairwise
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases.sampling import slug
from kn_bench.testing import node_ids
from kn_bench.testing.node_ids import NodeId, UnitKey
from kn_bench.testing.scheduling import AHEAD, Backlog, ChoosingScheduler, UnitScheduling
from tests.conftest import comparable, outcomes

METHODS, MODELS = ("kn", "rome", "no_edit"), ("tiny_gpt2", "tiny_bert")


def nodeids(cases, criteria=("reliability", "locality"), foreign=0):
    ours = [
        f"suites/test_{criterion}.py::test_{criterion}[{method}-{model}-P36/{case}]"
        for criterion in criteria
        for model in MODELS
        for method in METHODS
        for case in range(cases)
    ]
    return [*ours[:1], *(f"tests/test_other.py::test_{i}" for i in range(foreign)), *ours[1:]]


def meaning(nodeid):
    """What an id of :func:`nodeids` asks; None for a foreign one."""
    match = re.search(r"::test_(\w+)\[(\w+)-(\w+)-([\w/]+)\]$", nodeid)
    return NodeId(*match.groups()) if match else None


def parsed(ids):
    return [meaning(nodeid) for nodeid in ids]


def meanings(ids):
    return {nodeid: node_id for nodeid in ids if (node_id := meaning(nodeid))}


# -- addresses ---------------------------------------------------------------------------------


def test_slugs():
    assert slug("rome-no-c") == "rome_no_c"
    assert node_ids.model_slug("org/Llama-3.2 1B/") == "Llama_3.2_1B"


def test_a_worker_tells_the_controller_what_its_ids_mean():
    known = {"odd[id]-\u2028::x": NodeId("symmetry", "rome", "tiny_gpt2", "pararel/P36/Canada")}
    message = node_ids.new_message()
    assert node_ids.told(message) == ({}, 0, "")
    node_ids.tell(message, known.items(), 3, "x")
    assert node_ids.told(message) == (known, 3, "x")
    assert not message.exists()


def test_units_hold_the_same_cases_for_all_methods():
    ids = nodeids(10, foreign=3)
    keys = node_ids.units(parsed(ids), labels_per_unit=4)
    cases = defaultdict(set)
    for nodeid, key in zip(ids, keys, strict=True):
        node_id = meaning(nodeid)
        assert (key is None) == (node_id is None)
        if key and node_id:
            cases[key].add(node_id.label)
    assert {len(members) for members in cases.values()} == {4, 2}
    for model in MODELS:
        for chunk in range(3):
            assert len({frozenset(cases[UnitKey(model, chunk, m)]) for m in METHODS}) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 6), st.randoms())
def test_a_relation_that_fits_into_a_unit_is_not_cut(sizes, per_unit, dice):
    """Its cases share their background, which would be located once a worker."""
    tests = [
        NodeId("locality", method, "m", f"P{number}/{case}")
        for method in ("rome", "kn")
        for number, size in enumerate(sizes)
        for case in range(size)
    ]
    dice.shuffle(tests)
    labels, relations = defaultdict(set), defaultdict(set)
    for test, key in zip(tests, node_ids.units(tests, labels_per_unit=per_unit), strict=True):
        assert key
        labels[key.chunk].add(test.label)
        relations[test.label.partition("/")[0]].add(key.chunk)
    assert sorted(labels) == list(range(len(labels)))
    assert max(map(len, labels.values())) <= per_unit
    for number, size in enumerate(sizes):
        assert len(relations[f"P{number}"]) == -(-size // per_unit)
    ordered = [tests[i] for i in node_ids.order(tests, labels_per_unit=per_unit)]
    again = [ordered[i] for i in node_ids.order(ordered, labels_per_unit=per_unit)]
    assert again == ordered


def test_order_keeps_units_together_and_groups_side_by_side():
    ids = nodeids(10, foreign=3)
    random.Random(0).shuffle(ids)
    running = [ids[i] for i in node_ids.order(parsed(ids), labels_per_unit=4)]
    assert sorted(running) == sorted(ids)
    foreign = [nodeid for nodeid in ids if "test_other" in nodeid]
    assert running[:3] == foreign
    keys = [key for key in node_ids.units(parsed(running), labels_per_unit=4) if key]
    assert _runs(keys) == len(set(keys))
    assert _runs([(key.model, key.chunk) for key in keys]) == len(
        {(k.model, k.chunk) for k in keys}
    )
    again = [running[i] for i in node_ids.order(parsed(running), labels_per_unit=4)]
    assert again == running


def _runs(keys):
    return 1 + sum(a != b for a, b in pairwise(keys))


# -- the scheduler, against simulated workers ----------------------------------------------------


class Worker:
    """Does what xdist's worker does: starts a test when it knows the next, or that none comes."""

    def __init__(self, name):
        self.gateway = type("Gateway", (), {"id": name})()
        self.queue, self.ran, self.shutting_down = [], [], False

    def send_runtest_some(self, indices):
        assert not self.shutting_down
        self.queue.extend(indices)

    def shutdown(self):
        self.shutting_down = True

    @property
    def can_run(self):
        return len(self.queue) >= AHEAD or (self.shutting_down and bool(self.queue))


class Simulation:
    """xdist's controller, with workers that run, or die, as the dice have it."""

    def __init__(self, ids, workers, dice, labels_per_unit=4, shares=MappingProxyType({})):
        self.ids, self.dice = ids, dice
        self.scheduler = UnitScheduling(workers, meanings(ids), labels_per_unit, shares)
        self.workers, self.crashed, self.ran = [], [], []
        for number in range(workers):
            self.begin(f"gw{number}")

    def begin(self, name):
        worker = Worker(name)
        self.workers.append(worker)
        self.scheduler.add_node(worker)
        self.scheduler.add_node_collection(worker, self.ids)
        if self.scheduler.collection_is_completed:
            self.scheduler.schedule()

    def run(self, crashes):
        while ready := [worker for worker in self.workers if worker.can_run]:
            worker = self.dice.choice(ready)
            if crashes and self.dice.random() < 0.2:
                crashes -= 1
                self.crash(worker)
                continue
            index = worker.queue.pop(0)
            worker.ran.append(index)
            self.ran.append(index)
            self.scheduler.mark_test_complete(worker, index)
        assert self.scheduler.tests_finished
        assert not self.scheduler.has_pending

    def crash(self, worker):
        self.workers.remove(worker)
        item = self.scheduler.remove_node(worker)
        assert item == self.ids[worker.queue[0]]
        self.crashed.append(worker.queue[0])
        self.begin(f"gw{len(self.workers)}+")


@settings(max_examples=150, deadline=None)
@given(
    cases=st.integers(0, 12),
    foreign=st.integers(0, 5),
    workers=st.integers(1, 9),
    crashes=st.integers(0, 6),
    seed=st.integers(0, 2**32),
    shares=st.dictionaries(st.sampled_from(METHODS), st.sampled_from(("neurons", "values"))),
)
def test_every_test_is_run_once_or_reported_as_crashed(
    cases, foreign, workers, crashes, seed, shares
):
    dice = random.Random(seed)
    ids = nodeids(cases, foreign=foreign) if cases else nodeids(0, foreign=foreign)
    simulation = Simulation(ids, workers, dice, shares=shares)
    simulation.run(crashes)
    assert Counter(simulation.ran + simulation.crashed) == Counter(range(len(ids)))


@pytest.mark.parametrize("workers", [1, 2, 4, 50])
def test_a_unit_stays_on_one_worker_and_is_run_without_interruption(workers):
    ids = nodeids(12)
    ids = [ids[i] for i in node_ids.order(parsed(ids), labels_per_unit=4)]
    simulation = Simulation(ids, workers, random.Random(1))
    simulation.run(0)
    keys = node_ids.units(parsed(ids), labels_per_unit=4)
    runs = sum(_runs([keys[i] for i in worker.ran]) for worker in simulation.workers if worker.ran)
    assert runs == len(set(keys))


def test_each_bundle_is_computed_by_one_worker():
    ids = nodeids(12)
    ids = [ids[i] for i in node_ids.order(parsed(ids), labels_per_unit=4)]
    shares = dict.fromkeys(("kn", "no_edit"), "neurons")
    simulation = Simulation(ids, 5, random.Random(1), shares=shares)
    simulation.run(0)
    keys = node_ids.units(parsed(ids), labels_per_unit=4)
    workers_of = defaultdict(set)
    for worker in simulation.workers:
        for key in (keys[i] for i in worker.ran):
            bundle = shares.get(key.method, key.method)
            workers_of[key.model, key.chunk, bundle].add(worker.gateway.id)
    assert all(len(workers) == 1 for workers in workers_of.values())
    assert sum(bool(worker.ran) for worker in simulation.workers) == 5


def test_a_worker_works_through_its_group_and_then_helps():
    backlog = Backlog()
    backlog.add([[[0]], [[1]], [[2]], [[3]]])
    backlog.add([[[10]], [[11]]])
    assert backlog.next("a") == [0]
    assert backlog.next("b") == [10]
    assert backlog.next("a") == [1]
    assert backlog.next("b") == [11]
    assert backlog.next("b") == [3]  # the end of a's group: what a comes to last
    assert backlog.next("a") == [2]
    assert not backlog


def test_the_group_of_a_dead_worker_is_free_again():
    backlog = Backlog()
    backlog.add([[[0]], [[1]]])
    backlog.add([[[10]]])
    backlog.next("a")
    backlog.leave("a")
    assert backlog.next("b") == [1]


def test_methods_that_share_their_work_stay_on_one_worker():
    """A second worker would locate the same neurons again."""
    backlog = Backlog()
    backlog.add([[[0], [1]], [[2]], [[3], [4]]])
    assert backlog.next("a") == [0]
    assert backlog.next("b") == [3]  # a bundle that a has not begun
    assert backlog.next("c") == [2]
    assert backlog.next("c") is None  # what is left, others have begun
    assert backlog
    assert [backlog.next("b"), backlog.next("b")] == [[4], None]
    backlog.leave("a")
    assert backlog.next("b") == [1]
    assert not backlog


def test_tests_of_another_project_are_scheduled_by_xdist_itself():
    made = []
    scheduler = ChoosingScheduler({}, lambda: made.append("ours"), lambda: UnitScheduling(1, {}))
    worker = Worker("gw0")
    scheduler.add_node(worker)
    assert scheduler.nodes == [worker]
    assert not scheduler.collection_is_completed
    assert not scheduler.tests_finished
    scheduler.add_node_collection(worker, ["tests/test_a.py::test_a"])
    assert made == []
    scheduler.schedule()
    assert worker.queue == [0]
    assert scheduler.tests_finished


def test_workers_that_collect_different_tests_are_refused():
    scheduler = UnitScheduling(2, {})
    for name, collected in (("gw0", nodeids(1)), ("gw1", nodeids(2))):
        worker = Worker(name)
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, collected)
    with pytest.raises(pytest.UsageError, match="gw1 collected other tests than the first worker"):
        scheduler.schedule()


# -- real workers ---------------------------------------------------------------------------------

ONCE = [("toy-gpt", "toy-a"), ("toy-gpt", "toy-b"), ("toy-masked", "toy-a")]


@pytest.fixture(scope="module")
def plainly():
    """The rows of a run in one process, once a test has measured them."""
    return []


@pytest.mark.parametrize(
    "how",
    [
        ("-n0",),
        ("-n1",),
        ("-n3",),
        ("-n3", "--dist", "load"),
        ("-n2", "--dist", "loadgroup"),
        ("-n2", "--dist", "worksteal"),
        ("-n2", "--dist=loadscope"),
    ],
    ids=lambda how: "_".join(how).replace("-", ""),
)
def test_every_unit_is_computed_once_and_the_rows_are_the_same(bench, how, plainly):
    if not plainly:  # what one process measures is the same for all of these
        assert bench.run("-q", "-p", "no:xdist", "--run", "plain").ret == 0
        plainly += comparable(bench.rows("plain"))
        (bench.path / "computed.log").unlink()
    result = bench.run("-q", *how, "--run", "how")
    assert result.ret == 0, result.stdout.str()
    assert sorted(bench.computed) == ONCE
    assert comparable(bench.rows("how")) == plainly
    assert not (bench.path / "reports/runs/how/units").exists()


def test_more_workers_than_units_and_one_test(bench):
    one = "reliability and toy_a and toy_gpt and P36/subject_1"
    result = bench.run("-n3", "-k", one)
    assert (result.ret, len(bench.verdicts())) == (0, 1)


@pytest.mark.parametrize(
    ("killer", "workers"),
    [
        ("test_generality[toy_a-toy_gpt-P36/subject_0]", "-n2"),
        ("test_overturn[toy_b-toy_gpt-P37/subject_1]", "-n1"),
        ("test_synonym[toy_b-toy_masked-P106/subject_3]", "-n2"),
    ],
    ids=["first", "middle", "last"],
)
def test_a_killed_worker_loses_one_test(bench, killer, workers):
    result = bench.run("-q", workers, TOY_KILL_AT=killer)
    counted = outcomes(result)
    assert (result.ret, counted["failed"]) == (1, 1)
    assert f"crashed while running 'test_{killer[5:].partition('[')[0]}.py::{killer}'" in (
        result.stdout.str()
    )
    rows = bench.rows()
    crashed = [row for row in rows if type(row).__name__ == "CrashRow"]
    assert [row.criterion for row in crashed] == [killer.partition("[")[0].removeprefix("test_")]
    assert len(bench.verdicts()) == 287
    assert sorted(set(bench.computed)) == sorted(bench.computed) == ONCE


def test_a_worker_killed_while_it_computes(bench):
    result = bench.run("-q", "-n2", TOY_KILL_UNIT="toy-gpt toy-b")
    assert (result.ret, outcomes(result)["failed"]) == (1, 1)
    assert len(bench.verdicts()) == 287


def test_x_and_maxfail_end_a_distributed_session(bench):
    for stop in ("-x", "--maxfail=3"):
        result = bench.run("-q", "-n2", "--strict-criteria", stop, "--run", f"r{stop[-1]}")
        assert result.ret == 2
        assert outcomes(result)["failed"] >= 1
        result.stdout.fnmatch_lines(["kn_bench: go on with this run by --resume r?"])


def test_collecting_with_workers_runs_nothing(bench):
    result = bench.run("-q", "-n2", "--co")
    assert result.ret == 0
    assert not (bench.path / "reports").exists()


def test_dist_each_is_refused(bench):
    result = bench.run("-n2", "--dist", "each")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --dist each: expected another*"])
