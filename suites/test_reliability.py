"""Reliability: the edited model gives the new answer to the very prompt it was edited on.

Fact: it answers ``target_new``, generating freely. Minimal pair: it prefers the ungrammatical
member of the edited pair. Counted over every attempted edit; whether the unedited model knew
``target_true`` is recorded, and the two strata are shown apart.
"""

from kn_bench.measure.verdict import Verdict


def test_reliability(verdict: Verdict) -> None:
    assert verdict.holds, verdict.explanation
