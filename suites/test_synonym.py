"""Synonym invariance: the edit holds when the prompt or the answer is put in synonyms.

Fact: "works in the field of linguistics" against "is a famous linguist". Minimal pair: the other
member of the number class (this and that, these and those), the same verb in another tense. Counted
over the probes whose synonym the unedited model answered rightly.
"""

from kn_bench.measure.verdict import Verdict


def test_synonym(verdict: Verdict) -> None:
    assert verdict.holds, verdict.explanation
