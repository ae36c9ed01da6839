"""Do modifiers shift by their meaning, or by the nouns that they occur with?

    bias     log odds of a plural against a singular noun after the modifier, counted in a corpus
    shift    the change of the modifier's probability when a number neuron is suppressed

If number neurons hold grammar, the shift follows the modifier's block (plural, singular, neutral)
and, given the block, not the bias. The partial correlation says whether it does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
PERMUTATIONS = 5000


@dataclass(frozen=True)
class NounCounts:
    """How often a word is followed by a noun of either number.

    Attributes:
        word: the modifier.
        plural, singular: occurrences followed by a plural, or by a singular, noun.
    """

    word: str
    plural: int
    singular: int

    @property
    def nouns(self) -> int:
        """Occurrences followed by a noun."""
        return self.plural + self.singular

    @property
    def bias(self) -> float:
        """Log odds of a plural noun, with half an occurrence added to both counts; 0 if unseen."""
        return float(np.log((self.plural + 0.5) / (self.singular + 0.5)))


def count_nouns(
    texts: Iterable[str],
    words: Sequence[str],
    *,
    singular: Collection[str],
    plural: Collection[str],
    window: int = 3,
) -> list[NounCounts]:
    """Count plural and singular nouns, the first within ``window`` words after each of ``words``.

    Args:
        texts: the corpus; a modifier and its noun are in the same sentence of one text.
        singular, plural: noun forms; forms in both collections are ignored.
    """
    number = dict.fromkeys(set(singular) - set(plural), 0)
    number |= dict.fromkeys(set(plural) - set(singular), 1)
    wanted, counts = set(words), Counter[tuple[str, int]]()
    for text in texts:
        for sentence in re.split(r"[.!?;:]", text.lower()):
            tokens = WORD.findall(sentence)
            for place, token in enumerate(tokens):
                if token in wanted:
                    after = tokens[place + 1 : place + 1 + window]
                    noun = next((number[t] for t in after if t in number), None)
                    if noun is not None:
                        counts[token, noun] += 1
    return [NounCounts(word, counts[word, 1], counts[word, 0]) for word in words]


@dataclass(frozen=True)
class Association:
    """Correlation of shift and bias over the modifiers.

    Attributes:
        n: number of modifiers that occur in the corpus.
        spearman: rank correlation.
        p: its permutation p.
        partial: rank correlation within blocks, with the block means of the ranks removed.
        partial_p: its p by permutations within blocks.
        by_block: share of the shift's variance (of ranks) that the block alone explains.
    """

    n: int
    spearman: float
    p: float
    partial: float
    partial_p: float
    by_block: float


def association(
    shift: ArrayLike, bias: ArrayLike, blocks: Sequence[str], *, seed: int = 0
) -> Association:
    """Correlate shift and bias, with and without what the blocks explain of both.

    All results are nan for fewer than four modifiers, or if shift or bias does not vary.
    """
    from scipy import stats

    x, y = (stats.rankdata(np.asarray(v, dtype=float)) for v in (shift, bias))
    _, group = np.unique(np.asarray(blocks), return_inverse=True)
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Association(len(x), *[float("nan")] * 5)
    undivided = np.zeros(len(x), dtype=int)
    within = _centred(x, group)
    explained = 1 - float(within @ within) / float(np.square(_centred(x, undivided)).sum())
    return Association(
        len(x),
        *_tested(x, y, undivided, seed),
        *_tested(x, y, group, seed),
        by_block=explained,
    )


def _tested(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], group: np.ndarray, seed: int
) -> tuple[float, float]:
    """Return the correlation within groups, and its two-sided p by permutations within them."""
    a, b = _centred(x, group), _centred(y, group)
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if scale < 1e-12:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    # a permutation within groups: sort random keys, group by group
    order = np.lexsort((rng.random((PERMUTATIONS, len(y))), np.tile(group, (PERMUTATIONS, 1))))
    places = np.argsort(group, kind="stable")
    shuffled = np.empty((PERMUTATIONS, len(y)))
    shuffled[:, places] = b[order]
    correlation = float(a @ b) / scale
    extreme = int((np.abs(shuffled @ a) / scale >= abs(correlation) - 1e-9).sum())
    return correlation, (extreme + 1) / (PERMUTATIONS + 1)


def _centred(x: Float[np.ndarray, " n"], group: np.ndarray) -> Float[np.ndarray, " n"]:
    means = np.bincount(group, x) / np.bincount(group)
    centred: Float[np.ndarray, " n"] = x - means[group]
    return centred
