"""Bijective symmetry: the inverse follows the edit.

Fact: asked with the inverse relation, ``target_new`` gives the subject, and ``target_true`` no
longer gives it. Counted over pairs that are one-to-one in both directions, split by whether the
unedited model knew the inverse. Minimal pair: the converse paradigm flips (the noun varies in one,
the determiner in the other). Skipped where a relation has no inverse.
"""

from kn_bench.measure.verdict import Verdict


def test_symmetry(verdict: Verdict) -> None:
    assert verdict.holds, verdict.explanation
