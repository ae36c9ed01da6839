"""Intervals and tests for scores of cases that come in clusters.

Cases about one subject, or with one agreeing noun, are not independent: clusters are resampled
and flipped, never single cases. scipy is imported inside the functions, at the end of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from kn_bench.measure.resampling import Clustered, bootstrap_means, by_cluster, joined

PERMUTATIONS = 20_000
"""Random sign flips when there are too many to try all: p is good to about 0.0015 at 0.05."""
EXACT = 14
"""Up to this many differing clusters, all 2^n sign flips (16,384) are tried."""
LEVEL = 0.95
Alternative = Literal["two-sided", "less"]
"""Whether the second sample differs from the first, or is below it."""


class Interval(NamedTuple):
    """A mean over ``n`` cases with the ends of its interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(
    scores: ArrayLike,
    clusters: ArrayLike | Sequence[str],
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return the mean of ``scores`` with a cluster-bootstrap interval; NaN scores are left out.

    It is a percentile interval, widened for few clusters as by Hesterberg (2015, "What teachers
    should know about the bootstrap", section 5.3). If all clusters agree, the bootstrap sees no
    spread: see :func:`agreed_interval`. Without scores all fields but n are NaN.

    Args:
        scores: one per case.
        clusters: cluster of each case.
        bounds: range of the scores, or None if it is unbounded; the interval of agreeing clusters
            is then their mean alone, and that of a single cluster is NaN.
        level: level of the interval.
        seed: seed of the resampling.
    """
    values = np.asarray(scores, dtype=float)
    (interval,) = mean_intervals(values[:, None], clusters, bounds=bounds, level=level, seed=seed)
    return interval


def mean_intervals(
    scores: Float[np.ndarray, "case column"],
    clusters: ArrayLike | Sequence[str],
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    level: float = LEVEL,
    seed: int = 0,
) -> list[Interval]:
    """Return the means of several columns, each as :func:`mean_interval` computes it.

    Columns with scores for the same cases share their resamples: a board has thousands of
    figures, and resampling costs more than the rest.
    """
    names = np.asarray(clusters)
    scored = ~np.isnan(scores)
    alike: dict[bytes, list[int]] = {}
    for column in range(scores.shape[1]):
        alike.setdefault(scored[:, column].tobytes(), []).append(column)
    result = [Interval(np.nan, np.nan, np.nan, 0)] * scores.shape[1]
    for columns in alike.values():
        rows = scored[:, columns[0]]
        if rows.any():
            intervals = _intervals(scores[rows][:, columns], names[rows], bounds, level, seed)
            for column, interval in zip(columns, intervals, strict=True):
                result[column] = interval
    return result


def _intervals(
    scores: Float[np.ndarray, "case column"],
    clusters: np.ndarray,
    bounds: tuple[float, float] | None,
    level: float,
    seed: int,
) -> list[Interval]:
    """Return the intervals of columns without NaN."""
    size = len(scores)
    means = scores.mean(0)
    data = by_cluster(scores, clusters)
    n = len(data.sums)
    of_clusters = data.sums / data.counts
    with np.errstate(invalid="ignore"):
        spread = np.ptp(of_clusters, axis=0) >= 1e-12
    ends = np.full((2, scores.shape[1]), np.nan)
    drawn = np.flatnonzero(spread & np.isfinite(means))
    if drawn.size and not (bounds is None and n == 1):
        part = Clustered(data.sums[:, drawn], data.counts[:, drawn])
        ends[:, drawn] = _ends(bootstrap_means(part, seed), n, level)
    for column in np.flatnonzero(~spread & np.isfinite(means)):
        mean = float(means[column])
        if bounds is not None:
            ends[:, column] = agreed_interval(mean, n, bounds, level)
        elif n > 1:
            ends[:, column] = mean
    return [
        Interval(float(mean), float(low), float(high), size)
        for mean, low, high in zip(means, *ends, strict=True)
    ]


def agreed_interval(
    mean: float, n: int, bounds: tuple[float, float] = (0.0, 1.0), level: float = LEVEL
) -> tuple[float, float]:
    """Return the interval for ``n`` clusters that all have the same mean.

    If a cluster deviates with probability q, none of n does with probability (1-q)^n, so q is below
    1 - (tail)^(1/n) (Clopper and Pearson 1934, at 0 of n). Each could deviate to the far bound.
    """
    low, high = bounds
    if mean in bounds:
        q = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / n)
        return (mean, low + q * (high - low)) if mean == low else (high - q * (high - low), mean)
    q = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / n)
    return mean - q * (mean - low), mean + q * (high - mean)


def _ends(means: np.ndarray, n: int, level: float) -> np.ndarray:
    """Return percentiles of the resampled means, with a smaller tail for few clusters."""
    tail = widened_tail(n, level)
    quantile = np.nanquantile if np.isnan(means).any() else np.quantile
    ends: np.ndarray = quantile(means, [tail, 1.0 - tail], axis=0)
    return ends


@lru_cache(maxsize=256)
def widened_tail(n: int, level: float = LEVEL) -> float:
    """Return the share of resamples beyond each end of an interval of ``n`` clusters."""
    from scipy import special  # scipy.stats takes a second to be imported

    tail = (1.0 - level) / 2.0
    if n == 1:
        return tail
    return float(special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, tail)))


def harmonic_mean(means: ArrayLike) -> float:
    """Return the harmonic mean of rates: 0 if any is 0, NaN if any is missing or there are none."""
    values = np.asarray(means, dtype=float)
    if not values.size or np.isnan(values).any():
        return float("nan")
    return 0.0 if (values <= 0).any() else float(values.size / np.sum(1.0 / values))


def harmonic_interval(data: Clustered, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """Return the harmonic mean of the column means, resampling all columns together by cluster.

    It is NaN unless every column has scores. ``n`` is the number of clusters.
    """
    return combined_interval(data, _harmonic_rows, level=level, seed=seed)


def average_interval(data: Clustered, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """Return the mean of the column means; otherwise like :func:`harmonic_interval`."""
    return combined_interval(data, lambda means: means.mean(axis=1), level=level, seed=seed)


def _harmonic_rows(means: Float[np.ndarray, "times column"]) -> Float[np.ndarray, " times"]:
    with np.errstate(divide="ignore"):
        rows: Float[np.ndarray, " times"] = means.shape[1] / np.sum(1.0 / means, axis=1)
    return rows  # 1/0 = inf makes it 0


def combined_interval(
    data: Clustered,
    combine: Callable[[Float[np.ndarray, "times column"]], Float[np.ndarray, " times"]],
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Combine the means of several columns, resampling all columns together by cluster.

    A column whose clusters agree shows no spread to the bootstrap. Its mean is drawn from the
    distribution whose quantiles are the ends of :func:`agreed_interval`, for all such columns with
    one number: cases that fail may fail everywhere. The column with the fewest clusters of those
    that differ says how far the interval is widened.

    The result is NaN unless every column has scores. ``n`` is the number of clusters.

    Args:
        combine: does not fall where a mean rises.
    """
    n = len(data.sums)
    if not n or (data.counts.sum(0) == 0).any():
        return Interval(np.nan, np.nan, np.nan, n)
    means = data.sums.sum(0) / data.counts.sum(0)
    of_clusters = data.sums / np.where(data.counts > 0, data.counts, np.nan)
    agree = np.nanmax(of_clusters, axis=0) - np.nanmin(of_clusters, axis=0) < 1e-12
    clusters = (data.counts > 0).sum(0)
    tail = (1.0 - level) / 2.0
    if agree.all():  # the ends alone
        lower, shares = means[None].copy(), np.array([1.0 - tail])
    else:
        lower = bootstrap_means(data, seed)
        shares = (np.random.default_rng([seed, n]).permutation(len(lower)) + 0.5) / len(lower)
        tail = widened_tail(int(clusters[~agree].min()), level)
    higher = lower.copy()
    for column in np.flatnonzero(agree):
        q = 1.0 - (1.0 - shares) ** (1.0 / clusters[column])
        lower[:, column] = means[column] * (1.0 - q)
        higher[:, column] = means[column] + q * (1.0 - means[column])
    low, high = (
        float(np.quantile(scores[~np.isnan(scores)], share))
        for scores, share in ((combine(lower), tail), (combine(higher), 1.0 - tail))
    )
    return Interval(float(combine(means[None])[0]), low, high, n)


# --- tests -------------------------------------------------------------------------------------


class Paired(NamedTuple):
    """Two samples on the same cases.

    Attributes:
        difference: mean of second minus first, with a cluster-bootstrap interval; n cases.
        p: p of the permutation test.
    """

    difference: Interval
    p: float


def paired(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike | Sequence[str],
    *,
    alternative: Alternative = "two-sided",
    seed: int = 0,
) -> Paired:
    """Compare two scores of the same cases.

    Args:
        first, second: one score per case each, in the same order.
        clusters: cluster of each case.
        alternative: ``two-sided``, or ``less`` for second below first.
        seed: seed of resampling and random flips.
    """
    change = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    difference = mean_interval(change, clusters, bounds=(-1.0, 1.0), seed=seed)
    names = np.asarray(clusters)
    sums = by_cluster(change[:, None], names).sums[:, 0] if change.size else change
    return Paired(difference, sign_flip_p(sums, alternative=alternative, seed=seed))


def sign_flip_p(
    sums: Float[np.ndarray, " cluster"], *, alternative: Alternative = "two-sided", seed: int = 0
) -> float:
    """Return p of the paired permutation test, which flips the sign of each cluster's difference.

    It is exact if at most 14 clusters differ, else (b + 1) / (m + 1) over 20,000 random flips; of
    more than ``MANY`` clusters blocks are flipped.
    """
    moved = joined(sums[np.abs(sums) > 1e-12], seed)
    if not moved.size:
        return 1.0
    observed = moved.sum()
    flipped = _flipped_sums(moved, seed)
    tolerance = 1e-9 * np.abs(moved).sum()  # equal sums may differ in their last bits
    if alternative == "less":
        extreme = flipped <= observed + tolerance
    else:
        extreme = np.abs(flipped) >= abs(observed) - tolerance
    if moved.size <= EXACT:
        return float(extreme.mean())
    return float((extreme.sum() + 1) / (extreme.size + 1))


CHUNK = 2_000_000
"""Signs held at once: 2 MB, and 16 MB while they are multiplied."""


def _flipped_sums(moved: Float[np.ndarray, " n"], seed: int) -> Float[np.ndarray, " flip"]:
    """Return the sum under each flip, holding part of the signs in memory at a time."""
    n = moved.size
    if n <= EXACT:
        exact: Float[np.ndarray, " flip"] = np.where(_all_bits(n), 1.0, -1.0) @ moved
        return exact
    rng = np.random.default_rng([seed, n])
    sums = np.empty(PERMUTATIONS)
    rows = max(1, CHUNK // n)
    for start in range(0, PERMUTATIONS, rows):
        part = sums[start : start + rows]
        bits = rng.integers(2, size=(len(part), n), dtype=np.int8)
        part[:] = 2.0 * (bits @ moved) - moved.sum()
    return sums


@lru_cache(maxsize=EXACT + 1)
def _all_bits(n: int) -> Bool[np.ndarray, "flip n"]:
    bits: Bool[np.ndarray, "flip n"] = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(bool)
    return bits


def independent_p(
    first: Float[np.ndarray, " a"],
    second: Float[np.ndarray, " b"],
    *,
    alternative: Alternative = "two-sided",
    seed: int = 0,
) -> float:
    """Return p of the permutation test for two samples of cluster means of different cases.

    It is 1 where a sample has fewer than two clusters, which show no spread.
    """
    from scipy import stats

    if min(len(first), len(second)) < 2:
        return 1.0
    result = stats.permutation_test(
        (second, first),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        vectorized=True,
        n_resamples=PERMUTATIONS,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: ArrayLike) -> Float[np.ndarray, " test"]:
    """Adjust p-values by Holm's step-down procedure (1979); NaN values are ignored and kept."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if order.size else []
    return adjusted
