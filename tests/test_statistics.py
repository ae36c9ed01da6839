"""Intervals and tests against closed forms, brute force and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kn_bench.measure.resampling import MANY, by_cluster, resampled
from kn_bench.measure.statistics import (
    Interval,
    agreed_interval,
    average_interval,
    harmonic_interval,
    harmonic_mean,
    holm,
    independent_p,
    mean_interval,
    paired,
    sign_flip_p,
)


def test_every_resample_draws_n_clusters_evenly():
    counts = resampled(37, seed=1)
    assert (counts.sum(axis=1) == 37).all()
    # each cluster is drawn once a resample on average, with variance 1 - 1/n
    assert np.abs(counts.mean(axis=0) - 1).max() < 5 * math.sqrt((1 - 1 / 37) / len(counts))
    assert counts.var() == pytest.approx(1 - 1 / 37, rel=0.02)


def test_seeded_and_independent_of_the_order_of_cases():
    rng = np.random.default_rng(0)
    scores, clusters = rng.integers(2, size=60), rng.integers(20, size=60)
    interval = mean_interval(scores, clusters)
    order = rng.permutation(60)
    assert mean_interval(scores[order], clusters[order]) == pytest.approx(interval)
    assert mean_interval(scores, clusters, seed=1) != interval


def test_the_standard_error_is_that_of_cluster_means():
    # 200 clusters of 3 equal scores: the mean's error is that of 200 numbers, not of 600
    rng = np.random.default_rng(0)
    values = rng.random(200)
    interval = mean_interval(np.repeat(values, 3), np.repeat(np.arange(200), 3))
    half = stats.t.ppf(0.975, 199) * values.std(ddof=1) / math.sqrt(200)
    assert interval.n == 600
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.05)


@pytest.mark.parametrize(("n", "p"), [(15, 0.5), (40, 0.8), (150, 0.9)])
def test_coverage_of_the_interval(n, p):
    # clusters of 1 to 4 cases that share much of their luck
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(400):
        sizes = rng.integers(1, 5, size=n)
        names = np.repeat(np.arange(n), sizes)
        luck = rng.beta(p * 2, (1 - p) * 2, size=n)
        scores = rng.random(len(names)) < luck[names]
        interval = mean_interval(scores, names, seed=int(rng.integers(1 << 30)) % 3)
        hits += interval.low <= p <= interval.high
    assert 0.915 <= hits / 400 <= 0.985


def test_clusters_that_agree_still_have_an_interval():
    interval = mean_interval(np.ones(20), np.arange(20))
    exact = stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert interval == pytest.approx((1.0, exact.low, 1.0, 20))
    assert mean_interval(np.zeros(20), np.arange(20)).high == pytest.approx(1 - exact.low)
    # five cases of one cluster say no more than one
    assert mean_interval(np.ones(5), np.zeros(5)).low == pytest.approx(0.025)
    low, high = agreed_interval(0.5, 30)
    assert 0 < low < 0.5 < high < 1


def test_one_cluster_without_bounds_has_no_interval():
    """It says nothing of how clusters differ; several that agree are as narrow as they look."""
    interval = mean_interval([0.2, 0.4], ["a", "a"], bounds=None)
    assert interval.mean == pytest.approx(0.3)
    assert interval.n == 2
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert mean_interval([0.3, 0.3], ["a", "b"], bounds=None) == (0.3, 0.3, 0.3, 2)


def test_without_scores_there_is_no_mean():
    interval = mean_interval(np.array([math.nan]), ["a"])
    assert interval.n == 0
    assert math.isnan(interval.mean)
    assert math.isnan(interval.low)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_harmonic_mean_is_scipys(values):
    assert harmonic_mean(values) == pytest.approx(stats.hmean(values))
    assert harmonic_mean([*values, 0.0]) == 0
    assert math.isnan(harmonic_mean([*values, math.nan]))


def test_harmonic_interval_resamples_the_criteria_together():
    rng = np.random.default_rng(0)
    names = np.arange(300)
    scores = rng.random((300, 1)) * np.ones((1, 5))  # five equal columns: the mean of one
    interval = harmonic_interval(by_cluster(scores, names))
    single = mean_interval(scores[:, 0], names)
    assert (interval.mean, interval.low, interval.high) == pytest.approx(single[:3])
    scores[:, 2] = math.nan
    assert math.isnan(harmonic_interval(by_cluster(scores, names)).mean)
    perfect = harmonic_interval(by_cluster(np.ones((20, 5)), np.arange(20)))
    assert perfect == pytest.approx(Interval(1.0, 0.025 ** (1 / 20), 1.0, 20))


@pytest.mark.parametrize(("rates", "n_first"), [((0.15, 0.05), 8), ((0.02, 0.9), 20)])
def test_coverage_of_a_mean_of_two_rates_of_which_one_has_few_clusters(rates, n_first):
    """Fifty-six clusters, eight of them with symmetry: 95 % intervals held the truth in 77 %."""
    rng = np.random.default_rng(n_first)
    hits = 0
    for _ in range(200):
        scores = (rng.random((56, 2)) < rates).astype(float)
        scores[n_first:, 0] = math.nan
        interval = average_interval(by_cluster(scores, np.arange(56)))
        hits += interval.low <= np.mean(rates) <= interval.high
    assert hits / 200 >= 0.93


def test_a_mean_is_no_surer_than_its_parts():
    scores = np.zeros((56, 2))
    scores[8:, 0] = math.nan
    few, many = agreed_interval(0.0, 8)[1], agreed_interval(0.0, 56)[1]
    interval = average_interval(by_cluster(scores, np.arange(56)))
    assert interval == pytest.approx((0.0, 0.0, (few + many) / 2, 56))
    scores[:3, 1] = 1.0  # one column differs, and the other agrees as before
    mixed = average_interval(by_cluster(scores, np.arange(56)))
    alone = mean_interval(scores[:, 1], np.arange(56))
    assert mixed.low == pytest.approx(alone.low / 2, abs=1e-3)
    assert (0.0 + alone.high) / 2 < mixed.high < (few + alone.high) / 2 + 0.02
    harmonic = harmonic_interval(by_cluster(1.0 - scores, np.arange(56)))
    assert harmonic.high == pytest.approx(2 / (1 + 1 / (1 - alone.low)), abs=1e-3)
    assert harmonic.low < 1 - alone.high


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=9))
def test_the_paired_test_is_exact(sums):
    """All sign assignments by brute force, zeros included."""
    observed = sum(sums)
    rows = [sum(s * v for s, v in zip(signs, sums, strict=True)) for signs in _signs(len(sums))]
    lower = sum(row <= observed + 1e-9 for row in rows) / len(rows)
    both = sum(abs(row) >= abs(observed) - 1e-9 for row in rows) / len(rows)
    assert sign_flip_p(np.array(sums), alternative="less") == pytest.approx(lower)
    assert sign_flip_p(np.array(sums)) == pytest.approx(both)


def _signs(n: int):
    return itertools.product((1, -1), repeat=n)


def test_many_clusters_by_random_flips_agree_with_the_sign_test():
    # 40 clusters that moved by one: 28 down, 12 up: the flips' law is binomial
    sums = np.array([-1.0] * 28 + [1.0] * 12 + [0.0] * 100)
    exact = stats.binomtest(12, 40, alternative="less").pvalue
    assert sign_flip_p(sums, alternative="less") == pytest.approx(exact, abs=0.003)


def test_a_hundred_thousand_clusters_have_the_interval_of_the_normal_law():
    rng = np.random.default_rng(0)
    scores = rng.random(100_000) < 0.2
    half = stats.norm.ppf(0.975) * scores.std() / math.sqrt(len(scores))
    mean, low, high, n = mean_interval(scores, np.arange(100_000))
    assert (mean, n) == (scores.mean(), 100_000)
    assert (high - mean, mean - low) == pytest.approx((half, half), rel=0.1)
    # three in a hundred thousand: the blocks that have them are drawn as a Poisson law has it
    rare = np.arange(100_000) < 3
    assert mean_interval(rare, np.arange(100_000))[1:3] == pytest.approx((0.0, 7e-5), abs=1e-5)


def test_flips_of_a_hundred_thousand_clusters_agree_with_the_normal_law():
    rng = np.random.default_rng(1)
    sums = rng.choice([-1.0, 1.0], size=100_000, p=[0.503, 0.497])
    exact = stats.norm.cdf(sums.sum() / math.sqrt(len(sums)))
    assert sign_flip_p(sums, alternative="less") == pytest.approx(exact, rel=0.2)
    null = [sign_flip_p(rng.choice([-1.0, 1.0], size=MANY + 1)) for _ in range(100)]
    assert stats.kstest(null, "uniform").pvalue > 0.001


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_clusters_are_the_same_by_number_and_by_name(numbers):
    scores = np.arange(len(numbers), dtype=float)[:, None] % 3
    by_number = by_cluster(scores, np.array(numbers))
    by_name = by_cluster(scores, [f"{number:02}" for number in numbers])
    assert all(np.array_equal(a, b) for a, b in zip(by_number, by_name, strict=True))


def test_p_is_uniform_under_the_null_though_cases_are_clustered():
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(25), 4)
    p = [paired(np.zeros(100), np.repeat(rng.standard_normal(25), 4), names).p for _ in range(200)]
    rejected = np.mean(np.array(p) < 0.05)
    assert rejected <= 0.09
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_pairing_finds_what_independent_samples_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    result = paired(hard, hard - 0.02, np.arange(60))
    assert result.p < 0.001
    assert result.difference.mean == pytest.approx(-0.02)
    assert stats.ttest_ind(hard, hard - 0.02).pvalue > 0.5


def test_nothing_changed_is_no_evidence():
    result = paired(np.ones(30), np.ones(30), np.arange(30))
    assert result.p == 1
    assert result.difference.mean == 0


def test_independent_samples_agree_with_fishers_exact_test():
    first, second = np.repeat([1.0, 0.0], [18, 2]), np.repeat([1.0, 0.0], [9, 11])
    exact = stats.fisher_exact(np.array([[18, 2], [9, 11]]), alternative="greater").pvalue
    assert independent_p(first, second, alternative="less") == pytest.approx(exact, abs=0.002)
    assert independent_p(np.array([]), second) == 1


@pytest.mark.parametrize("alternative", ["two-sided", "less"])
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 0), (1, 1), (1, 3), (30, 1)])
def test_a_sample_of_one_cluster_shows_no_difference(n, m, alternative):
    assert independent_p(np.ones(n), np.zeros(m), alternative=alternative) == 1


def test_holm_against_the_definition():
    # Holm's own step-down, worked by hand: 0.01 x 4, 0.013 x 3, 0.014 x 2 (kept monotone), 0.19
    assert holm([0.01, 0.014, 0.19, 0.013]) == pytest.approx([0.04, 0.04, 0.19, 0.04])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, math.nan]) == pytest.approx([0.02, math.nan], nan_ok=True)
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_and_bonferronis_p(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
