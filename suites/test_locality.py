"""Locality: the edited model answers everything else as the unedited one did.

Fact: (a) the same relation with another subject, (b) other subjects with the same true object,
(c) another relation, (d) the other task. Minimal pair: pairs of the opposite number and of
unrelated paradigms keep their preference, and facts their answers. Score: the share unchanged,
with the mean KL(unedited || edited). Counted over all neighbours.
"""

from kn_bench.measure.verdict import Verdict


def test_locality(verdict: Verdict) -> None:
    assert verdict.holds, verdict.explanation
