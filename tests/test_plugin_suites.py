"""The suites as pytest users see them: ids, selection, outcomes, exit statuses."""

from __future__ import annotations

import pytest

from tests.conftest import comparable, outcomes

# 2 models x 2 methods x 12 facts x 6 criteria; of P37 no symmetry; toy-b not on the masked model
TESTS = 288
SKIPPED = 72 + 4 * 3


def test_ids_are_method_model_case(bench):
    result = bench.run("--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*test_reliability.py::test_reliability[[]toy_a-toy_gpt-P36/subject_0]",
            "*test_symmetry.py::test_symmetry[[]toy_b-toy_masked-P106/subject_3]",
            f"{TESTS} tests collected*",
        ],
        consecutive=False,
    )
    assert not (bench.path / "reports").exists()


def test_the_layer_itself_needs_no_torch(bench):
    """Else each of the hundreds of sessions of the toy benchmark would take 8 s to import it."""
    bench.pytester.makepyfile(
        says="""
        import sys

        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_line(f"torch was imported: {'torch' in sys.modules}")
        """
    )
    result = bench.run("-p", "says", "-p", "no:xdist", "--limit", "1")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["torch was imported: False"])


def test_missed_is_a_finding_and_the_exit_status_0(bench):
    result = bench.run("-v", "-rs")
    counted = outcomes(result)
    assert result.ret == 0
    assert counted["passed"] + counted["missed"] == TESTS - SKIPPED
    assert counted["skipped"] == SKIPPED
    result.stdout.fnmatch_lines(
        ["SKIPPED [[]12] *test_overturn.py*: toy-b is defined for causal models only"]
    )
    result.stdout.fnmatch_lines(["* MISSED *"])
    assert bench.computed == [("toy-gpt", "toy-a"), ("toy-gpt", "toy-b"), ("toy-masked", "toy-a")]


def test_strict_criteria_make_a_missed_one_a_failure(bench):
    loose, strict = bench.run("-q"), bench.run("-q", "--strict-criteria")
    assert strict.ret == 1
    assert outcomes(strict)["failed"] == outcomes(loose)["missed"]
    assert "missed" not in outcomes(strict)


def test_every_test_has_its_rows(bench):
    bench.run("-q")
    verdicts = bench.verdicts()
    assert len({row.key for row in verdicts}) == len(verdicts) == TESTS
    assert sum(row.verdict.status == "not_applicable" for row in verdicts) == SKIPPED


def test_selection_by_k_m_and_node_id(bench):
    assert outcomes(bench.run("-q", "-k", "reliability and toy_a and subject_1"))["deselected"] == (
        TESTS - 6
    )
    assert outcomes(bench.run("-q", "-m", "facts", "-k", "toy_b"))["deselected"] == 144
    assert bench.run("-q", "-m", "pairs").ret == 5
    one = "::test_locality[toy_a-toy_gpt-P37/subject_2]"
    result = bench.run("--pyargs", f"kn_bench.suites.test_locality{one}", "-q", suites=False)
    assert sum(outcomes(result).values()) == 1
    assert len(bench.verdicts()) == 1


def test_last_failed_reruns_what_failed(bench):
    args = ("--strict-criteria", "-p", "cacheprovider", "-q")
    first, again = bench.run(*args), bench.run(*args, "--lf")
    assert outcomes(again)["failed"] == outcomes(first)["failed"]
    assert "passed" not in outcomes(again)


def test_x_stops_at_the_first_failure(bench):
    result = bench.run("-x", "--strict-criteria")
    assert (result.ret, outcomes(result)["failed"]) == (1, 1)
    result.stdout.fnmatch_lines(["kn_bench: go on with this run by --resume *"])


def test_nothing_selected(bench):
    result = bench.run("-k", "nothing_of_the_kind")
    assert result.ret == 5
    assert not (bench.path / "reports").exists()


def test_grain_unit_has_a_test_a_relation(bench):
    fine, coarse = (
        bench.run("-q", "--run", "fine"),
        bench.run("-q", "--grain", "unit", "--run", "g"),
    )
    assert (fine.ret, coarse.ret) == (0, 0)
    assert sum(outcomes(coarse).values()) == TESTS / 4
    assert sorted(bench.verdicts("fine"), key=repr) == sorted(bench.verdicts("g"), key=repr)


@pytest.mark.parametrize(
    ("how", "tests", "counted"),
    [
        ((), TESTS, "84 tests"),
        (("--grain=unit",), TESTS / 4, "84 verdicts"),
        # a relation of one case is a test of one verdict
        (("--grain=unit", "--limit=1"), TESTS / 4, "21 tests"),
    ],
    ids=str,
)
def test_what_has_no_figure_is_counted_as_what_it_is(bench, how, tests, counted):
    """A test of a relation has a verdict a case: they were more tests than there were."""
    result = bench.run("-q", *how, TOY_BOARD="1")
    assert sum(outcomes(result).values()) == tests
    result.stdout.fnmatch_lines([f"not applicable: {counted}"])


def test_as_installed_without_xdist(bench, monkeypatch):
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    named = ("--pyargs", "kn_bench.suites", "-p", "no:xdist", "-q")
    result = bench.pytester.runpytest_subprocess(*named)
    assert result.ret == 0
    assert len(bench.verdicts()) == TESTS


def test_the_board_ends_the_session(bench):
    result = bench.run(TOY_BOARD="1")
    result.stdout.fnmatch_lines(
        [
            "*= leaderboard =*",
            "Facts: *n = 12 cases (symmetry 8).",
            "toy-gpt",
            "1 toy-a *",
            "toy-masked",
            "1 toy-a *",
            "not applicable: 84 tests",
            f"run *; open {bench.path}/reports/leaderboard.html for every answer",
        ]
    )
    assert "toy-a" in (bench.path / "reports/leaderboard.md").read_text()


OPTIONAL = (
    "assertion", "cacheprovider", "capture", "debugging", "doctest", "faulthandler", "junitxml",
    "legacypath", "monkeypatch", "pastebin", "recwarn", "setuponly", "setupplan", "skipping",
    "stepwise", "subtests", "threadexception", "tmpdir", "unittest", "unraisableexception",
    "warnings",
)  # fmt: skip
"""Plug-ins of pytest's own that a user may switch off, beside its log capture."""


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
@pytest.mark.parametrize("without", [("logging",), OPTIONAL], ids=["logging", "the others"])
def test_each_plugin_of_pytests_own_may_be_switched_off(bench, without, workers):
    off = [word for name in without for word in ("-p", f"no:{name}")]
    result = bench.run(*off, "-q", workers, "--limit", "1", "--relation", "P36")
    assert result.ret == 0, result.stdout.str()
    assert {row.verdict.status for row in bench.verdicts()} >= {"holds", "missed"}


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
@pytest.mark.parametrize("showing", ["--collect-only", "--fixtures", "--fixtures-per-test"])
def test_what_only_shows_something_begins_no_run(bench, showing, workers):
    result = bench.run(showing, workers, "--limit", "1", "--relation", "P36")
    assert result.ret == 0, result.stdout.str()
    result.stdout.no_fnmatch_line("*--resume*")
    assert not (bench.path / "reports").exists()


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_suites_are_collected_whatever_the_names_of_the_users_own_tests(bench, workers):
    """A session ended with "no tests ran" where python_files or python_functions was set."""
    plain = bench.run("-q", workers, "--limit", "1", "--run", "plain")
    bench.pytester.makeini("[pytest]\npython_files = check_*.py\npython_functions = check_*")
    bench.pytester.makepyfile(check_own="def check_one(): pass\ndef test_no(): assert 0")
    bench.pytester.makepyfile(test_no="def check_no(): assert 0")
    result = bench.run("-q", workers, "--limit", "1", "--run", "named", ".")
    assert outcomes(result) == outcomes(plain) | {"passed": outcomes(plain)["passed"] + 1}
    assert comparable(bench.rows("named")) == comparable(bench.rows("plain"))
