"""Portability: what follows from the edit follows.

Questions whose answer the edit changes indirectly: another name of the subject, one more hop, a
logical consequence; KnowEdit's three groups, RippleEdits' six, MQuAKE's multi-hop questions. Score:
the share answered as the edit implies. Counted where the unedited model meets the question's
conditions. Data without such questions has no test here, and no score includes this criterion.
"""

from kn_bench.measure.verdict import Verdict


def test_portability(verdict: Verdict) -> None:
    assert verdict.holds, verdict.explanation
