"""The pytest process of ``--engine ray``: hands out units, and runs tests as results arrive.

It has collected all tests, writes the log and reports as without Ray. A unit's tests are run when
its result is there: they look it up and judge it, in a fraction of a millisecond each, so that
``-x``, ``--lf``, fixtures and reports are pytest's own.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from kn_bench.cases.case import Case
from kn_bench.model import embedded
from kn_bench.testing.controller import RunController
from kn_bench.testing.items import unit_of
from kn_bench.testing.node_ids import UnitKey
from kn_bench.testing.options import Options, runs_nothing
from kn_bench.testing.points import Work
from kn_bench.testing.ray.messages import Hello, UnitDone, UnitWork, decode, encode
from kn_bench.testing.ray.pool import (
    CPUS_OF_A_LARGE_MODEL,
    Answer,
    Cluster,
    Gone,
    Pool,
    Resources,
)
from kn_bench.testing.scheduling import Backlog, Unit, groups, shares_by_slug
from kn_bench.testing.session import SuiteSession, point_of
from kn_bench.testing.unmeasured import all_cases
from kn_bench.testing.worker_config import pack

CARRIED = ("HF_", "KMP_", "KN_BENCH_", "MKL_", "PYTEST_", "PYTHON", "TOKENIZERS_", "TORCH_")
"""Beginnings of the environment variables that workers on other machines are given."""
DEATHS = 2
"""A unit that has killed so many actors is given up, and its tests are errors."""
STILLBORN = 3
"""Actors for each place that may die before any unit is measured; then the session ends."""


class RayEngine:
    """A plug-in that runs the tests of our suites with units computed by Ray's actors.

    Args:
        controller: of the run.
        suites: name of the plug-in that makes the tests.

    Raises:
        ValueError: where there is no Ray, no cluster, or no device as asked; one sentence.
    """

    def __init__(self, controller: RunController, suites: str) -> None:
        options = controller.options
        self._suites = suites
        self._controller = controller
        self._resources = resources_for(options)
        self._cluster = Cluster(options.engine.partition(":")[2])
        room = self._cluster.room_for(self._resources)
        self.size = min(options.actors or room, room)
        self._deaths: Counter[int] = Counter()
        self._stillborn = 0

    @property
    def header(self) -> str:
        """What the pool is."""
        return f"kn_bench: {self.size} Ray actors with {self._resources} each"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run all tests; foreign ones first and here."""
        suites = session.config.pluginmanager.get_plugin(self._suites)
        if suites is None or runs_nothing(session.config) or session.testsfailed:
            return None  # pytest's own loop knows what to do
        units = [unit_of(item) for item in session.items]
        _run([item for item, unit in zip(session.items, units, strict=True) if unit is None])
        backlog = Backlog()
        for group in groups(units, self._shares(session)):
            kept = [bundle for bundle in group if units[bundle[0][0]] is not None]
            if kept:
                backlog.add(kept)
        if backlog:
            sample = next(item for item, unit in zip(session.items, units, strict=True) if unit)
            self._run_units(session, suites, backlog, sample)
        return True

    def _shares(self, session: pytest.Session) -> dict[str, str]:
        methods = {point.method for item in session.items if (point := point_of(item))}
        named = {method.name: method.shares for method in methods}
        return shares_by_slug(named, self._controller.options.protocol)

    def pytest_unconfigure(self) -> None:
        self._cluster.close()

    def _run_units(
        self, session: pytest.Session, suites: SuiteSession, backlog: Backlog, sample: pytest.Item
    ) -> None:
        """Give units out and run their tests as results come, until all have been run."""
        shown = point_of(sample)
        assert shown is not None
        hello = Greeting(session.config, self._controller, shown.cases, self.size, self._resources)
        pool = Pool(self._cluster, self.size, self._resources, hello, _environment())
        under_way: dict[int, Unit] = {}  # by its first test
        try:
            while backlog or pool.busy:
                for name in pool.hungry:
                    unit = backlog.next(name)
                    if unit is not None:
                        under_way[unit[0]] = unit
                        pool.give(name, unit[0], self._message(session, suites, unit))
                for outcome in pool.wait(1.0):
                    if isinstance(outcome, Gone):
                        self._replan(session, suites, backlog, under_way, outcome)
                    else:
                        unit = under_way.pop(outcome.unit)
                        self._report(session, suites, unit, outcome)
        finally:
            pool.close()

    def _message(self, session: pytest.Session, suites: SuiteSession, unit: Unit) -> bytes:
        work = _work(session, suites, unit)
        number = work.sequence.number if work.sequence else None
        return encode(UnitWork(work.method.name, work.model, work.cases, number))

    def _report(
        self, session: pytest.Session, suites: SuiteSession, unit: Unit, answer: Answer
    ) -> None:
        """Run the tests of a unit whose result is there."""
        assert answer.message is not None
        done = decode(UnitDone, answer.message)
        result = done.result
        if result is None:
            work = _work(session, suites, unit)
            name = f"{work.method.name} on {work.model} could not be measured"
            result = all_cases(work, error=f"{name}: {_last_line(done.failure)}")
        self._stillborn = -1  # actors work
        suites.deliver(_key(session, unit), result, done.seconds)
        _run([session.items[index] for index in unit])

    def _replan(
        self,
        session: pytest.Session,
        suites: SuiteSession,
        backlog: Backlog,
        under_way: dict[int, Unit],
        gone: Gone,
    ) -> None:
        """Put a dead actor's units back: the one it was at to the end, others to the front."""
        backlog.leave(gone.actor)
        for first in gone.waiting:
            backlog.add([[under_way.pop(first)]])
        unit = under_way.pop(gone.at)
        self._deaths[gone.at] += 1
        if self._stillborn >= 0:
            self._stillborn += 1
            if self._stillborn > STILLBORN * self.size:
                pytest.exit(f"the Ray actors die before they measure: {gone.reason}", returncode=3)
        if self._deaths[gone.at] < DEATHS:
            backlog.add([[unit]])
            return
        work = _work(session, suites, unit)
        reason = f"{DEATHS} Ray actors died of {work.method.name} on {work.model}: {gone.reason}"
        suites.deliver(_key(session, unit), all_cases(work, error=reason), "")
        _run([session.items[index] for index in unit])


class Greeting:
    """Makes what each actor's worker is told first."""

    def __init__(
        self,
        config: pytest.Config,
        controller: RunController,
        sample: tuple[Case, ...],
        size: int,
        resources: Resources,
    ) -> None:
        self._config, self._controller, self._size = config, controller, size
        self._sample, self._device = sample, "cuda:0" if resources.num_gpus else "cpu"

    def __call__(self, name: str) -> bytes:
        """Return the message for the actor called ``name``."""
        controller, invoked = self._controller, self._config.invocation_params
        worker_config = replace(
            controller.worker_config(name, self._size),
            device=self._device,
            done=frozenset(),
            known=(),
            sequences="",
        )
        hello = Hello(
            [str(arg) for arg in invoked.args],
            str(invoked.dir),
            sys.path,
            pack(worker_config),
            dict(controller.plan.models),
            self._sample,
            name,
        )
        return encode(hello)


def resources_for(options: Options) -> Resources:
    """Return what one actor needs: a GPU, or one core for small models and a few for others.

    Raises:
        ValueError: for a device that Ray does not lend.
    """
    if set(options.devices) == {"cuda"}:
        return Resources(1, 1)
    if set(options.devices) != {"cpu"}:
        raise ValueError(
            f"--device {' '.join(options.devices)}: expected cpu or cuda with --engine ray, which "
            "gives each actor its own"
        )
    small = set(options.models) <= set(embedded.NAMES)
    return Resources(1 if small else CPUS_OF_A_LARGE_MODEL, 0)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}


def _work(session: pytest.Session, suites: SuiteSession, unit: Unit) -> Work:
    item = session.items[unit[0]]
    point = point_of(item)
    assert point is not None
    return suites.work(point, _key(session, unit))


def _key(session: pytest.Session, unit: Unit) -> UnitKey:
    key = unit_of(session.items[unit[0]])
    assert key is not None
    return key


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].removeprefix("E ").strip()


def _run(items: Sequence[pytest.Item]) -> None:
    """Run tests one after another, as pytest's own loop does.

    Raises:
        pytest.Session.Failed: once ``-x`` or ``--maxfail`` is reached.
        pytest.Session.Interrupted: when something asked the session to stop.
    """
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        session = item.session
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
