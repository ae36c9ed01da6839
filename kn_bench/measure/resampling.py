"""Scores summed by cluster, and how often resamples draw each cluster.

Many clusters are joined at random into blocks first, which are resampled or flipped in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy.typing import ArrayLike

RESAMPLES = 4000
"""Bootstrap resamples: the end of a 95 % interval moves by about 0.02 of its width by chance."""
CELLS = 4_000_000
"""Numbers in a table of resamples."""
MANY = 8_000
"""More clusters than this are joined at random."""
BLOCKS = 1_000
"""So many blocks are resampled or flipped in their place: the variance of a mean is the same, and
is estimated to 1 / sqrt(2 * BLOCKS), about 2 % of an interval's width."""


class Clustered(NamedTuple):
    """Scores summed by cluster, in columns that are resampled together; NaN scores count nowhere.

    Attributes:
        sums: sum of the scores of each cluster in each column.
        counts: number of scores.
    """

    sums: Float[np.ndarray, "cluster column"]
    counts: Float[np.ndarray, "cluster column"]


def by_cluster(
    scores: Float[np.ndarray, "case column"], clusters: ArrayLike | Sequence[str]
) -> Clustered:
    """Sum and count ``scores`` by the clusters of the cases; NaN means no score."""
    codes = _dense(np.asarray(clusters))
    n = int(codes.max()) + 1 if codes.size else 0
    scored = ~np.isnan(scores)
    return Clustered(
        _summed(np.where(scored, scores, 0.0), codes, n), _summed(scored.astype(float), codes, n)
    )


def _dense(names: np.ndarray) -> Int[np.ndarray, " case"]:
    """Return names of clusters as numbers from 0, in the order of the names, none left out."""
    if names.dtype.kind not in "iu" or not names.size or names.min() < 0:
        return np.unique(names, return_inverse=True)[1]
    # names that are whole numbers are counted, which is quicker than sorting millions of them
    occurs = np.bincount(names) > 0
    codes: Int[np.ndarray, " case"] = (np.cumsum(occurs) - 1)[names]
    return codes


def joined(values: Float[np.ndarray, "cluster ..."], seed: int) -> Float[np.ndarray, "block ..."]:
    """Return the sums of blocks of clusters, drawn at random, where these are many.

    Clusters are independent and the blocks know nothing of them. So sums of blocks are independent
    too, and to flip whole blocks is a part of all ways to flip clusters.
    """
    n = len(values)
    if n <= MANY:
        return values
    blocks = np.random.default_rng([seed, n, BLOCKS]).permutation(n) % BLOCKS
    columns = values.reshape(n, -1).astype(float)
    return _summed(columns, blocks, BLOCKS).reshape(BLOCKS, *values.shape[1:])


def _summed(
    values: Float[np.ndarray, "case column"], codes: Int[np.ndarray, " case"], n: int
) -> Float[np.ndarray, "cluster column"]:
    columns = [np.bincount(codes, values[:, i], minlength=n) for i in range(values.shape[1])]
    return np.stack(columns, axis=1) if columns else np.zeros((n, 0))


@lru_cache(maxsize=8)
def resampled(n: int, seed: int = 0) -> Float32[np.ndarray, "times n"]:
    """Return how often each of ``n`` clusters is drawn in each resample; equal for equal ``n``.

    There are 4,000 resamples for up to 1,000 clusters, and fewer above (500 for ``MANY``, more are
    joined): the interval is then narrow, and the memory stays at 16 MB.
    """
    rng = np.random.default_rng([seed, n])
    times = min(RESAMPLES, CELLS // n)
    rows = min(times, max(1, CELLS // 4 // n))
    counts = np.empty((times, n), dtype=np.float32)
    for start in range(0, times, rows):
        part = counts[start : start + rows]
        drawn = rng.integers(n, size=part.shape, dtype=np.int32) + n * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return counts


def bootstrap_means(data: Clustered, seed: int = 0) -> Float[np.ndarray, "times column"]:
    """Return the column means of each resample of clusters; NaN if it drew no score.

    Of more than ``MANY`` clusters blocks are drawn.
    """
    drawn = joined(np.concatenate([data.sums, data.counts], axis=1), seed)
    both = resampled(len(drawn), seed) @ drawn.astype(np.float32)
    sums, counts = np.split(both.astype(float), 2, axis=1)
    with np.errstate(invalid="ignore"):
        means: Float[np.ndarray, "times column"] = sums / counts
    return means
