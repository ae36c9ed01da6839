"""Categorical overturn: the answer was right before the edit and is another after it.

Within the pair and by the vocabulary's argmax, stored apart; the reverse flip is counted too. Shown
beside the mean shift of probability, which may be large while no answer is overturned. Counted over
the items that the unedited model got right.
"""

from kn_bench.measure.verdict import Verdict


def test_overturn(verdict: Verdict) -> None:
    assert verdict.holds, verdict.explanation
