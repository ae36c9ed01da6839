"""The gate and comparisons of sequences: paired by case, clustered by sequence, equal protocols."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kn_bench.cases.case import CRITERIA, Criterion
from kn_bench.measure.statistics import sign_flip_p
from kn_bench.results.baseline import baseline_of, read_baseline, save_baseline
from kn_bench.results.comparison import (
    COLUMNS,
    compare,
    remarks,
    scores_of,
    sequences_needed,
)
from kn_bench.results.loading import Runs, load_runs
from kn_bench.testing.gate import gate
from tests.made_up import write_run

N = 10
GOOD: dict[Criterion, list[float]] = {c: [1.0] * N for c in CRITERIA}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return load_runs([write_run(tmp_path_factory.mktemp("runs"), {"rome": GOOD})])


def sequences(single: Runs, fallen: dict[int, int], *, k=6, protocol="sequence:10") -> Runs:
    """K sequences of the same cases; in sequence i the first ``fallen[i]`` lose symmetry later."""
    parts = []
    for number in range(k):
        for asked in ("immediate", "retained"):
            rows = single.verdicts.assign(protocol=protocol, sequence=number, asked=asked)
            position = rows["case"].str.extract(r"c(\d+)$")[0].astype(int)
            falls = (rows["criterion"] == "symmetry") & (position < fallen.get(number, 0))
            if asked == "retained":
                rows.loc[falls, "verdict_score"] = 0.0
            parts.append(rows)
    return replace(single, verdicts=pd.concat(parts, ignore_index=True))


def only(runs: Runs, *numbers: int) -> Runs:
    """The sequences of these numbers."""
    return replace(runs, verdicts=runs.verdicts[runs.verdicts["sequence"].isin(numbers)])


def test_an_equal_sequence_passes_through_a_stored_baseline(single, tmp_path):
    runs = sequences(single, {})
    save_baseline(runs, tmp_path / "baseline.json")
    report = gate(read_baseline(tmp_path / "baseline.json"), runs)
    assert report.passed
    assert {c.group.protocol for c in report.compared} == {
        "sequence:10, immediate",
        "sequence:10, retained",
    }
    assert len(report.compared) == 2 * len(CRITERIA)


def test_a_fall_of_what_is_retained_fails_the_gate_and_no_other_reading(single):
    baseline = baseline_of(sequences(single, {}, k=10))
    worse = sequences(single, dict.fromkeys(range(10), 4), k=10)
    report = gate(baseline, worse)
    assert not report.passed
    (fallen,) = report.fallen
    assert fallen.group.criterion == "symmetry"
    assert fallen.group.protocol == "sequence:10, retained"
    assert fallen.difference.mean == pytest.approx(-0.4)
    assert fallen.paired
    assert fallen.sequences == 10
    # sequences fall as a whole: 1 of 2^10 sign assignments is as extreme, cases do not count
    assert fallen.p == pytest.approx(2.0**-10)
    assert "symmetry" in report.text()
    assert "sequence:10, retained" in report.text()


def test_few_sequences_cannot_fail_and_the_gate_says_so(single):
    baseline = baseline_of(sequences(single, {}, k=3))
    worse = sequences(single, dict.fromkeys(range(3), N), k=3)
    report = gate(baseline, worse)
    assert report.passed
    (symmetry,) = (c for c in report.compared if c.difference.mean)
    assert symmetry.difference.mean == -1.0
    assert symmetry.p == pytest.approx(2.0**-3)
    assert report.notes == (
        "rome: with 3 sequences no fall can be significant at 5 % among 12 figures; measure "
        "--sequences 8 or more.",
    )


@pytest.mark.parametrize("protocol", ["batch:200", "sequence:200/200"])
def test_a_gate_that_asks_for_more_batches_says_how_many_cases_they_take(single, protocol):
    """No two batches have a case in common, and 8 of 200 need 1,600 cases."""
    runs = sequences(single, {}, k=3, protocol=protocol)
    report = gate(baseline_of(runs), runs)
    assert report.notes == (
        "rome: with 3 sequences no fall can be significant at 5 % among 12 figures; measure "
        "--sequences 8 or more (1,600 cases: batches share none).",
    )


def test_one_sequence_is_paired_by_case(single):
    first, second = sequences(single, {}, k=1), sequences(single, {0: 7}, k=1)
    compared = compare(scores_of(first), scores_of(second))
    (symmetry,) = (c for c in compared if c.difference.mean)
    assert symmetry.paired
    assert symmetry.sequences == 0
    assert symmetry.p == pytest.approx(2 / 2**7)


def all_fall(n: int, figures: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of n sequences, first and second, of so many figures: all of the first one fall."""
    rows = [
        ("fact", f"m{i}", "rome", "symmetry", "sequence:1, retained", "c", str(k), "k", 1.0)
        for i in range(figures)
        for k in range(n)
    ]
    first = pd.DataFrame(rows, columns=COLUMNS)
    return first, first.assign(score=first["score"].where(first["model"] != "m0", 0.0))


@pytest.mark.parametrize("alternative", ["two-sided", "less"])
@pytest.mark.parametrize("figures", [1, 2, 6, 12, 24])
def test_so_many_sequences_are_enough_and_one_less_is_not(figures, alternative):
    needed = int(sequences_needed(figures, alternative))
    for n in (needed - 1, needed, needed + 1):
        compared = compare(*all_fall(n, figures), alternative=alternative)
        assert min(c.p_holm < 0.05 for c in compared if c.difference.mean) == (n >= needed)
        said = [text for text in remarks(compared, alternative) if "significant" in text]
        assert bool(said) == (n < needed)
        assert all(f"measure --sequences {needed} or more" in text for text in said)


@pytest.mark.parametrize("alternative", ["two-sided", "less"])
@pytest.mark.parametrize("figures", [60, 300, 500, 900, 1_000, 1_001, 5_000])
def test_the_test_itself_says_how_many_are_enough(figures, alternative):
    enough = [
        figures * sign_flip_p(-np.ones(n), alternative=alternative) < 0.05 for n in range(1, 40)
    ]
    needed = sequences_needed(figures, alternative)
    assert needed == (enough.index(True) + 1 if any(enough) else math.inf)


def test_where_no_number_of_sequences_is_enough_it_is_said():
    (one,) = compare(*all_fall(40, 1))
    assert list(remarks([one] * 1_001)) == [
        "rome: with 40 sequences no difference can be significant at 5 % among 1001 figures; "
        "compare fewer."
    ]


@pytest.mark.parametrize("asymmetric", [(2, 4), (4, 2), (3, 4)])
def test_too_few_sequences_hide_no_case_that_is_left_out(single, asymmetric):
    first, second = (sequences(single, {}, k=k) for k in asymmetric)
    shared = min(asymmetric)
    more = [N * (k - shared) for k in asymmetric]
    compared = compare(scores_of(first), scores_of(second))
    said = list(remarks(compared))
    assert said == [
        f"{c.group}: {more[0]} cases only in the first and {more[1]} only in the second are not "
        "compared."
        for c in compared
    ] + [
        f"rome: with {shared} sequences no difference can be significant at 5 % among 12 figures; "
        "measure --sequences 9 or more."
    ]


@pytest.mark.parametrize("other", ["single", "batch:10", "sequence:10/5", "sequence:20"])
def test_unequal_protocols_are_never_compared(single, other):
    first = sequences(single, {})
    second = sequences(single, {}, protocol=other)
    assert compare(scores_of(first), scores_of(second)) == ()
    report = gate(baseline_of(first), second)
    assert not report.passed
    assert len(report.missing) == 2 * len(CRITERIA)
    assert report.headline.endswith("no criterion in common.")


def test_the_order_of_the_same_sequences_changes_nothing(single):
    runs = sequences(single, {0: 3, 1: 5})
    other = replace(runs, verdicts=runs.verdicts.iloc[::-1].reset_index(drop=True))
    compared = compare(scores_of(runs), scores_of(other))
    assert all(c.difference.mean == 0 and c.p == 1 for c in compared)


def test_scores_of_one_method_against_another_of_the_same_sequences(single):
    runs = sequences(single, {0: 3})
    other = runs.verdicts.assign(method="memit")
    both = replace(runs, verdicts=pd.concat([runs.verdicts, other], ignore_index=True))
    compared = compare(scores_of(both, "rome", "both"), scores_of(both, "memit", "both"))
    assert len(compared) == 2 * len(CRITERIA)
    assert all(c.paired and c.sequences == 6 for c in compared)


FIVE = tuple(range(5))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Ten cases of five subjects."""
    folder = write_run(tmp_path_factory.mktemp("subjects"), {"rome": GOOD}, a_cluster=2)
    return load_runs([folder])


@pytest.mark.parametrize("gated", [False, True], ids=["compared", "gated"])
@pytest.mark.parametrize(
    ("first", "second"),
    [((0,), FIVE), (FIVE, (0,)), ((0, 1), FIVE), (FIVE, (1, 3)), ((3,), FIVE), (FIVE, (3,)),
     ((0, 1), (1, 2)), ((0,), (0,)), ((3,), (3,)), (FIVE, FIVE)],
)  # fmt: skip
def test_the_sequences_that_both_have_are_compared(subjects, tmp_path, first, second, gated):
    good = sequences(subjects, {}, k=5)
    worse = sequences(subjects, dict.fromkeys(FIVE, 6), k=5)
    runs, other = only(good, *first), only(worse, *second)
    both = set(first) & set(second)
    if gated:
        save_baseline(runs, tmp_path / "baseline.json")
        compared = gate(read_baseline(tmp_path / "baseline.json"), other).compared
    else:
        compared = compare(scores_of(runs), scores_of(other), alternative="less")
    assert len(compared) == 2 * len(CRITERIA)
    for c in compared:
        assert c.paired
        assert c.first.n == c.second.n == c.difference.n == N * len(both)
        assert c.only_first == N * (len(first) - len(both))
        assert c.only_second == N * (len(second) - len(both))
        assert c.sequences == (len(both) if len(both) > 1 else 0)
    (fell,) = (c for c in compared if c.difference.mean)
    # six cases of three subjects fall, in every sequence
    assert fell.difference.mean == pytest.approx(-0.6)
    assert fell.p == pytest.approx(2.0 ** -(len(both) if len(both) > 1 else 3))
    alone = compare(
        *(scores_of(only(r, *both)) for r in (good, worse)), alternative="less"
    )  # as if the others had not been measured
    assert [c.first for c in compared] == [c.first for c in alone]
    assert [c.second for c in compared] == [c.second for c in alone]
    assert [c.difference for c in compared] == [c.difference for c in alone]


@pytest.mark.parametrize(
    ("first", "second", "units"),
    [((0,), (1,), 5), ((0,), (1, 2, 3), 5), ((1, 2, 3), (0,), 5), ((0, 1, 2), (3, 4, 5), 3)],
)
def test_sequences_that_are_not_shared_are_samples_of_one_kind(subjects, first, second, units):
    good, worse = sequences(subjects, {}), sequences(subjects, dict.fromkeys(range(6), N))
    compared = compare(scores_of(only(good, *first)), scores_of(only(worse, *second)))
    (fell,) = (c for c in compared if c.difference.mean)
    assert not fell.paired
    # all units of the one lie above all of the other: 2 of the splits are as extreme
    assert fell.p == pytest.approx(2 / math.comb(2 * units, units))


def test_a_baseline_without_subjects_is_held_against_sequences(subjects):
    good, worse = sequences(subjects, {}), sequences(subjects, dict.fromkeys(range(6), N))
    report = gate(baseline_of(only(good, 1, 2, 3)), only(worse, 0))
    (fell,) = (c for c in report.compared if c.difference.mean)
    assert not fell.paired
    assert (fell.first.mean, fell.second.mean) == (1.0, 0.0)
    assert fell.p == 1.0  # one sequence shows no spread


def test_a_baseline_names_the_sequences_as_before(subjects):
    runs = sequences(subjects, {}, k=2)
    one, several = (baseline_of(r).scores[0] for r in (only(runs, 0), runs))
    assert (one.cases[0], one.clusters[0]) == ("embedded/P36/c0", "k0")
    assert several.cases[:2] == ("embedded/P36/c0#0", "embedded/P36/c0#1")
    assert several.clusters[:2] == ("sequence 0", "sequence 1")
