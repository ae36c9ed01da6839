"""Suppress a number neuron and measure the words that stand before a noun.

Niu et al. 2024, section 3: when a neuron located over *these* and *those* is set to 0, all words
that agree with a plural noun should lose probability, and no others. Here this is tested for 24
modifiers in three blocks, by a paired test over prompts (before, after) with Holm's correction over
the modifiers. The published test, which treats the pairs as independent samples and does not
correct, is reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from kn_bench.cases.case import Cloze, Query
from kn_bench.editing.edit import Edit, NoEdit
from kn_bench.localise.interventions import crossed, relative_change, scale
from kn_bench.localise.queries import Fitted
from kn_bench.localise.selection import Neuron, Neurons
from kn_bench.measure.encoding import encode_query
from kn_bench.measure.resampling import bootstrap_means, by_cluster
from kn_bench.measure.statistics import (
    LEVEL,
    holm,
    sign_flip_p,
)
from kn_bench.model.language_model import LanguageModel

Block = Literal["plural", "singular", "neutral"]
BLOCKS: tuple[Block, ...] = ("plural", "singular", "neutral")


class Modifier(NamedTuple):
    """A word that stands before a noun, and the number it agrees with."""

    word: str
    block: Block


_WORDS: Mapping[Block, str] = {
    "plural": "these those two both multiple several various",
    "singular": "this that one a an every unique single sole",
    "neutral": "the any all some my our unified scattered",
}
MODIFIERS: tuple[Modifier, ...] = tuple(
    Modifier(word, block) for block in BLOCKS for word in _WORDS[block].split()
)
"""The 24 modifiers of the paper."""


@dataclass(frozen=True)
class Shift:
    """The change of one modifier's probability.

    Attributes:
        modifier: the word and its block.
        n: number of prompts.
        tokens: number of tokens that the model splits the word into.
        before, after: mean probability over the prompts.
        change: (p' - p) / min(p, p') of these means.
        low, high: its 95 % bootstrap interval over clusters of prompts; NaN for one cluster.
        effect_size: Cohen's d_z, mean over standard deviation of the paired differences; NaN where
            they do not differ.
        p: p of the paired permutation test on the clusters' differences.
        p_holm: the same, corrected over all modifiers.
        p_published: p of the published test, an uncorrected t-test of independent samples, which
            is wrong for paired data.
    """

    modifier: Modifier
    n: int
    tokens: int
    before: float
    after: float
    change: float
    low: float
    high: float
    effect_size: float
    p: float
    p_holm: float
    p_published: float


@dataclass(frozen=True)
class ModifierStudy:
    """All modifiers that the model can encode, under one intervention.

    Attributes:
        neurons: the neurons scaled by ``factor``.
        shifts: one per modifier, in the order of :data:`MODIFIERS`.
        excluded: the modifiers that could not be encoded.
        kept: indices of the prompts that could be encoded with every modifier.
        skipped: number of the others.
    """

    neurons: Neurons
    factor: float
    shifts: tuple[Shift, ...]
    excluded: tuple[Modifier, ...]
    kept: tuple[int, ...]
    skipped: int


def modifier_study(
    lm: LanguageModel,
    prompts: Sequence[Cloze],
    clusters: Sequence[str],
    neurons: Iterable[Neuron],
    *,
    factor: float = 0.0,
    modifiers: Sequence[Modifier] = MODIFIERS,
) -> ModifierStudy:
    """Measure every modifier at the gap of every prompt, with ``neurons`` unchanged and scaled.

    Args:
        prompts: texts with a gap where a modifier stands.
        clusters: cluster of each prompt (its noun), resampled and flipped as a whole.
        factor: 0 suppresses.

    Raises:
        ValueError: if no prompt can be encoded.
    """
    chosen = frozenset(neurons)
    asked = ask_modifiers(lm, prompts, modifiers)
    before, after = (asked.probabilities([edit])[0] for edit in (NoEdit(), scale(chosen, factor)))
    shifts = shifts_of(asked.modifiers, before, after, [clusters[i] for i in asked.kept])
    return ModifierStudy(
        chosen,
        factor,
        tuple(replace(shift, tokens=n) for shift, n in zip(shifts, asked.tokens, strict=True)),
        tuple(m for m in modifiers if m not in asked.modifiers),
        asked.kept,
        len(prompts) - len(asked.kept),
    )


@dataclass(frozen=True)
class AskedModifiers:
    """Modifiers, and the prompts that can be encoded with all of them.

    Attributes:
        modifiers: the modifiers that the model can encode.
        kept: indices of the prompts that can be encoded with all of these.
        queries: for each modifier, every kept prompt.
    """

    lm: LanguageModel
    modifiers: tuple[Modifier, ...]
    kept: tuple[int, ...]
    queries: tuple[tuple[Fitted, ...], ...]

    @property
    def tokens(self) -> list[int]:
        """Number of tokens of each modifier."""
        return [len(group[0].answer_ids) for group in self.queries]

    def probabilities(self, edits: Sequence[Edit]) -> Float[np.ndarray, "edits modifiers prompts"]:
        """Return the probability of every modifier in every prompt, under each edit."""
        flat = [query for group in self.queries for query in group]
        log_probs = crossed(self.lm, flat, edits).log_prob
        probabilities: Float[np.ndarray, "edits modifiers prompts"] = np.exp(log_probs).reshape(
            len(edits), len(self.modifiers), -1
        )
        return probabilities


def ask_modifiers(
    lm: LanguageModel, prompts: Sequence[Cloze], modifiers: Sequence[Modifier] = MODIFIERS
) -> AskedModifiers:
    """Encode every modifier in the gap of every prompt.

    Raises:
        ValueError: if no prompt can be encoded.
    """
    encoded = {m: [_encode(lm, prompt, m) for prompt in prompts] for m in modifiers}
    known = tuple(m for m in modifiers if any(q is not None for q in encoded[m]))
    whole = range(len(prompts))
    kept = tuple(i for i in whole if all(encoded[m][i] is not None for m in known))
    if not known or not kept:
        raise ValueError(
            f"{len(prompts)} prompts for {lm.name}: expected at least one that can be encoded; "
            "give prompts with text before the gap (for a masked model: and a gap that every "
            "modifier fits into)"
        )
    queries = tuple(tuple(q for i in kept if (q := encoded[m][i]) is not None) for m in known)
    return AskedModifiers(lm, known, kept, queries)


def _encode(lm: LanguageModel, prompt: Cloze, modifier: Modifier) -> Fitted | None:
    # a sentence's first word is another token, and a causal model has nothing to predict it from
    return encode_query(Query(prompt, modifier.word), lm.tokens, "pair") if prompt.left else None


def shifts_of(
    modifiers: Sequence[Modifier],
    before: Float[np.ndarray, "modifiers prompts"],
    after: Float[np.ndarray, "modifiers prompts"],
    clusters: Sequence[str],
) -> list[Shift]:
    """Compute the statistics of every modifier from its probabilities by prompt."""
    p_values = [_paired_p(after[i] - before[i], clusters) for i in range(len(modifiers))]
    corrected = holm(p_values)
    return [
        _shift(modifier, before[i], after[i], clusters, p_values[i], float(corrected[i]))
        for i, modifier in enumerate(modifiers)
    ]


def _shift(
    modifier: Modifier,
    before: Float[np.ndarray, " prompts"],
    after: Float[np.ndarray, " prompts"],
    clusters: Sequence[str],
    p: float,
    p_holm: float,
) -> Shift:
    change = relative_change(before.mean(), after.mean())
    low = high = np.nan
    if len(set(clusters)) > 1:
        means = bootstrap_means(by_cluster(np.stack([before, after], 1), clusters))
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(relative_change(means[:, 0], means[:, 1]), [tail, 100 - tail])
    return Shift(
        modifier=modifier,
        n=len(before),
        tokens=1,
        before=float(before.mean()),
        after=float(after.mean()),
        change=float(change),
        low=float(low),
        high=float(high),
        effect_size=_d_z(after - before),
        p=p,
        p_holm=p_holm,
        p_published=_independent_t(before, after),
    )


def _paired_p(change: Float[np.ndarray, " prompts"], clusters: Sequence[str]) -> float:
    # in units of the largest: the test takes differences below 1e-12 for none
    largest = float(np.abs(change).max()) or 1.0
    return sign_flip_p(by_cluster(change[:, None] / largest, clusters).sums[:, 0])


def _d_z(change: Float[np.ndarray, " prompts"]) -> float:
    spread = float(change.std(ddof=1)) if len(change) > 1 else 0.0
    # equal differences differ in their last bits
    return float(change.mean()) / spread if spread > 1e-12 * np.abs(change).max() else np.nan


def _independent_t(
    before: Float[np.ndarray, " prompts"], after: Float[np.ndarray, " prompts"]
) -> float:
    from scipy import stats

    if len(before) < 2 or np.ptp(before) + np.ptp(after) == 0:
        return 1.0
    return float(stats.ttest_ind(before, after).pvalue)
