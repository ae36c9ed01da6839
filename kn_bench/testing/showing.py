"""What the controller shows while a run is measured: how far it is, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import pytest

from kn_bench.editing import builtin
from kn_bench.testing import estimate, method_fixtures, units
from kn_bench.testing.progress import Display, Forecast, terminal_file
from kn_bench.testing.sequences import cases_of

if TYPE_CHECKING:
    from kn_bench.cases.case import Case
    from kn_bench.editing.registry import MethodSpec, Registry
    from kn_bench.editing.settings import Choices
    from kn_bench.testing.controller import RunController
    from kn_bench.testing.node_ids import NodeId

DISPLAY = "kn_bench display"


def show_progress(
    config: pytest.Config,
    controller: RunController,
    methods: Registry,
    meanings: Mapping[str, NodeId],
    workers: int,
    shares: Mapping[str, str],
) -> None:
    """Register what draws the progress of the tests in ``meanings``, and state an estimate.

    Args:
        workers: how many processes compute.
        shares: what keeps methods on one worker, by slug.
    """
    folder = controller.options.reports / "runs" / controller.run / units.FOLDER
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    plan = controller.plan
    about = partial(cases_of, plan, controller.drawing)
    forecast = Forecast(
        meanings, workers, None, lambda test: len(about(test)) or 1, plan.labels_per_unit, shares
    )

    def cases() -> list[Case]:  # those that -k and -m left
        return list({c.id: c for test in meanings.values() for c in about(test)}.values())

    timekeeper = _timekeeper(config, controller, methods, cases, forecast, workers)
    timekeeper.state(terminal)
    config.pluginmanager.register(timekeeper)
    display = Display(folder, forecast, meanings, terminal_file())
    config.pluginmanager.register(display, DISPLAY)
    display.start(terminal)


def _timekeeper(
    config: pytest.Config,
    controller: RunController,
    methods: Registry,
    cases: Callable[[], list[Case]],
    forecast: Forecast,
    workers: int,
) -> estimate.Timekeeper:
    """Estimate how long the run takes, from an earlier one or a calibration."""
    options = controller.options
    names = list(controller.method_names().values())
    selected = config.getoption("markexpr"), config.getoption("keyword")
    kind = estimate.kind_of_run(options, controller.fingerprints, names, workers, selected)

    def built_in() -> tuple[list[MethodSpec], Choices]:
        method_fixtures.load_builtin(config.pluginmanager)
        specs = methods.select(options.methods)
        known = builtin.names()
        ours = [spec for spec in specs if known.get(spec.name) == spec.origin]
        return ours, method_fixtures.choices_of(options, specs)

    models = controller.plan.models
    stated = estimate.estimated(options, models, cases, forecast, kind, built_in, workers)
    return estimate.Timekeeper(stated, kind, forecast)
