"""Generality: the edit holds wherever else the same is asked.

Fact: the edited model answers ``target_new`` on the relation's other patterns. Minimal pair: other
pairs with the same agreeing word (determiner, noun or subject) flip too. Score: the share of the
patterns or pairs that follow. Counted over those on which the unedited model was right.
"""

from kn_bench.measure.verdict import Verdict


def test_generality(verdict: Verdict) -> None:
    assert verdict.holds, verdict.explanation
