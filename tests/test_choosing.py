"""The default run's cases: at least 20 behind every criterion, on every embedded model."""

from collections import Counter
from dataclasses import replace

import pytest

from kn_bench.cases.case import CRITERIA
from kn_bench.cases.choosing import ENOUGH, shows
from kn_bench.measure.encoding import EncodedCase, encode_cases
from kn_bench.model import embedded
from kn_bench.model.loading_tokens import load_tokens
from kn_bench.testing.options import Options
from kn_bench.testing.plan import make_plan


@pytest.fixture(scope="module")
def cases():
    return [case for each in make_plan(Options()).labels.values() for case in each]


@pytest.mark.parametrize("name", embedded.NAMES)
def test_every_criterion_has_enough_cases_that_fit_the_model(name, cases):
    n = Counter(
        (encoded.case.task, criterion)
        for encoded in encode_cases(cases, load_tokens(name))
        if isinstance(encoded, EncodedCase)
        for criterion in shows(replace(encoded.case, probes=tuple(p.probe for p in encoded.probes)))
    )
    for task in ("fact", "pair"):
        for criterion in CRITERIA:
            assert n[task, criterion] >= ENOUGH, (task, criterion)


def test_methods_that_write_at_the_subject_have_enough_too(cases):
    n = Counter(
        (case.task, criterion)
        for case in cases
        if "{}" in case.request.prompt
        for criterion in shows(case)
    )
    assert min(n[task, criterion] for task in ("fact", "pair") for criterion in CRITERIA) >= ENOUGH


def test_the_choice_is_small(cases):
    assert len(cases) <= 60
