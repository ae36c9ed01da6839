"""The pytest plug-in: options and wiring.

Every pytest session on a machine with kn_bench installed loads this module, so it imports nothing
heavy and does next to nothing until a suite of ours is collected.

    controller, or the only process    RunController, then Recorder
    worker, or the only process        SuiteSession, ItemOutcomes
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from kn_bench.editing.registry import Registry
from kn_bench.testing.options import (
    add_options,
    addressed,
    read_options,
    runs_nothing,
    suites_folder,
)
from kn_bench.testing.others import Unrecorded, do_without

if TYPE_CHECKING:
    from kn_bench.editing.settings import Settings
    from kn_bench.testing.controller import RunController
    from kn_bench.testing.node_ids import Collected, NodeId
    from kn_bench.testing.options import Options
    from kn_bench.testing.session import SuiteSession
    from kn_bench.testing.worker_config import WorkerConfig

REGISTRY = pytest.StashKey[Registry]()
RECORDER = "kn_bench recorder"
SUITES = "kn_bench suites"
CONTROLLER: pytest.StashKey[RunController] = pytest.StashKey()
IS_ADDRESSED: pytest.StashKey[bool] = pytest.StashKey()
MEANINGS: pytest.StashKey[dict[str, NodeId]] = pytest.StashKey()
"""What the tests of ours ask, by id; the controller has it from its workers."""
SESSION: pytest.StashKey[Callable[..., SuiteSession]] = pytest.StashKey()
"""Makes the session of a process that computes units and runs no tests."""
RAY = "kn_bench ray"
SPARED: pytest.StashKey[int] = pytest.StashKey()
"""How many workers were asked for, where fewer are started."""
MESSAGE = "kn_bench message"
"""Worker input: the file by which a worker tells the controller of its tests."""


# -- every session --------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    config = pluginmanager.get_plugin("pytestconfig")
    if isinstance(config, pytest.Config) and addressed(config):
        add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "facts: cases that are facts",
        "pairs: cases that are grammatical minimal pairs",
    ):
        config.addinivalue_line("markers", line)
    if addressed(config):
        _collect_suites_by_any_name(config)
    if not is_worker(config):
        config.pluginmanager.register(Unrecorded())


def _collect_suites_by_any_name(config: pytest.Config) -> None:
    """Have the suites collected where the user's tests go by names of their own."""
    from glob import escape

    from kn_bench.cases.case import ALL_CRITERIA

    for folder in (suites_folder(), Path("kn_bench", "suites")):  # a link, in a checkout
        config.addinivalue_line("python_files", f"{escape(str(folder))}{os.sep}test_*.py")
    for criterion in ALL_CRITERIA:
        config.addinivalue_line("python_functions", f"test_{criterion}")


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Find the methods of a plug-in, whatever brought it, and make them fixtures."""
    config = manager.get_plugin("pytestconfig")
    if not isinstance(config, pytest.Config):
        return
    new = registry_of(config).add(plugin)
    if new:
        from kn_bench.testing.method_fixtures import fixtures_of

        name = f"kn_bench methods of {getattr(plugin, '__name__', 'a plug-in')} {id(plugin)}"
        manager.register(fixtures_of(new, name, _settings_of), name)


def _settings_of(request: pytest.FixtureRequest) -> Settings:
    return suites_of(request.config).settings(request.node)


def registry_of(config: pytest.Config) -> Registry:
    """The methods of this session."""
    return config.stash.setdefault(REGISTRY, Registry())


# -- controller, or the only process -----------------------------------------------------------


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def controller_of(config: pytest.Config) -> RunController:
    """The session's run controller, made when it is first asked for."""
    if CONTROLLER not in config.stash:
        from kn_bench.testing.controller import RunController

        config.stash[CONTROLLER] = RunController(
            read_options(config), registry_of(config), config.pluginmanager
        )
    return config.stash[CONTROLLER]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> Generator[None, None, None]:
    """Refuse what cannot be before any worker is started: one sentence, exit status 4.

    A worker that is killed as it starts ends the session with a sentence too: xdist has none.
    """
    _before_workers(session.config)
    if not addressed(session.config):
        yield
        return
    from kn_bench.testing.processes import ending_children, raised_within
    from kn_bench.testing.recording import INCOMPLETE

    try:
        with ending_children():
            yield
    except (AssertionError, EOFError, OSError) as error:
        if not raised_within(error, "execnet"):
            raise
        pytest.exit(
            "stopped: a worker ended as it was started; start the run again, or go on with it by "
            "--resume",
            returncode=INCOMPLETE,
        )


def _before_workers(config: pytest.Config) -> None:
    if not addressed(config):
        return
    if is_worker(config):
        # a unit may take many minutes, and xdist's workers look for their controller after it
        from kn_bench.testing.processes import end_with_parent

        end_with_parent()
        return
    controller = controller_of(config)
    if controller.options.engine != "pytest" and not runs_nothing(config):
        from kn_bench.testing.ray.engine import RayEngine

        try:
            config.pluginmanager.register(RayEngine(controller, SUITES), RAY)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    _spare_workers(config)


def _spare_workers(config: pytest.Config) -> None:
    """Start no more workers than are useful; xdist has named them, and starts them after this."""
    from kn_bench.testing.devices import useful

    workers = list(config.getoption("tx", None) or ())
    needed = useful(len(workers), controller_of(config).options)
    if needed < len(workers) and set(workers) == {"popen"}:  # as -n has it; --tx is kept
        config.stash[SPARED] = len(workers)
        config.option.tx = workers[:needed]


def pytest_report_header(config: pytest.Config) -> list[str]:
    controller = config.stash.get(CONTROLLER, None)
    engine = config.pluginmanager.get_plugin(RAY)
    lines = controller.header(workers_of(config)) if controller is not None else []
    workers, asked = workers_of(config), config.stash.get(SPARED, 0)
    if asked:
        lines.append(
            f"kn_bench: {workers} workers rather than {asked}, one for each core of this machine"
        )
    return [*lines, *([engine.header] if engine is not None else [])]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto`` of the suites: as many workers as cores, and as memory has room for."""
    if not addressed(config):
        return None
    from kn_bench.testing.devices import workers_for
    from kn_bench.testing.models import weight_bytes

    try:
        return workers_for(max(map(weight_bytes, read_options(config).models), default=0))
    except (ValueError, OSError):  # no such model: said in one sentence when the session starts
        return 1


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without garbage collection, which visits all tests again and again for nothing."""
    if not addressed(session.config) or not gc.isenabled():
        return (yield)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> list[Any] | None:
    """Make the tests of a suite of ours, where pytest would make a whole item of each."""
    config = collector.config
    if IS_ADDRESSED not in config.stash:
        config.stash[IS_ADDRESSED] = addressed(config)
    if not (config.stash[IS_ADDRESSED] and isinstance(collector, pytest.Module)):
        return None
    from kn_bench.testing.items import asks_for_a_verdict

    if not (collector.istestfunction(obj, name) and asks_for_a_verdict(obj)):
        return None
    return suites_of(collector.config).tests(collector, cast("Callable[..., object]", obj))


@pytest.hookimpl(tryfirst=True)  # before xdist's worker sends the ids
def pytest_collection_finish(session: pytest.Session) -> None:
    """All tests are known: in the only process there is, or in a worker."""
    config = session.config
    if not config.pluginmanager.has_plugin(SUITES):
        return
    from kn_bench.testing import node_ids

    suites = suites_of(config)
    meanings, left_out = suites.meanings(session.items), suites.left_out(session.items)
    if is_worker(config):
        node_ids.tell(Path(config.workerinput[MESSAGE]), meanings, *left_out)  # type: ignore[attr-defined]
    else:
        _record(config, node_ids.Collected(dict(meanings), *left_out))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """With xdist: a worker knows all tests."""
    from kn_bench.testing import node_ids

    try:
        collected = node_ids.told(Path(node.workerinput[MESSAGE]))
    except ValueError as error:
        from kn_bench.testing.recording import INCOMPLETE

        pytest.exit(f"stopped: {error}", returncode=INCOMPLETE)
    node.config.stash.setdefault(MEANINGS, {}).update(collected.meanings)
    if len(ids) == len(collected.meanings):
        do_without(node.config)
    _record(node.config, collected)


def _record(config: pytest.Config, collected: Collected) -> None:
    """Begin to record; also where a resumed run or a shard has no test left but lacks its end."""
    if runs_nothing(config) or not any(collected):
        return
    recorder = config.pluginmanager.get_plugin(RECORDER)
    if recorder is None:
        from kn_bench.testing.recording import Recorder
        from kn_bench.testing.showing import show_progress

        controller = controller_of(config)
        store = controller.begin(collected.selection)
        methods = controller.method_names()
        recorder = Recorder(store, controller.options, controller.plan, methods)
        recorder.expect(collected.meanings)
        config.pluginmanager.register(recorder, RECORDER)
        # registered later and so called earlier: the recorder takes the seconds off the reports
        stated = (workers_of(config), shares_of(config))
        show_progress(config, controller, registry_of(config), collected.meanings, *stated)


def shares_of(config: pytest.Config) -> dict[str, str]:
    """Return what keeps methods on one worker, by slug, of those that share anything."""
    from kn_bench.editing import builtin
    from kn_bench.testing.scheduling import shares_by_slug

    theirs = {spec.name: spec.shares for spec in registry_of(config).methods.values()}
    return shares_by_slug(builtin.shares() | theirs, read_options(config).protocol)


def workers_of(config: pytest.Config) -> int:
    """Return how many processes compute."""
    engine = config.pluginmanager.get_plugin(RAY)
    if engine is not None:
        return int(engine.size)
    if config.getoption("dist", "no") == "no" or not config.getoption("tx", None):
        return 1
    from xdist.workermanage import parse_tx_spec_config

    return len(parse_tx_spec_config(config))  # --tx 2*popen is two


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where it computes and what a resumed run has already."""
    from kn_bench.testing import node_ids

    config = node.config
    node.workerinput[MESSAGE] = str(node_ids.new_message())
    if addressed(config):
        from kn_bench.testing.worker_config import WORKER_INPUT, pack

        worker_config = controller_of(config).worker_config(
            node.gateway.id, node.workerinput["workercount"]
        )
        node.workerinput[WORKER_INPUT] = pack(worker_config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if CONTROLLER in node.config.stash:
        controller_of(node.config).pool.release(node.gateway.id)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from kn_bench.testing.plan import labels_per_unit
    from kn_bench.testing.scheduling import make_scheduler

    meanings = config.stash.setdefault(MEANINGS, {})
    per_unit = labels_per_unit(read_options(config))
    return make_scheduler(config, log, meanings, per_unit, shares_of(config))


# -- worker, or the only process -----------------------------------------------------------------


def suites_of(config: pytest.Config) -> SuiteSession:
    """What the suites of this process ask, begun when the first of them is collected."""
    found = config.pluginmanager.get_plugin(SUITES)
    if found is None:
        found = _begin(config)
        config.pluginmanager.register(found, SUITES)
    return cast("SuiteSession", found)


def _begin(config: pytest.Config) -> SuiteSession:
    from kn_bench.testing import method_fixtures
    from kn_bench.testing.devices import settle
    from kn_bench.testing.outcomes import ItemOutcomes
    from kn_bench.testing.plan import make_plan

    worker_config = worker_config_of(config)
    options = worker_config.applied(read_options(config))
    settle(worker_config.workers, options.models)
    if _names_suffice(config, options):
        method_fixtures.declare_builtin(config.pluginmanager)
    else:
        method_fixtures.load_builtin(config.pluginmanager)
    method_fixtures.load_entry_points(config.pluginmanager)
    registry_of(config).check()
    methods = registry_of(config).select(options.methods)
    with_argument = [method for method in methods if method.argument]
    if with_argument:
        name = "kn_bench methods with an argument"
        fixtures = method_fixtures.fixtures_of(with_argument, name, _settings_of)
        config.pluginmanager.register(fixtures, name)
    choices = method_fixtures.choices_of(options, methods)
    junit = bool(config.getoption("xmlpath", None))
    config.pluginmanager.register(ItemOutcomes(strict=options.strict, junit=junit))
    if SESSION in config.stash:
        return config.stash[SESSION](options, methods, worker_config, choices)
    in_worker = is_worker(config)
    plan = make_plan(options) if in_worker else controller_of(config).plan

    from kn_bench.testing.session import SuiteSession

    return SuiteSession(options, plan, methods, worker_config, choices)


def _names_suffice(config: pytest.Config, options: Options) -> bool:
    """Whether the built-in methods can be imported as late as they edit.

    Where a session only collects, as editors do at each change, torch would take seconds; in a
    worker of a large run it would take memory while that sends the ids of all tests.
    """
    late = is_worker(config) or config.option.collectonly
    with_argument = any(":" in name for name in options.methods)
    return late and not (options.sets or options.presets or with_argument)


def worker_config_of(config: pytest.Config) -> WorkerConfig:
    """Where this process stands in the run."""
    from kn_bench.testing.worker_config import WORKER_INPUT, WorkerConfig, unpack

    if not is_worker(config):
        return controller_of(config).worker_config("main", 1)
    given = config.workerinput  # type: ignore[attr-defined]
    if WORKER_INPUT in given:
        return unpack(given[WORKER_INPUT])
    # a suite collected through a parent folder: the controller learns of it from our test ids
    return WorkerConfig(
        read_options(config).devices[0], {}, None, frozenset(), given["workercount"]
    )
