"""What a suite's conftest needs: the fixtures of its tests, and the cases they run on.

A suite of one's own, in another folder, gets them by one line in its conftest::

    from kn_bench.testing.fixtures import *
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kn_bench.measure.verdict import Verdict
    from kn_bench.model.language_model import LanguageModel

__all__ = ["language_model", "pytest_generate_tests", "pytest_pycollect_makeitem", "verdict"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each model, method and case."""
    if "verdict" in metafunc.fixturenames:
        from kn_bench.testing.plugin import suites_of

        suites_of(metafunc.config).parametrize(metafunc)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Drop the placeholder that pytest makes for a suite that no case has questions for."""
    collected = yield
    if not isinstance(collected, list):
        return collected
    from kn_bench.testing.items import SuiteTest

    return [item for item in collected if isinstance(item, SuiteTest) or not _is_placeholder(item)]


def _is_placeholder(item: pytest.Item | pytest.Collector) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return type(parameters.get("verdict")).__name__ == "NotSetType"


@pytest.fixture
def verdict(request: pytest.FixtureRequest) -> Verdict:
    """What the suite's criterion says of a case, edited by a method on a model."""
    from kn_bench.testing.plugin import suites_of

    judged: Verdict = suites_of(request.config).verdict(request)
    return judged


@pytest.fixture
def language_model(request: pytest.FixtureRequest) -> LanguageModel:
    """The model of the test at hand, loaded: what a method is bound to."""
    from kn_bench.testing.plugin import suites_of

    return suites_of(request.config).model(request.node)
