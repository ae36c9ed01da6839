"""Measure how localised a fact or class is, from the attribution scores of its prompts.

    n_neurons            |KN|, size of the selected set
    tau                  share of prompts at which the adaptive rule stopped
    r1_squared           similarity of the prompts' profiles, 1 for equal ones
    attribution_share    share of the positive attribution that the selected neurons hold
    participation_ratio  effective number of neurons
    layers               where the selected neurons lie

Each with a bootstrap interval over prompts and a null, since a similarity of .6 means nothing while
unrelated non-negative profiles give 2/pi = .64. The nulls are:

    n_neurons, r1_squared, participation_ratio   every prompt's scores permuted within each layer
    tau                                          prompts of other relations
    attribution_share                            as many random neurons in each layer
    layers                                       as many random neurons anywhere
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.localise.locating import Locating
from kn_bench.localise.selection import Neurons, Refined, coarse

Scores = Float[Tensor, "n n_layers d_mlp"]
Samples = Sequence[Int[np.ndarray, " n"]]

NON_NEGATIVE_NULL = 2 / math.pi
"""R_1^2 of unrelated profiles of half-normal noise, for many neurons and prompts."""


@dataclass(frozen=True)
class Measure:
    """A figure with its bootstrap interval over prompts, and its null.

    Attributes:
        value: nan where it is not defined (R_1^2 of one prompt).
        low, high: 95 % interval; nan with fewer than two prompts (R_1^2: three).
        null: mean of the same figure under the null; nan where it has none (tau without prompts of
            other relations).
        null_high: 95th percentile of the null's draws.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    null: float = math.nan
    null_high: float = math.nan


@dataclass(frozen=True)
class Localisation:
    """All measures of one fact or class.

    Attributes:
        neurons: the selected set and the share it was selected with.
        n_prompts: prompts behind every figure.
        layers: number of selected neurons in each layer.
    """

    neurons: Neurons
    n_prompts: int
    n_neurons: Measure
    tau: Measure
    r1_squared: Measure
    attribution_share: Measure
    participation_ratio: Measure
    layers: tuple[Measure, ...]


def r1_squared(scores: Scores) -> float:
    """Return (s_0^2 - 1) / (n - 1), s_0 the largest singular value of the L2-normalised profiles.

    Generalises a squared cosine to n samples: 1 for parallel profiles, 0 for orthogonal ones; for
    two it is |cos|. nan for fewer than two profiles, or where one is all zero.
    """
    return _r1_squared(_cosines(scores))


def _cosines(scores: Scores) -> Float[np.ndarray, "n n"]:
    rows = scores.flatten(1).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    return np.asarray((rows @ rows.T).cpu())


def _r1_squared(cosines: Float[np.ndarray, "n n"]) -> float:
    # s_0^2 is the largest eigenvalue of the Gram matrix, which is small where profiles are long
    if len(cosines) < 2 or not np.isfinite(cosines).all():
        return math.nan
    return (float(np.linalg.eigvalsh(cosines)[-1]) - 1) / (len(cosines) - 1)


def attribution_share(scores: Scores, neurons: Neurons) -> float:
    """Return the share of all positive attribution, of all prompts, that ``neurons`` hold."""
    held, total = _held(scores, neurons)
    return float(held.sum() / total.sum()) if total.sum() else math.nan


def _held(scores: Scores, neurons: Neurons) -> tuple[np.ndarray, np.ndarray]:
    """Return the positive attribution of ``neurons`` and of all neurons for each prompt."""
    positive = scores.clamp_min(0).double()
    held = positive.new_zeros(len(scores))
    for neuron in neurons:
        held += positive[:, neuron.layer, neuron.unit]
    return np.asarray(held.cpu()), np.asarray(positive.sum((1, 2)).cpu())


def participation_ratio(scores: Scores) -> float:
    """Return (sum a)^2 / sum a^2 of the mean profile's positive part.

    The effective number of neurons. Negative scores, which would cancel positive ones, count as 0.
    """
    return _participation(scores.double().mean(0))


def _participation(profile: Tensor) -> float:
    a = profile.clamp_min(0)
    squares = float(a.square().sum())
    return float(a.sum()) ** 2 / squares if squares else math.nan


def layer_histogram(neurons: Neurons, n_layers: int) -> tuple[int, ...]:
    """Return how many of ``neurons`` lie in each layer."""
    return tuple(np.bincount([n.layer for n in neurons], minlength=n_layers).tolist())


def select(scores: Scores, locating: Locating | None = None) -> Refined:
    """Return the knowledge neurons of prompts with these scores."""
    locating = locating or Locating()
    return locating.select([coarse(profile, locating.t) for profile in scores])


def permuted(scores: Scores, generator: torch.Generator) -> Scores:
    """Permute each prompt's scores within each layer: only layers' totals stay shared."""
    order = torch.rand(scores.shape, generator=generator).argsort(2).to(scores.device)
    return scores.gather(2, order)


def localisation(
    scores: Scores,
    *,
    locating: Locating | None = None,
    unrelated: Scores | None = None,
    resamples: int = 1000,
    draws: int = 100,
    seed: int = 0,
) -> Localisation:
    """Compute all measures of the prompts of one fact or class.

    Args:
        scores: attribution of each prompt.
        locating: how neurons are selected.
        unrelated: scores of prompts of other relations, of which tau's null draws as many.
        resamples: bootstrap resamples of the prompts.
        draws: permutations and random sets behind every null.
        seed: of all of them.
    """
    locating = locating or Locating()
    sets = [coarse(profile, locating.t) for profile in scores]
    selected = locating.select(sets)
    samples = _resamples(len(scores), resamples, seed)
    # selection only counts coarse sets, so these are resampled and not the scores
    again = [locating.select([sets[i] for i in sample]) for sample in samples]
    nulls = _nulls(scores, locating, draws, seed)
    return Localisation(
        neurons=selected.neurons,
        n_prompts=len(scores),
        n_neurons=_measure(
            len(selected.neurons), [len(a.neurons) for a in again], [n.size for n in nulls]
        ),
        tau=_measure(
            selected.tau,
            [resampled.tau for resampled in again],
            _other_tau(unrelated, len(scores), locating, draws, seed),
        ),
        r1_squared=_r1_measure(scores, samples, [null.r1_squared for null in nulls]),
        attribution_share=_share_measure(
            scores, selected.neurons, samples, _random_shares(scores, selected.neurons, draws, seed)
        ),
        participation_ratio=_participation_measure(
            scores, samples, [null.participation for null in nulls]
        ),
        layers=_layer_measures(scores, selected.neurons, [a.neurons for a in again], draws, seed),
    )


def _r1_measure(scores: Scores, samples: Samples, nulls: Sequence[float]) -> Measure:
    cosines = _cosines(scores)
    # a prompt sampled twice would add a pair of cosine 1, so each counts once in a resample; of two
    # prompts every resample with a value is both, which shows no spread
    distinct = [np.unique(sample) for sample in samples] if len(cosines) > 2 else []
    again = [_r1_squared(cosines[np.ix_(prompts, prompts)]) for prompts in distinct]
    return _measure(_r1_squared(cosines), again, nulls)


def _share_measure(
    scores: Scores, neurons: Neurons, samples: Samples, nulls: Sequence[float]
) -> Measure:
    held, total = _held(scores, neurons)
    again = [float(held[sample].sum() / total[sample].sum()) for sample in samples]
    return _measure(attribution_share(scores, neurons), again, nulls)


def _random_shares(scores: Scores, neurons: Neurons, draws: int, seed: int) -> list[float]:
    """Return the shares of positive attribution of random neurons, as many in each layer."""
    positive = np.asarray(scores.clamp_min(0).double().sum(0).cpu())
    counts = layer_histogram(neurons, len(positive))
    rng = np.random.default_rng(seed)
    drawn = [(row, n) for row, n in zip(positive, counts, strict=True) if n]
    held = [sum(rng.choice(row, n, replace=False).sum() for row, n in drawn) for _ in range(draws)]
    total = float(positive.sum())
    return [float(share) / total for share in held] if total else []


def _layer_measures(
    scores: Scores, neurons: Neurons, again: Sequence[Neurons], draws: int, seed: int
) -> tuple[Measure, ...]:
    n_layers, d_mlp = scores.shape[1:]
    resampled = np.array([layer_histogram(resample, n_layers) for resample in again]).reshape(
        -1, n_layers
    )
    anywhere = np.random.default_rng(seed).multivariate_hypergeometric(
        [d_mlp] * n_layers, len(neurons), draws, method="marginals"
    )
    return tuple(
        _measure(count, resampled[:, layer].tolist(), anywhere[:, layer].tolist())
        for layer, count in enumerate(layer_histogram(neurons, n_layers))
    )


def _participation_measure(scores: Scores, samples: Samples, nulls: Sequence[float]) -> Measure:
    flat = scores.double().flatten(1)
    again = []
    for sample in samples:
        weights = np.bincount(sample, minlength=len(flat)) / len(flat)
        again.append(_participation(torch.from_numpy(weights).to(flat) @ flat))
    return _measure(_participation(flat.mean(0)), again, nulls)


class _Null(NamedTuple):
    size: int
    r1_squared: float
    participation: float


def _nulls(scores: Scores, locating: Locating, draws: int, seed: int) -> list[_Null]:
    generator = torch.Generator().manual_seed(seed)
    nulls = []
    for _ in range(draws):
        shuffled = permuted(scores, generator)
        size = len(select(shuffled, locating).neurons)
        nulls.append(_Null(size, r1_squared(shuffled), participation_ratio(shuffled)))
    return nulls


def _other_tau(
    unrelated: Scores | None, n: int, locating: Locating, draws: int, seed: int
) -> list[float]:
    if unrelated is None or len(unrelated) < n:
        return []
    sets = [coarse(profile, locating.t) for profile in unrelated]
    rng = np.random.default_rng(seed)
    bags = [rng.choice(len(sets), n, replace=False) for _ in range(draws)]
    return [locating.select([sets[i] for i in bag]).tau for bag in bags]


def _resamples(n: int, count: int, seed: int) -> Samples:
    """Draw prompts with replacement; return no sample where there is only one prompt."""
    return list(np.random.default_rng(seed).integers(0, n, (count if n > 1 else 0, n)))


def _interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2.5th and 97.5th percentile over the first axis."""
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low, high


def _measure(value: float, again: Sequence[float], nulls: Sequence[float] = ()) -> Measure:
    finite = np.array([figure for figure in again if math.isfinite(figure)])
    known = np.array([figure for figure in nulls if math.isfinite(figure)])
    low, high = _interval(finite) if len(finite) else (math.nan, math.nan)
    null, null_high = (known.mean(), np.percentile(known, 95)) if len(known) else (math.nan,) * 2
    return Measure(float(value), float(low), float(high), float(null), float(null_high))
