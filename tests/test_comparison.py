"""Two runs, or two methods, compared on the same cases."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kn_bench.cases.case import CRITERIA, Criterion
from kn_bench.commands.app import group
from kn_bench.results.comparison import compare, comparison_text, missing, scores_of
from kn_bench.results.files import StoreError
from kn_bench.results.frames import uncoded
from kn_bench.results.loading import load_runs
from tests.made_up import write_run

N = 12
GOOD: dict[Criterion, list[float]] = {c: [1.0] * N for c in CRITERIA}
WORSE: dict[Criterion, list[float]] = {**GOOD, "generality": [0.5] * 7 + [1.0] * 5}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_run(tmp_path, {"rome": GOOD}, run="good")


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    return write_run(tmp_path, {"rome": WORSE}, run="worse")


def _compared(first: Path, second: Path, **how: str):
    return {
        c.group.criterion: c
        for c in compare(*(scores_of(load_runs([run])) for run in (first, second)), **how)  # type: ignore[arg-type]
    }


def test_runs_are_compared_case_by_case_with_holm(good, worse):
    comparisons = _compared(good, worse)
    assert list(comparisons) == list(CRITERIA)
    fell = comparisons["generality"]
    assert fell.paired
    assert fell.difference.mean == pytest.approx(-0.5 * 7 / N)
    assert fell.difference.n == N
    assert fell.difference.low < fell.difference.mean < fell.difference.high
    # seven cases moved one way: 2 of 2^7 sign assignments are as extreme
    assert fell.p == pytest.approx(2 / 2**7)
    assert fell.p_holm == pytest.approx(6 * fell.p)
    assert all(comparisons[c].p == 1 for c in CRITERIA if c != "generality")


def test_one_sided_p_is_half_of_it(good, worse):
    assert _compared(good, worse, alternative="less")["generality"].p == pytest.approx(1 / 2**7)
    assert _compared(worse, good, alternative="less")["generality"].p == 1


def test_cases_of_one_cluster_move_together(tmp_path):
    runs = [
        write_run(tmp_path, {"rome": scores}, run=name, a_cluster=4)
        for name, scores in (("good", GOOD), ("worse", {**GOOD, "locality": [0.0] * N}))
    ]
    # twelve cases, but three subjects: 2 of 2^3
    assert _compared(*runs)["locality"].p == pytest.approx(2 / 2**3)


def test_only_common_cases_are_compared_and_the_rest_is_named(tmp_path, good):
    fewer: dict[Criterion, list[float]] = {c: [1.0] * 9 for c in CRITERIA}
    half = write_run(tmp_path, {"rome": fewer}, run="half")
    comparisons = _compared(good, half)["reliability"]
    assert (comparisons.only_first, comparisons.only_second, comparisons.difference.n) == (3, 0, 9)
    text = comparison_text(load_runs([good]), load_runs([half]))
    assert "3 cases only in the first and 0 only in the second are not compared" in text


def test_without_common_cases_the_samples_are_independent(good):
    first = second = uncoded(scores_of(load_runs([good])))
    second = second.assign(case="other/" + second["case"], cluster="other/" + second["cluster"])
    second["score"] = second["score"].where(second["criterion"] != "locality", 0.0)
    comparisons = {c.group.criterion: c for c in compare(first, second)}
    assert not comparisons["locality"].paired
    assert np.isnan(comparisons["locality"].difference.low)
    # 12 against 12, all apart: 2 of the 24-choose-12 splits, by random permutations
    assert comparisons["locality"].p < 0.001
    assert comparisons["reliability"].p == 1


def test_two_methods_of_one_run(tmp_path):
    run = write_run(tmp_path, {"rome": GOOD, "kn": WORSE})
    text = comparison_text(load_runs([run]), load_runs([run]), methods=("rome", "kn"))
    assert "rome / kn" in text
    assert "-0.29 [" in text
    with pytest.raises(StoreError, match="--methods 'memit': expected one of kn, rome"):
        comparison_text(load_runs([run]), load_runs([run]), methods=("rome", "memit"))


def test_runs_with_nothing_in_common_are_refused(tmp_path, good):
    other = write_run(tmp_path, {"kn": GOOD}, run="other")
    with pytest.raises(StoreError, match="have no criterion of one method on one model in common"):
        comparison_text(load_runs([good]), load_runs([other]))
    gone = missing(scores_of(load_runs([good])), scores_of(load_runs([other])))
    assert str(gone[0]) == "rome on tiny-gpt2, reliability (facts)"
    runs = load_runs([good])
    many = replace(runs, verdicts=runs.verdicts.assign(protocol="batch:3"))
    with pytest.raises(StoreError, match="the protocol single and the second batch:3"):
        comparison_text(runs, many)
    assert len(gone) == 6


PORTABLE: dict[Criterion, list[float]] = {"portability": [1.0] * N}
STUCK: dict[Criterion, list[float]] = {"portability": [0.0] * 7 + [1.0] * 5}


@pytest.mark.parametrize("methods", [None, ("rome", "rome")])
@pytest.mark.parametrize("scored", [True, False])
def test_portability_is_compared_and_changes_no_other_figure(tmp_path, scored, methods):
    beside = [{"rome": scores if scored else {}} for scores in (GOOD, WORSE)]
    with_it = [
        write_run(tmp_path, {"rome": {**of["rome"], **more}}, run=f"with{i}")
        for i, (of, more) in enumerate(zip(beside, (PORTABLE, STUCK), strict=True))
    ]
    text = comparison_text(*(load_runs([run]) for run in with_it), methods=methods)
    (line,) = (line for line in text.splitlines() if "portability (fact)" in line)
    # seven cases fell, in a family of one figure: 2 of 2^7
    assert line.split()[-2:] == ["0.016", "0.016"]
    if scored:
        plain = [write_run(tmp_path, of, run=f"plain{i}") for i, of in enumerate(beside)]
        without = comparison_text(*(load_runs([run]) for run in plain), methods=methods)
        rest = [row.split() for row in text.splitlines() if "portability" not in row]
        assert rest[2:] == [row.split() for row in without.splitlines()][2:]


def test_a_run_without_portability_is_named(tmp_path, good):
    more = write_run(tmp_path, {"rome": {**GOOD, **PORTABLE}}, run="more")
    first, second = load_runs([good]), load_runs([more])
    said = "rome on tiny-gpt2, portability (facts): only in the {}."
    assert said.format("second") in comparison_text(first, second)
    assert said.format("first") in comparison_text(second, first)


def test_comparing_is_antisymmetric(good, worse):
    forth, back = _compared(good, worse), _compared(worse, good)
    for criterion, other in itertools.product(CRITERIA, [back]):
        assert forth[criterion].difference.mean == pytest.approx(-other[criterion].difference.mean)
        assert forth[criterion].p == other[criterion].p


@pytest.mark.parametrize(
    ("unlike", "named"),
    [
        ({}, []),
        ({"options": {"limit": "9", "dtype": "float32"}}, []),  # which cases: said by the table
        ({"seed": 1}, ["seed"]),
        ({"models": {"tiny-gpt2": "d" * 64}}, ["weights"]),
        ({"data": {"embedded": "d" * 64}}, ["data"]),
        ({"code": "d" * 64}, ["code"]),
        ({"options": {"dtype": "bfloat16", "chat": "yes"}, "seed": 1}, ["chat", "dtype", "seed"]),
    ],
)
def test_what_else_differs_is_said_below_the_table(tmp_path, good, unlike, named):
    other = write_run(tmp_path, {"rome": WORSE}, run="other", **unlike)
    for folders in ([good, other], [other, good]):
        for as_markdown in (False, True):
            text = comparison_text(*(load_runs([f]) for f in folders), as_markdown=as_markdown)
            said = re.findall(
                "^The first and the second differ in (.*) for tiny-gpt2.$", text, re.M
            )
            assert [sorted(aspects.split(", ")) for aspects in said] == ([named] if named else [])


def test_a_cut_log_is_said_below_the_table(good, worse):
    log = worse / "measurements.jsonl"
    log.write_bytes(log.read_bytes()[:-1])
    text = comparison_text(load_runs([good]), load_runs([worse]))
    assert text.count("worse: the log has 71 of the 72 tests that the run ended with") == 1


def test_the_command_prints_the_comparison(tmp_path, good, worse):
    reports = ["--reports", str(tmp_path)]
    done = CliRunner().invoke(group, ["compare", "good", "worse", *reports])
    assert done.exit_code == 0, done.output
    assert done.output == comparison_text(load_runs([good]), load_runs([worse]))
    assert "0.71 [" in done.output
    written = CliRunner().invoke(group, ["compare", "good", "worse", "--markdown", *reports])
    assert written.output.startswith("| method")
