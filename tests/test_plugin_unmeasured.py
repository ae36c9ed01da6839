"""A test of ours that was not measured never passes, whatever else is installed or asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conftest import comparable, outcomes

ROOMS = """
import pytest

@pytest.fixture(autouse=True, params=["cold", "warm"])
def room(request):
    return request.param
"""
RENAMED = """
def pytest_make_parametrize_id(config, val, argname):
    return "x[::]" if argname == "verdict" else None

def pytest_collection_modifyitems(items):
    for number, item in enumerate(items):
        item._nodeid = f"elsewhere.py::case {number}"
"""
ONE = ("--limit", "1", "--relation", "P36")


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_foreign_parameter_changes_no_outcome(bench, workers):
    bench.pytester.makepyfile(foreign=ROOMS)
    plain = bench.run("-q", workers, *ONE, "--run", "plain")
    result = bench.run("-q", workers, *ONE, "--run", "twice", "-p", "foreign")
    assert outcomes(result) == {name: 2 * n for name, n in outcomes(plain).items()}
    assert comparable(bench.rows("twice")) == comparable(bench.rows("plain"))
    assert set(Counter(bench.computed).values()) == {2}  # in which order, workers decide


def test_ids_may_be_anything(bench):
    bench.pytester.makepyfile(foreign=RENAMED)
    plain = bench.run("-q", "-n2", *ONE, "--run", "plain")
    result = bench.run("-q", "-n2", *ONE, "--run", "renamed", "-p", "foreign")
    assert outcomes(result) == outcomes(plain)
    assert comparable(bench.rows("renamed")) == comparable(bench.rows("plain"))


def test_a_suite_in_a_file_of_any_name_is_recorded(bench):
    bench.pytester.makepyfile(
        test_mine="""
        from kn_bench.testing.fixtures import *

        def test_reliability(verdict):
            assert verdict.holds
        """
    )
    result = bench.run("-q", "-n2", "test_mine.py", *ONE, suites=False)
    assert len(bench.verdicts()) == 4
    assert outcomes(result) == {"passed": 2, "missed": 1, "skipped": 1}


IMPOSTOR = """
import pytest

@pytest.fixture
def verdict(request):
    class Fine:
        holds = True
    return Fine()
"""


def test_a_fixture_that_replaces_ours_fails_the_test(bench):
    bench.pytester.makepyfile(
        test_mine=f"""
        from kn_bench.testing.fixtures import pytest_generate_tests, language_model
        {IMPOSTOR.replace(chr(10), chr(10) + " " * 8)}
        def test_reliability(verdict):
            assert verdict.holds
        """
    )
    result = bench.run("-q", "-n0", "test_mine.py", *ONE, suites=False)
    assert result.ret == 1
    assert outcomes(result) == {"failed": 4}
    assert "the test was not measured: something in this session" in result.stdout.str()


SWALLOWED = """
import pytest

class Fine:
    holds = True

def pytest_collection_finish(session):
    for item in session.items:
        item.obj = lambda verdict: None
        item.runtest = lambda: None
        item.funcargs = {}
        item.setup = lambda: None
"""


def test_a_plug_in_that_runs_nothing_leaves_no_test_green(bench):
    bench.pytester.makepyfile(foreign=SWALLOWED)
    result = bench.run("-q", "-n0", *ONE, "-p", "foreign")
    assert result.ret == 1
    assert set(outcomes(result)) == {"failed"}


@pytest.mark.parametrize("option", ["--forked", "--setup-plan"])
def test_options_that_leave_tests_unmeasured_are_refused(bench, option):
    bench.pytester.makepyfile(
        forked="def pytest_addoption(parser): parser.addoption('--forked', action='store_true')"
    )
    result = bench.run("-p", "forked", option)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {option} *: *"])
    assert not (bench.path / "reports").exists()


DEAF = """
import kn_bench.testing.node_ids as node_ids

node_ids.told = lambda message: node_ids.Collected({})
"""


def test_results_that_nobody_records_stop_the_session(bench):
    """A worker whose message does not arrive: its results would be shown and lost."""
    bench.pytester.makepyfile(deaf=DEAF)
    result = bench.run("-n2", *ONE, "-p", "deaf")
    assert result.ret == 3
    result.stdout.fnmatch_lines(["*was measured by a worker that did not say so when*"])
