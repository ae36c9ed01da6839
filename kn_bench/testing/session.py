"""The process that runs the tests: makes them, computes their units, answers with verdicts.

pytest_generate_tests       model x method x case, for each suite
modifyitems                 unit after unit; what a resumed run has is left out
verdict                     first test of a unit: load, edit, measure; then look up and judge
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import pytest

from kn_bench.cases.case import ALL_CRITERIA, OPTIONAL_CRITERIA, Case, Criterion
from kn_bench.editing.registry import MethodSpec
from kn_bench.measure.criteria import judge
from kn_bench.measure.measurement import CaseResult, Checkpoint, UnitResult, control_name
from kn_bench.results.rows import Key, encode_rows
from kn_bench.testing import node_ids, outcomes
from kn_bench.testing.computing import UnitComputer, plan_of
from kn_bench.testing.items import SuiteTest, can_stand_for_all, set_unit, suite_tests, unit_of
from kn_bench.testing.models import Models, defined_for
from kn_bench.testing.node_ids import NodeId, UnitKey
from kn_bench.testing.options import Options
from kn_bench.testing.others import do_without
from kn_bench.testing.plan import TestPlan
from kn_bench.testing.points import Point, Work
from kn_bench.testing.progress import FileProgress
from kn_bench.testing.sequences import tests_of, unpack_sequences
from kn_bench.testing.shards import Shard, in_shard, selection
from kn_bench.testing.units import UnitResults
from kn_bench.testing.unmeasured import all_cases, ended_workers, sentence
from kn_bench.testing.worker_config import WorkerConfig

if TYPE_CHECKING:
    from kn_bench.editing.settings import Choices, Settings
    from kn_bench.measure.verdict import Verdict
    from kn_bench.model.language_model import LanguageModel


class SuiteSession:
    """A plug-in that is registered once a suite of ours is collected."""

    def __init__(
        self,
        options: Options,
        plan: TestPlan,
        methods: Sequence[MethodSpec],
        worker_config: WorkerConfig,
        choices: Choices,
    ) -> None:
        self._choices = choices
        self._sampling = False
        self._plan = plan
        self._left_out = 0
        self._of_all_shards: frozenset[NodeId] = frozenset()
        self._mine: frozenset[NodeId] = frozenset()
        self._methods = methods
        self._by_name = bool(options.methods)  # who names a method is told why it does not apply
        self._done = worker_config.done
        self._progress = FileProgress(worker_config.progress)
        self._models = Models(
            options,
            worker_config.device,
            worker_config.commits,
            templates=worker_config.templates,
            workers=worker_config.workers,
            progress=self._progress,
        )
        self._results = UnitResults(worker_config.units)
        self._members: dict[UnitKey, dict[str, Case]] = {}
        self._seconds: dict[UnitKey, str] = {}
        self._options = options
        self._computer = UnitComputer(options, worker_config, self._models)
        self._sequences = unpack_sequences(worker_config.sequences, plan, options.protocol)
        self._curves_told: set[UnitKey] = set()

    # -- collection ------------------------------------------------------------------------

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """One test a model, method and label for the suite's criterion."""
        points = self._points(criterion_of(metafunc.function.__name__))
        if self._sampling:
            points = islice(points, 1)
        parameters = [pytest.param(point, id=point.id, marks=point.marks) for point in points]
        metafunc.parametrize("verdict", parameters, indirect=True)

    def tests(self, collector: pytest.Module, function: Callable[..., object]) -> list[Any] | None:
        """Return the tests of a suite, light ones; None where pytest has to make them.

        Args:
            collector: the suite's module.
            function: its test.
        """
        self._sampling = True
        try:
            sample = list(collector._genfunctions(function.__name__, function))
        finally:
            self._sampling = False
        if not can_stand_for_all(sample) or not self._plain_labels:
            return None
        return suite_tests(sample[0], self._points(criterion_of(function.__name__)))

    @cached_property
    def _plain_labels(self) -> bool:
        """Whether pytest would leave all ids as they are."""
        return all(label.isascii() and label.isprintable() for label in self._plan.labels)

    def _points(self, criterion: Criterion) -> Iterator[Point]:
        points = self._in_sequences(criterion) if self._sequences else self._apart(criterion)
        return _where_asked(criterion, points) if criterion in OPTIONAL_CRITERIA else points

    def _apart(self, criterion: Criterion) -> Iterator[Point]:
        """Under the protocol ``single``: every case by itself, if it can show the criterion."""
        labels = self._plan.showing(criterion)
        for model in self._plan.models.values():
            for method in self._methods:
                if not self._by_name and not defined_for(method.models, model):
                    continue
                for label, cases in labels.items():
                    yield Point(criterion, method, model, cases, label)

    def _in_sequences(self, criterion: Criterion) -> Iterator[Point]:
        """Every case of every sequence, once for each time of asking."""
        for model_slug, model in self._plan.models.items():
            for method in self._methods:
                for sequence in self._sequences[model_slug]:
                    for label, cases, occasion in tests_of(sequence, self._options):
                        yield Point(criterion, method, model, cases, label, occasion, sequence)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if self._options.shard is not None:
            self._keep_shard(config, items, self._options.shard)
        if self._done:
            done = [item for item in items if self._is_done(item)]
            self._left_out = len(done)
            config.hook.pytest_deselected(items=done)
            left_out = set(done)
            self._mine = self._mine.difference(map(_address, done))
            items[:] = [item for item in items if item not in left_out]
        per_unit = self._plan.labels_per_unit
        running = node_ids.order(list(map(_address, items)), labels_per_unit=per_unit)
        items[:] = [items[index] for index in running]

    def _keep_shard(self, config: pytest.Config, items: list[pytest.Item], shard: Shard) -> None:
        asked = list(map(_address, items))
        per_unit = self._plan.labels_per_unit
        kept = in_shard(asked, shard, labels_per_unit=per_unit, labels=self._plan.labels)
        self._of_all_shards = frozenset(each for each in asked if each is not None)
        self._mine = frozenset(
            each for each, mine in zip(asked, kept, strict=True) if mine and each is not None
        )
        others = [item for item, mine in zip(items, kept, strict=True) if not mine]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item, mine in zip(items, kept, strict=True) if mine]

    def _is_done(self, item: pytest.Item) -> bool:
        point = point_of(item)
        return point is not None and all(point.key(case) in self._done for case in point.cases)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Which cases each unit has: those of the tests that are left."""
        points = list(map(point_of, session.items))
        addresses = [point and point.node_id for point in points]
        keys = node_ids.units(addresses, labels_per_unit=self._plan.labels_per_unit)
        for item, point, unit in zip(session.items, points, keys, strict=True):
            if unit is not None and point is not None:
                set_unit(item, unit)
                # a sequence is measured whole, whatever is left of it to be reported
                cases = point.sequence.cases if point.sequence else point.cases
                members = self._members.setdefault(unit, {})
                for case in cases:
                    members[case.id] = case
        if None not in keys:
            do_without(session.config)

    def meanings(self, items: Iterable[pytest.Item]) -> Iterator[tuple[str, NodeId]]:
        """Yield the ids of the tests of ours among ``items``, and what they ask."""
        for item in items:
            node_id = _address(item)
            if node_id is not None:
                yield item.nodeid, node_id

    def left_out(self, items: Iterable[pytest.Item]) -> tuple[int, str]:
        """Return how many tests a resumed run has already, and what a shard was cut from.

        Of the latter less what a plug-in has taken away afterwards (--lf).
        """
        lacking = self._mine.difference(map(_address, items)) if self._mine else self._mine
        return self._left_out, selection(self._of_all_shards - lacking)

    # -- running ---------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        ended = yield
        if isinstance(item, SuiteTest):
            item.cut_back()
        return ended

    @pytest.hookimpl(trylast=True)  # once all fixtures are torn down
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        if nextitem is None:
            self._computer.left_running.end(item)

    def model(self, item: pytest.Item) -> LanguageModel:
        """The model of a test, loaded."""
        point = point_of(item)
        if point is None:
            raise pytest.UsageError(
                f"{item.nodeid} asks for language_model but not for a verdict: there is no model "
                "that it could be; load one with kn_bench.model.loading.load_model"
            )
        return self._models.model(point.model)

    def settings(self, item: pytest.Item) -> Settings:
        """Return the settings of a test's method for its model."""
        from kn_bench.editing.settings import settings_for

        point = point_of(item)
        assert point is not None
        assert point.method.settings is not None
        return settings_for(
            point.method.name, point.method.settings, self._models.model(point.model), self._choices
        )

    def deliver(self, unit: UnitKey, result: UnitResult, seconds: str) -> None:
        """Take in what another process computed; the tests of ``unit`` will find it."""
        self._results.put(unit, result)
        self._seconds[unit] = seconds

    def verdict(self, request: pytest.FixtureRequest) -> Verdict:
        """The verdict of one test; leaves its rows for the report.

        Skips, or fails the set-up, where there is nothing to assert.
        """
        item, point = request.node, cast(Point, request.param)
        unit = unit_of(item)
        assert unit is not None
        cases = self._members[unit]

        def compute() -> UnitResult:
            work = self.work(point, unit)
            name = f"{point.method.name} on {unit.model}, {len(cases)} cases"
            with self._progress.unit(name, len(cases)):
                result, self._seconds[unit] = self._computer.compute(request, work)
            return result

        def lethal() -> UnitResult:
            work = self.work(point, unit)
            return all_cases(work, error=ended_workers(work))

        computed = self._results.get(unit, cases, compute, lethal)
        retained = point.occasion.asked == "retained"
        results = computed.retained if retained else computed.results
        steps = plan_of(self._options, point.sequence).step_of() if point.sequence else {}
        curve = () if unit in self._curves_told else computed.checkpoints
        verdicts, rows = [], []
        for case in point.cases:
            result, step = results[case.id], steps.get(case.id, 0)
            try:
                verdict, text = _judged(point, case, result, step, curve)
            except Exception as error:  # what a method leaves may have no form in the log
                said = sentence(self.work(point, unit), error)
                unstored = CaseResult(case.id, None, (), error=said)
                verdict, text = _judged(point, case, unstored, step, ())
            else:
                self._curves_told.add(unit)
                curve = ()
                if result.edit or result.written:  # these go with the first test of the case
                    results[case.id] = replace(result, edit=None, written=None)
            verdicts.append(verdict)
            rows.append(text)
        concluded = outcomes.conclude(verdicts)
        seconds = self._seconds.pop(unit, "")
        item.stash[outcomes.RECORD] = outcomes.Record(concluded, "".join(rows), seconds)
        outcomes.stop_unless_scored(concluded)
        return outcomes.shown(concluded)

    def work(self, point: Point, unit: UnitKey) -> Work:
        """Return what the unit of a test asks for."""
        cases = tuple(self._members[unit].values())
        return Work(point.method, point.model, cases, point.sequence)


def _judged(
    point: Point, case: Case, result: CaseResult, step: int, curve: Sequence[Checkpoint]
) -> tuple[Verdict, str]:
    """Return what the criterion of a test says of a case, and the rows that keep it."""
    key, verdict = point.key(case), judge(point.criterion, case, result)
    control = "" if result.control is None else _control_rows(key, case, result.control)
    return verdict, control + encode_rows(key, case, result, verdict, step=step, curve=curve)


def _control_rows(key: Key, case: Case, control: CaseResult) -> str:
    """The rows of the method's control, which come with the method's own."""
    named = key._replace(method=control_name(key.method))
    return encode_rows(named, case, control, judge(key.criterion, case, control))


def _where_asked(criterion: Criterion, points: Iterable[Point]) -> Iterator[Point]:
    """Return the points with those of their cases that have a probe of ``criterion``."""
    for point in points:
        cases = tuple(c for c in point.cases if any(p.criterion == criterion for p in c.probes))
        if cases:
            yield point._replace(cases=cases)


def _param(item: pytest.Item) -> object:
    callspec: Any = getattr(item, "callspec", None)
    params: Mapping[str, object] = callspec.params if callspec is not None else {}
    return params.get("verdict")


def point_of(item: pytest.Item) -> Point | None:
    """The parameter of a test of ours, None of a foreign one."""
    if isinstance(item, SuiteTest):
        return item.point
    point = _param(item)
    return point if isinstance(point, Point) else None


def _address(item: pytest.Item) -> NodeId | None:
    """What the node id of a test says, without taking it apart."""
    point = point_of(item)
    return point.node_id if point else None


def criterion_of(function: str) -> Criterion:
    """``reliability`` of ``test_reliability``.

    Raises:
        pytest.UsageError: when the function is named after none of the criteria.
    """
    for criterion in ALL_CRITERIA:
        if function == f"test_{criterion}":
            return criterion
    raise pytest.UsageError(
        f"{function} asks for a verdict but is named after no criterion; "
        f"a suite's test is called test_ and one of {', '.join(ALL_CRITERIA)}"
    )
