"""A unit edited and measured: by the process that runs its tests, or by one that runs no tests."""

from __future__ import annotations

import json
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kn_bench.cases.sampling import slug
from kn_bench.editing.faults import is_fault, reason_of
from kn_bench.measure.measurement import UnitResult
from kn_bench.results.escaping import terminal
from kn_bench.testing import generations
from kn_bench.testing.left_running import LeftRunning
from kn_bench.testing.limits import no_exit, open_streams, time_limit
from kn_bench.testing.models import Models
from kn_bench.testing.node_ids import model_slug
from kn_bench.testing.options import Options
from kn_bench.testing.points import Work
from kn_bench.testing.sequences import PlannedSequence
from kn_bench.testing.unmeasured import all_cases, sentence, suspecting, with_origin
from kn_bench.testing.worker_config import WorkerConfig

if TYPE_CHECKING:
    from kn_bench.measure.engine import Engine
    from kn_bench.measure.sequences import Plan


class Computed(NamedTuple):
    """A unit's result, and phase -> seconds as JSON text; "" where nothing was measured."""

    result: UnitResult
    seconds: str = ""


class UnitComputer:
    """Edits and measures units with the models of this process.

    Attributes:
        left_running: what their methods started and did not wait for.
    """

    def __init__(self, options: Options, worker_config: WorkerConfig, models: Models) -> None:
        self._options = options
        self._edits = worker_config.edits
        self._models = models
        self.left_running = LeftRunning()

    def compute(self, request: pytest.FixtureRequest, work: Work) -> Computed:
        """Edit and measure a unit. Nothing a method does is raised: its cases carry the error.

        Args:
            request: of a test that may have the method's fixture.
            work: what is to be measured.
        """
        from kn_bench.editing.edit import NotApplicable

        started = time.perf_counter()
        try:
            engine = self._models.engine(work.model)
        except ValueError as error:
            return Computed(all_cases(work, error=str(error)))
        kind = "causal" if engine.model.is_causal else "masked"
        if reason := work.method.not_defined_for(kind):
            return Computed(all_cases(work, not_applicable=reason))
        loaded = time.perf_counter()
        others = self.left_running.threads_of_others(work.method)
        try:
            running = self.left_running.noted(work.method)
            with no_exit(), open_streams(), running, time_limit(self._options.timeout_per_unit):
                method = request.getfixturevalue(work.method.fixture)
                if left := engine.put_back():
                    raise RuntimeError(f"it changed {' and '.join(left)} when it was made")
                result = self._measured(engine, method, work)
        except (NotApplicable, pytest.skip.Exception) as refused:
            self._undo(engine, work.model)
            return Computed(all_cases(work, not_applicable=reason_of(refused)))
        except BaseException as error:  # a plug-in's own code
            if not is_fault(error) and not isinstance(error, pytest.fail.Exception):
                raise
            self._undo(engine, work.model)  # also what belongs to the process
            self._models.forget(work.model)  # it may not be what it was
            trace = terminal(traceback.format_exc(), lines=True)
            request.node.add_report_section("setup", "method", trace)
            said = suspecting(sentence(work, error), others)
            return Computed(all_cases(work, error=said))
        result = with_origin(result, work.method.origin, others)
        return Computed(result, _seconds(loaded - started, result))

    def _undo(self, engine: Engine, model: str) -> None:
        """Put back what a method has changed; where that fails the model is loaded anew."""
        from kn_bench.editing.surroundings import AnswersDifferError

        try:
            engine.put_back()
        except AnswersDifferError as problem:
            self._models.refuse(str(problem))
        except RuntimeError:
            self._models.forget(model)

    def _measured(self, engine: Engine, method: Any, work: Work) -> UnitResult:
        """Edit and ask as the protocol says."""
        if work.sequence is None:
            name, writer = work.method.name, generations.writer(self._options)
            return engine.measure(name, method, work.cases, control=True, writer=writer)
        from kn_bench.measure.sequences import measure_sequence

        names = (slug(work.method.name), model_slug(work.model), str(work.sequence.number))
        folder = self._edits / "-".join(names) if self._edits is not None else None
        plan = plan_of(self._options, work.sequence)
        return measure_sequence(engine, work.method.name, method, plan, folder=folder, control=True)


def plan_of(options: Options, sequence: PlannedSequence) -> Plan:
    """Return how a sequence is measured."""
    from kn_bench.measure.sequences import Plan

    return Plan(options.protocol, sequence.cases, sequence.number, options.stop_at_collapse)


def _seconds(loading: float, result: UnitResult) -> str:
    phases = {
        "loading": loading,
        "editing": result.edit_seconds,
        "measuring": result.measure_seconds,
    }
    return json.dumps(phases)
