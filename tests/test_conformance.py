"""The reference editors give what the definitions say, on every model that ships."""

from functools import lru_cache
from statistics import mean

import pytest

from kn_bench.cases.case import CRITERIA
from kn_bench.cases.sources import embedded as cases_of
from kn_bench.edits.controls import InContext, Nothing, Oracle, RandomRankOne
from kn_bench.edits.rome import Rome
from kn_bench.measure.criteria import judge
from kn_bench.measure.engine import Engine
from kn_bench.measure.verdict import Verdict
from kn_bench.model import embedded
from kn_bench.model.loading import load_model
from tests.shares import mostly_slow

FIRST_FIVE = CRITERIA[:5]


@lru_cache(maxsize=1)
def engine(name):
    return Engine(load_model(name))


@lru_cache(maxsize=1)
def cases():
    return cases_of.load(limit=2).cases


@lru_cache(maxsize=8)
def verdicts(name, method):
    """(task, criterion) -> the verdicts that count, under one reference editor."""
    model = engine(name).model
    instance = method() if method in (Nothing, Oracle, InContext) else method(model)
    results = engine(name).measure(method.__name__, instance, cases()).results
    by_criterion: dict[tuple[str, str], list[Verdict]] = {}
    for case in cases():
        for criterion in CRITERIA:
            verdict = judge(criterion, case, results[case.id])
            assert verdict.status != "error", verdict.explanation
            if verdict.scored:
                by_criterion.setdefault((case.task, criterion), []).append(verdict)
    return by_criterion


def scores(name, method, criterion, *, known_only=False):
    return [
        verdict.score
        for (_, of), judged in verdicts(name, method).items()
        for verdict in judged
        if of == criterion and (verdict.known_before or not known_only)
    ]


def of_facts(name, method, criterion):
    return [verdict.score for verdict in verdicts(name, method)["fact", criterion]]


@pytest.mark.parametrize("name", embedded.NAMES)
def test_no_edit_changes_nothing(name):
    """Reliability 0 where the model knew the answer; locality 1; overturn 0."""
    assert set(scores(name, Nothing, "reliability", known_only=True)) == {0.0}
    assert set(scores(name, Nothing, "locality")) == {1.0}
    assert set(scores(name, Nothing, "overturn")) == {0.0}


@pytest.mark.parametrize("criterion", FIRST_FIVE)
@pytest.mark.parametrize("name", embedded.NAMES)
def test_the_oracle_scores_one(name, criterion):
    for task in ("fact", "pair"):
        judged = verdicts(name, Oracle).get((task, criterion), [])
        assert judged, f"no {task} counts for {criterion}"
        missed = [verdict.explanation for verdict in judged if verdict.score != 1]
        assert not missed


@pytest.mark.parametrize("name", embedded.NAMES)
def test_the_oracle_overturns_every_right_answer(name):
    assert set(scores(name, Oracle, "overturn")) == {1.0}


@pytest.mark.parametrize("name", mostly_slow(embedded.NAMES, fast=["tiny-gpt2"]))
def test_a_fact_in_the_context_is_a_natural_upper_bound(name):
    """On facts: high by itself, and above both lower bounds."""
    for criterion, least in (("reliability", 0.75), ("generality", 0.4)):
        told = mean(of_facts(name, InContext, criterion))
        assert told >= least
        for lower in (Nothing, RandomRankOne):
            assert told >= mean(of_facts(name, lower, criterion))
    # no comparison here: an update at random overturns whatever it breaks
    assert mean(of_facts(name, InContext, "overturn")) >= 0.75


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_rome_does_what_it_does_on_real_models(name):
    """Directions with slack: it takes on its own prompt, stays local, and is not inverted."""
    known = scores(name, Rome, "reliability", known_only=True)
    facts = verdicts(name, Rome)
    assert mean(v.score for v in facts["fact", "reliability"] if v.known_before) >= 0.75
    assert mean(v.score for v in facts["fact", "locality"]) >= 0.9
    assert mean(v.score for v in facts["fact", "symmetry"]) <= 0.1
    assert known


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_a_random_update_of_equal_norm_is_a_lower_bound(name):
    for criterion in ("reliability", "generality", "synonym", "overturn"):
        assert mean(scores(name, RandomRankOne, criterion)) < mean(scores(name, Rome, criterion))
