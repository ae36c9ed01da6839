"""Minimal pairs taken apart: what both sentences share, where they differ, which word governs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kn_bench.cases.building.grammar import Number, number_of
from kn_bench.cases.case import Cloze, Query, Scoring, is_unspaced

PUNCTUATION = '.,;:!?"()'


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences that differ in one stretch.

    Attributes:
        paradigm: id of the paradigm.
        id: unique in its paradigm.
        good, bad: the grammatical and the ungrammatical sentence.
        agreeing: the word that governs the form of the one that varies (the determiner, the noun,
            the name), as it stands in the sentence. The word next to the gap when empty.
        scoring: how a causal model compares the two; see :class:`~kn_bench.cases.case.Probe`.
        at: where the agreeing word begins in ``good``; when None, it is the nearest before the
            gap, or the first after it.
    """

    paradigm: str
    id: str
    good: str
    bad: str
    agreeing: str = ""
    scoring: Scoring = "gap"
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """A minimal pair taken apart.

    Attributes:
        pair: the pair.
        cloze: what both sentences share, with a gap.
        good, bad: what stands in the gap.
        prompt, suffix: the cloze with ``{}`` in the place of the agreeing word.
        agreeing: that word, as it stands there.
        number: what the agreement is marked for.
        key: the agreeing word, whatever its case.
        query: the cloze with its grammatical answer.
    """

    pair: MinimalPair
    cloze: Cloze
    good: str
    bad: str
    prompt: str
    suffix: str
    agreeing: str
    number: Number
    key: str
    query: Query


def analyse(pair: MinimalPair, family: str) -> Analysis | str:
    """Return ``pair`` taken apart, or the reason why it cannot be."""
    parts = differing_span(pair.good, pair.bad)
    if isinstance(parts, str):
        return parts
    cloze, good, bad = parts
    marked = mark(cloze, pair.agreeing, _in_cloze(pair, cloze))
    if marked is None:
        return "the agreeing word does not stand in what both sentences share"
    prompt, suffix, agreeing = marked
    number = number_of(family, agreeing, good, before="{}" in prompt)
    return Analysis(
        pair,
        cloze,
        good,
        bad,
        prompt,
        suffix,
        agreeing,
        number,
        agreeing.lower(),
        Query(cloze, good),
    )


def differing_span(good: str, bad: str) -> tuple[Cloze, str, str] | str:
    """Return the text that two sentences share, with a gap, and what either has in the gap.

    Found word by word on the text, character by character in scripts without spaces. Where one of
    them has nothing in the gap, the gap takes in the word before it (or after it); punctuation that
    both have after it is left outside.
    """
    unspaced = is_unspaced(good[:1]) and " " not in good
    a, b = (list(good), list(bad)) if unspaced else (good.split(), bad.split())
    space = "" if unspaced else " "
    if a == b:
        return "the two sentences are the same"
    shorter = min(len(a), len(b))
    i = 0
    while i < shorter and a[i] == b[i]:
        i += 1
    j = 0
    while j < shorter - i and a[-1 - j] == b[-1 - j]:
        j += 1
    if i == shorter - j:  # one has nothing in the gap
        # the word before, so that what follows stays outside, unless nothing else stands before
        i, j = (i, j - 1) if i < 2 and j else (i - 1, j)
    if i < 0:
        return "the two sentences share no word around the differing span"
    left, right = space.join(a[:i]), space.join(a[len(a) - j :])
    in_good, in_bad = space.join(a[i : len(a) - j]), space.join(b[i : len(b) - j])
    ending = in_good[-1]
    if ending in ".,;:!?" and in_bad[-1] == ending and min(len(in_good), len(in_bad)) > 1:
        in_good, in_bad = in_good[:-1], in_bad[:-1]
        right = f"{ending} {right}".strip()
    cloze = Cloze(left, right)
    if not left and not any(c.isalnum() for c in right):
        return "the two sentences share no word around the differing span"
    if in_good == in_bad or cloze.fill(in_good) != good or cloze.fill(in_bad) != bad:
        return "the sentences cannot be put together again from their parts"
    if any(part != part.strip() for part in (in_good, in_bad)):
        return "the two sentences are spaced differently"
    return cloze, in_good, in_bad


def _in_cloze(pair: MinimalPair, cloze: Cloze) -> int | None:
    """Return ``pair.at`` counted in the cloze's left and right together; None if it is not set."""
    if pair.at is None or pair.at < len(cloze.left):
        return pair.at
    return pair.at - len(pair.good) + len(cloze.left) + len(cloze.right)


def mark(cloze: Cloze, agreeing: str, at: int | None = None) -> tuple[str, str, str] | None:
    """Return ``cloze`` with ``{}`` for the agreeing word, before the gap or after it.

    Args:
        cloze: what both sentences share.
        agreeing: the word; the one next to the gap when empty.
        at: where it begins in ``cloze.left + cloze.right``; looked for when None.

    Returns:
        prompt, suffix and the word; None when it stands in neither.
    """
    left, right = cloze.left, cloze.right
    if "{" in left + right:
        return None
    if not agreeing:
        word, start = _neighbour_of_gap(cloze)
    else:
        word, start = agreeing, _find(cloze, agreeing) if at is None else at
    if start is None or (left + right)[start : start + len(word)] != word:
        return None
    end = start + len(word)
    if end <= len(left):
        return left[:start] + "{}" + left[end:], right, word
    if start >= len(left):
        return left, right[: start - len(left)] + "{}" + right[end - len(left) :], word
    return None


def _find(cloze: Cloze, word: str) -> int | None:
    whole_word = rf"(?<!\w){re.escape(word)}(?!\w)"
    before = [m.start() for m in re.finditer(whole_word, cloze.left)]
    if before:
        return before[-1]
    after = re.search(whole_word, cloze.right)
    return after.start() + len(cloze.left) if after else None


def _neighbour_of_gap(cloze: Cloze) -> tuple[str, int | None]:
    """Return the word before the gap, or the first after it, and where it begins in the cloze.

    None says that both sides have no word.
    """
    left = cloze.left.rstrip()  # an ideographic space is one
    if left and is_unspaced(left[-1]):  # segmenting is the tokenizer's business
        return left[-1], len(left) - 1
    word = left.rsplit(" ", 1)[-1].strip(PUNCTUATION)
    if word:
        return word, left.rindex(word)
    before, after = (re.findall(r"\w[\w'’-]*", side) for side in (left, cloze.right))
    beside = [*before[-1:], *after[:1]]
    return (beside[0], _find(cloze, beside[0])) if beside else ("", None)
