"""Texts of methods, models and files reach the terminal without their control sequences."""

from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest
from _pytest.outcomes import Failed, Skipped

from kn_bench.measure.verdict import Verdict
from kn_bench.results.baseline import baseline_of
from kn_bench.results.files import StoreError
from kn_bench.results.loading import Runs, load_runs
from kn_bench.results.store import find_run
from kn_bench.testing import outcomes
from kn_bench.testing.gate import gate
from kn_bench.testing.summary import left_out
from tests.made_up import write_run

ODD = "\x1b[31mred\x1b[0m\x07 \u202eabc <script>alert(1)</script>"


@pytest.mark.parametrize(
    ("shown", "workers"), [("-rA", "-n0"), pytest.param("-v", "-n2", marks=pytest.mark.slow)]
)
def test_what_a_method_raises(bench, shown, workers):
    odd = ODD.replace("\x07", "")  # an environment variable is what carries it here
    result = bench.run(
        shown, workers, "--model", "toy-gpt", "--relation", "P36", "--limit", "1", TOY_RAISES=odd
    )
    output = result.stdout.str() + result.stderr.str()
    assert result.ret == 1
    assert "\\x1b[31mred\\x1b[0m" in output
    assert not set(output) & set("\x1b\x07\u202e")


@pytest.mark.parametrize(
    ("status", "raised"),
    [("not_applicable", Skipped), ("excluded", Skipped), ("error", Failed)],
)
def test_why_a_test_is_stopped(status, raised):
    with pytest.raises(raised) as stopped:
        outcomes.stop_unless_scored(Verdict(status, None, ODD, ODD))
    assert str(stopped.value).isprintable()
    assert "\\x1b[31mred" in str(stopped.value)


def test_what_a_suite_asserts():
    verdict = outcomes.shown(Verdict("missed", 0.0, f"it answers {ODD}"))
    assert verdict.explanation.isprintable()
    assert not verdict.holds


def test_what_is_left_out():
    frame = pd.DataFrame({"verdict_status": ["error"], "verdict_reason": [ODD]})
    runs = cast(Runs, SimpleNamespace(verdicts=frame, left_out=()))
    assert all(line.isprintable() for line in left_out(runs))


def test_a_gate_that_names_what_the_baseline_has(tmp_path):
    run = write_run(tmp_path / "a", {"none": {"reliability": [0.0]}})
    other = write_run(tmp_path / "b", {ODD: {"reliability": [1.0]}})
    report = gate(baseline_of(load_runs([other])), load_runs([run]))
    text, page = report.text(), report.markdown()
    assert "\\x1b[31mred" in text
    for written in (text, page):
        assert all(line.isprintable() for line in written.splitlines())
    assert "<script>" not in page


def test_the_list_of_runs(tmp_path):
    run = write_run(tmp_path, {"none": {"reliability": [0.0]}})
    run.rename(run.with_name("\x1b[2Jone"))
    with pytest.raises(StoreError, match=r"there is no run 'x': .* has \\x1b\[2Jone") as error:
        find_run(tmp_path, "x")
    assert str(error.value).isprintable()
