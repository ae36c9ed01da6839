"""The process that runs the tests: makes them, computes their units, answers with verdicts.

pytest_generate_tests       model x method x case, for each suite
modifyitems                 unit after unit; what a resumed run has is left out
verdict                     first test of a unit: load, edit, measure; then look up and judge
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from kn_bench.cases.case import ALL_CRITERIA, OPTIONAL_CRITERIA, Case, Criterion, Task
from kn_bench.cases.sampling import slug
from kn_bench.editing.registry import MethodSpec
from kn_bench.measure.criteria import judge
from kn_bench.measure.measurement import CaseResult, UnitResult, control_name
from kn_bench.results.escaping import terminal
from kn_bench.results.rows import Key, encode_rows
from kn_bench.testing import generations, node_ids, outcomes
from kn_bench.testing.controller import WorkerConfig
from kn_bench.testing.limits import no_exit, time_limit
from kn_bench.testing.models import Models, defined_for
from kn_bench.testing.node_ids import NodeId, UnitKey
from kn_bench.testing.options import Options
from kn_bench.testing.plan import TestPlan
from kn_bench.testing.points import Point
from kn_bench.testing.progress import FileProgress
from kn_bench.testing.sequences import tests_of, unpack_sequences
from kn_bench.testing.shards import Shard, in_shard
from kn_bench.testing.units import UnitResults
from kn_bench.testing.unmeasured import all_cases, ended_workers, sentence, with_origin

if TYPE_CHECKING:
    from kn_bench.editing.settings import Choices, Settings
    from kn_bench.measure.engine import Engine
    from kn_bench.measure.sequences import Plan
    from kn_bench.measure.verdict import Verdict
    from kn_bench.model.language_model import LanguageModel

_MARKS: dict[Task, tuple[pytest.MarkDecorator]] = {
    "fact": (pytest.mark.facts,),
    "pair": (pytest.mark.pairs,),
}
"""No marks for methods and models: -k finds them, and each mark goes with every report."""
UNIT = pytest.StashKey[UnitKey]()


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
        self._plan = plan
        self._timeout = options.timeout_per_unit
        self._left_out = 0
        self._methods = methods
        self._by_name = bool(options.methods)  # who names a method is told why it does not apply
        self._done = worker_config.done
        self._progress = FileProgress(worker_config.progress)
        self._models = Models(
            options,
            worker_config.device,
            worker_config.commits,
            workers=worker_config.workers,
            progress=self._progress,
        )
        self._results = UnitResults(worker_config.units)
        self._members: dict[UnitKey, dict[str, Case]] = {}
        self._seconds: dict[UnitKey, str] = {}
        self._options = options
        self._edits = worker_config.edits
        self._sequences = unpack_sequences(worker_config.sequences, plan, options.protocol)
        self._curves_told: set[UnitKey] = set()

    # -- collection ------------------------------------------------------------------------

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """One test a model, method and label for the suite's criterion."""
        criterion = criterion_of(metafunc.function.__name__)
        points = self._in_sequences(criterion) if self._sequences else self._apart(criterion)
        if criterion in OPTIONAL_CRITERIA:
            points = _where_asked(criterion, points)
        parameters = [
            pytest.param(point, id=_id(point.node_id), marks=_MARKS[point.cases[0].task])
            for point in points
        ]
        metafunc.parametrize("verdict", parameters, indirect=True)

    def _apart(self, criterion: Criterion) -> Iterator[Point]:
        """Under the protocol ``single``: every case by itself, if it can show the criterion."""
        labels = self._plan.showing(criterion)
        for model_slug, model in self._plan.models.items():
            for method in self._methods:
                if not self._by_name and not defined_for(method.models, model):
                    continue
                for label, cases in labels.items():
                    node_id = NodeId(criterion, slug(method.name), model_slug, label)
                    yield Point(criterion, method, model, cases, node_id)

    def _in_sequences(self, criterion: Criterion) -> Iterator[Point]:
        """Every case of every sequence, once for each time of asking."""
        for model_slug, model in self._plan.models.items():
            for method in self._methods:
                for sequence in self._sequences[model_slug]:
                    for label, cases, occasion in tests_of(sequence, self._options):
                        at = (criterion, slug(method.name), model_slug, label, occasion.slug)
                        yield Point(
                            criterion, method, model, cases, NodeId(*at), occasion, sequence
                        )

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
            items[:] = [item for item in items if item not in left_out]
        per_unit = self._plan.labels_per_unit
        running = node_ids.order(list(map(_address, items)), labels_per_unit=per_unit)
        items[:] = [items[index] for index in running]

    def _keep_shard(self, config: pytest.Config, items: list[pytest.Item], shard: Shard) -> None:
        kept = in_shard(
            list(map(_address, items)), shard, labels_per_unit=self._plan.labels_per_unit
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
        parsed = map(_address, session.items)
        keys = node_ids.units(parsed, labels_per_unit=self._plan.labels_per_unit)
        for item, unit in zip(session.items, keys, strict=True):
            point = point_of(item)
            if unit is not None and point is not None:
                item.stash[UNIT] = unit
                item.stash[outcomes.OURS] = True
                # a sequence is measured whole, whatever is left of it to be reported
                cases = point.sequence.cases if point.sequence else point.cases
                self._members.setdefault(unit, {}).update((case.id, case) for case in cases)
        if all(UNIT in item.stash for item in session.items):
            _leave_out_log_capture(session.config)

    def collected(self, items: Sequence[pytest.Item]) -> node_ids.Collected:
        """What the tests of ours among ``items`` ask, and how many a resumed run has already."""
        known = ((item.nodeid, _address(item)) for item in items)
        meanings = {nodeid: node_id for nodeid, node_id in known if node_id is not None}
        return node_ids.Collected(meanings, self._left_out)

    # -- running ---------------------------------------------------------------------------

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

    def verdict(self, request: pytest.FixtureRequest) -> Verdict:
        """The verdict of one test; leaves its rows for the report.

        Skips, or fails the set-up, where there is nothing to assert.
        """
        item, point = request.node, cast(Point, request.param)
        unit = item.stash[UNIT]
        cases = self._members[unit]

        def compute() -> UnitResult:
            with self._progress.unit(f"{point.method.name} on {unit.model}, {len(cases)} cases"):
                return self._compute(request, point, unit)

        def lethal() -> UnitResult:
            return all_cases(point, tuple(cases.values()), error=ended_workers(point))

        computed = self._results.get(unit, cases, compute, lethal)
        retained = point.occasion.asked == "retained"
        results = computed.retained if retained else computed.results
        steps = self._plan_of(point).step_of() if point.sequence else {}
        verdicts, rows = [], []
        for case in point.cases:
            result = results[case.id]
            verdict = judge(point.criterion, case, result)
            curve = () if unit in self._curves_told else computed.checkpoints
            self._curves_told.add(unit)
            step = steps.get(case.id, 0)
            key = point.key(case)
            if result.control is not None:
                rows.append(_control_rows(key, case, result.control))
            rows.append(encode_rows(key, case, result, verdict, step=step, curve=curve))
            verdicts.append(verdict)
            if result.edit or result.written:  # these go with the first test of the case
                results[case.id] = replace(result, edit=None, written=None)
        concluded = outcomes.conclude(verdicts)
        seconds = self._seconds.pop(unit, "")
        item.stash[outcomes.RECORD] = outcomes.Record(concluded, "".join(rows), seconds)
        outcomes.stop_unless_scored(concluded)
        return outcomes.shown(concluded)

    def _compute(self, request: pytest.FixtureRequest, point: Point, unit: UnitKey) -> UnitResult:
        """Edit and measure a unit. Nothing a method does is raised: its cases carry the error."""
        from kn_bench.editing.edit import NotApplicable

        cases = tuple(self._members[unit].values())
        started = time.perf_counter()
        try:
            engine = self._models.engine(point.model)
        except ValueError as error:
            return all_cases(point, cases, error=str(error))
        kind = "causal" if engine.model.is_causal else "masked"
        if point.method.models not in (kind, "any"):
            reason = f"{point.method.name} is defined for {point.method.models} models only"
            return all_cases(point, cases, not_applicable=reason)
        loaded = time.perf_counter()
        try:
            with no_exit(), time_limit(self._timeout):
                method = request.getfixturevalue(point.method.fixture)
                if left := engine.put_back():
                    raise RuntimeError(f"it changed {' and '.join(left)} when it was made")
                result = self._measured(engine, method, point, cases)
        except (NotApplicable, pytest.skip.Exception) as reason:
            engine.put_back()
            return all_cases(point, cases, not_applicable=str(reason))
        except (Exception, SystemExit, pytest.fail.Exception) as error:  # a plug-in's own code
            engine.put_back()  # also what belongs to the process
            self._models.forget(point.model)  # it may not be what it was
            trace = terminal(traceback.format_exc(), lines=True)
            request.node.add_report_section("setup", "method", trace)
            return all_cases(point, cases, error=sentence(point, error))
        self._note_seconds(unit, loaded - started, result)
        return with_origin(result, point.method.origin)

    def _measured(
        self, engine: Engine, method: Any, point: Point, cases: Sequence[Case]
    ) -> UnitResult:
        """Edit and ask as the protocol says."""
        if point.sequence is None:
            name, writer = point.method.name, generations.writer(self._options)
            return engine.measure(name, method, cases, control=True, writer=writer)
        from kn_bench.measure.sequences import measure_sequence

        names = (point.node_id.method, point.node_id.model, str(point.sequence.number))
        folder = self._edits / "-".join(names) if self._edits is not None else None
        return measure_sequence(
            engine, point.method.name, method, self._plan_of(point), folder=folder
        )

    def _plan_of(self, point: Point) -> Plan:
        from kn_bench.measure.sequences import Plan

        assert point.sequence is not None
        options = self._options
        sequence = point.sequence
        return Plan(options.protocol, sequence.cases, sequence.number, options.stop_at_collapse)

    def _note_seconds(self, unit: UnitKey, loading: float, result: UnitResult) -> None:
        self._seconds[unit] = json.dumps(
            {
                "loading": loading,
                "editing": result.edit_seconds,
                "measuring": result.measure_seconds,
            }
        )


def _control_rows(key: Key, case: Case, control: CaseResult) -> str:
    """The rows of the method's control, which come with the method's own."""
    named = key._replace(method=control_name(key.method))
    return encode_rows(named, case, control, judge(key.criterion, case, control))


def _id(node_id: NodeId) -> str:
    """The parameter's id: what a unit has in common first."""
    names = (node_id.method, node_id.model, node_id.occasion, node_id.label)
    return "-".join(name for name in names if name)


def _where_asked(criterion: Criterion, points: Iterable[Point]) -> Iterator[Point]:
    """Return the points with those of their cases that have a probe of ``criterion``."""
    for point in points:
        cases = tuple(c for c in point.cases if any(p.criterion == criterion for p in c.probes))
        if cases:
            yield replace(point, cases=cases)


def _param(item: pytest.Item) -> object:
    callspec: Any = getattr(item, "callspec", None)
    params: Mapping[str, object] = callspec.params if callspec is not None else {}
    return params.get("verdict")


def point_of(item: pytest.Item) -> Point | None:
    """The parameter of a test of ours, None of a foreign one."""
    point = _param(item)
    return point if isinstance(point, Point) else None


def _address(item: pytest.Item) -> NodeId | None:
    """What the node id of a test says, without taking it apart."""
    point = point_of(item)
    return point.node_id if point else None


def _leave_out_log_capture(config: pytest.Config) -> None:
    """Run without pytest's log capture, unless the user asked for logs.

    At every phase of every test it visits all loggers that do not propagate, and torch has sixty of
    them: 1.5 ms a test, more than all else that a test costs.
    """
    asked = any(config.getoption(name, None) for name in ("log_level", "log_file", "log_cli_level"))
    if not asked and not config.getini("log_cli") and not config.getini("log_file"):
        config.pluginmanager.unregister(name="logging-plugin")


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
