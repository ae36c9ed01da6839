"""The pytest plug-in: options and wiring.

Every pytest session on a machine with kn_bench installed loads this module, so it imports nothing
heavy and does next to nothing until a suite of ours is collected.

    controller, or the only process    Campaign, then Recorder
    worker, or the only process        SuiteSession, ItemOutcomes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from kn_bench.testing.options import add_options, addressed, read_options
from kn_bench.testing.registry import Registry, fixtures_of

if TYPE_CHECKING:
    from kn_bench.testing.campaign import Campaign, Place
    from kn_bench.testing.session import SuiteSession

REGISTRY = pytest.StashKey[Registry]()
RECORDER = "kn_bench recorder"
SUITES = "kn_bench suites"
CAMPAIGN: pytest.StashKey[Campaign] = pytest.StashKey()


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


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Find the methods of a plug-in, whatever brought it, and make them fixtures."""
    config = manager.get_plugin("pytestconfig")
    if not isinstance(config, pytest.Config):
        return
    new = registry_of(config).add(plugin)
    if new:
        name = f"kn_bench methods of {getattr(plugin, '__name__', 'a plug-in')} {id(plugin)}"
        manager.register(fixtures_of(new, name), name)


def registry_of(config: pytest.Config) -> Registry:
    """The methods of this session."""
    return config.stash.setdefault(REGISTRY, Registry())


# -- controller, or the only process -----------------------------------------------------------


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def campaign_of(config: pytest.Config) -> Campaign:
    """The session's campaign, begun when it is first asked for."""
    if CAMPAIGN not in config.stash:
        from kn_bench.testing.campaign import Campaign

        config.stash[CAMPAIGN] = Campaign(
            read_options(config), registry_of(config), config.pluginmanager
        )
    return config.stash[CAMPAIGN]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse what cannot be before any worker is started: one sentence, exit status 4."""
    if addressed(session.config) and not is_worker(session.config):
        campaign_of(session.config)


def pytest_report_header(config: pytest.Config) -> str | None:
    campaign = config.stash.get(CAMPAIGN, None)
    if campaign is None or not campaign.options.resume:
        return None
    return f"kn_bench: run {campaign.run} has {len(campaign.store.done)} tests already"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without xdist: all tests are known."""
    config = session.config
    if config.pluginmanager.has_plugin(SUITES) and not is_worker(config):
        _record(config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """With xdist: a worker knows all tests."""
    _record(node.config, ids)


def _record(config: pytest.Config, nodeids: list[str]) -> None:
    from kn_bench.testing import addresses

    if config.getoption("collectonly") or not any(map(addresses.parse, nodeids)):
        return
    recorder = config.pluginmanager.get_plugin(RECORDER)
    if recorder is None:
        from kn_bench.testing.recording import Recorder

        campaign = campaign_of(config)
        recorder = Recorder(
            campaign.store, campaign.options, campaign.offer, campaign.method_names()
        )
        config.pluginmanager.register(recorder, RECORDER)
        recorder.expect(nodeids)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where it computes and what a resumed run has already."""
    config = node.config
    if addressed(config):
        from kn_bench.testing.campaign import WORKER_INPUT, pack

        place = campaign_of(config).place(node.gateway.id, node.workerinput["workercount"])
        node.workerinput[WORKER_INPUT] = pack(place)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if CAMPAIGN in node.config.stash:
        campaign_of(node.config).pool.release(node.gateway.id)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from kn_bench.testing.offer import labels_per_unit
    from kn_bench.testing.scheduling import make_scheduler

    return make_scheduler(config, log, labels_per_unit(read_options(config).grain))


# -- worker, or the only process -----------------------------------------------------------------


def suites_of(config: pytest.Config) -> SuiteSession:
    """What the suites of this process ask, begun when the first of them is collected."""
    found = config.pluginmanager.get_plugin(SUITES)
    if found is None:
        found = _begin(config)
        config.pluginmanager.register(found, SUITES)
    return cast("SuiteSession", found)


def _begin(config: pytest.Config) -> SuiteSession:
    from kn_bench.testing import offer, registry
    from kn_bench.testing.devices import settle
    from kn_bench.testing.outcomes import ItemOutcomes

    place, options = place_of(config), read_options(config)
    settle(place.workers, options.models)
    registry.load_builtin(config.pluginmanager)
    registry.load_entry_points(config.pluginmanager)
    registry_of(config).check()
    methods = registry_of(config).select(options.methods)
    offered = offer.make_offer(options) if is_worker(config) else campaign_of(config).offer

    from kn_bench.testing.session import SuiteSession

    junit = bool(config.getoption("xmlpath", None))
    config.pluginmanager.register(ItemOutcomes(strict=options.strict, junit=junit))
    return SuiteSession(options, offered, methods, place)


def place_of(config: pytest.Config) -> Place:
    """Where this process stands in the run."""
    from kn_bench.testing.campaign import WORKER_INPUT, Place, unpack

    if not is_worker(config):
        return campaign_of(config).place("main", 1)
    given = config.workerinput  # type: ignore[attr-defined]
    if WORKER_INPUT in given:
        return unpack(given[WORKER_INPUT])
    # a suite collected through a parent folder: the controller learns of it from our test ids
    return Place(read_options(config).devices[0], {}, None, frozenset(), given["workercount"])
