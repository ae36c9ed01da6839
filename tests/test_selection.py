"""Selecting knowledge neurons: the rules' definitions, and what must not change a set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.localise.selection import (
    Neuron,
    adaptive,
    coarse,
    refined,
    shared_by,
)
from tests.published_selection import compounding, dai_bag

NEURONS = [Neuron(layer, unit) for layer in range(2) for unit in range(4)]
SETS = st.lists(st.frozensets(st.sampled_from(NEURONS)), min_size=1, max_size=8)
SCORES = st.lists(
    st.lists(st.floats(-1, 1, allow_nan=False, width=32), min_size=8, max_size=8),
    min_size=1,
    max_size=6,
).map(lambda rows: torch.tensor(rows).reshape(-1, 2, 4))


def test_coarse_is_strictly_above_the_share_of_the_highest():
    scores = torch.tensor([[1.0, 0.2, 0.21, -0.5], [0.0, 0.5, 0.19, 0.2001]])
    assert coarse(scores, 0.2) == {(0, 0), (0, 2), (1, 1), (1, 3)}


def test_refined_is_strictly_more_than_the_share():
    a, b, c = NEURONS[:3]
    sets = [{a, b}, {a, b}, {a}, {a, c}]
    assert refined(sets, 0.5).neurons == {a}
    assert refined(sets, 0.49).neurons == {a, b}
    assert refined(sets, 0.0).neurons == {a, b, c}
    assert refined(sets, 1.0).neurons == set()


@given(SETS, st.floats(0, 1))
def test_refined_counts_prompts(sets, p):
    expected = {n for n in NEURONS if sum(n in members for members in sets) > len(sets) * p}
    assert refined(sets, p).neurons == expected


@given(SETS, st.randoms(use_true_random=False))
def test_the_order_of_prompts_changes_nothing(sets, random):
    shuffled = list(sets)
    random.shuffle(shuffled)
    assert adaptive(sets) == adaptive(shuffled)
    assert refined(sets) == refined(shuffled)


@given(SCORES, st.randoms(use_true_random=False))
def test_a_prompts_coarse_set_is_its_own(scores, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    sets = [coarse(score) for score in scores]
    assert [coarse(score) for score in scores[order]] == [sets[i] for i in order]
    assert dai_bag(scores) == dai_bag(scores[order])


def test_the_published_variant_depends_on_the_order():
    large, small = torch.zeros(1, 4), torch.zeros(1, 4)
    large[0] = torch.tensor([10.0, 3.0, 0.0, 0.0])
    small[0] = torch.tensor([0.1, 0.03, 0.01, 0.0])
    forth = compounding(torch.stack([large, small]), p=0.7)
    back = compounding(torch.stack([small, large]), p=0.7)
    assert forth != back


@given(SETS, st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=200)
def test_adaptive_keeps_its_word(sets, low, more):
    high = low + more
    selected = adaptive(sets, low=low, high=high)
    assert selected.converged == (low <= len(selected.neurons) <= high)
    assert 1 <= selected.rounds <= 20
    if selected.converged:
        # tau is the share that gives this very set
        assert refined(sets, selected.tau).neurons == selected.neurons


def test_adaptive_lowers_the_share_until_two_are_left():
    a, b = NEURONS[:2]
    # 6 of 10 prompts: .7 - .05 - .05 is a little less than .6 in floating point
    selected = adaptive([{a, b}] * 6 + [set()] * 4)
    assert selected.neurons == {a, b}
    assert selected.tau == 0.7 - 0.05 - 0.05 < 0.6
    assert selected.rounds == 3


def test_adaptive_raises_the_share_until_five_are_left():
    few, many = set(NEURONS[:3]), set(NEURONS)
    selected = adaptive([many] * 8 + [few] * 2)
    assert selected.neurons == few
    assert selected.tau == pytest.approx(0.8)


def test_adaptive_stops_where_it_would_oscillate():
    a = NEURONS[0]
    selected = adaptive([set(NEURONS)] * 3 + [{a}])  # one neuron above 3/4, eight at 3/4
    assert selected.neurons in ({a}, set(NEURONS))
    assert not selected.converged
    assert selected.rounds == 20


def test_without_the_cap_a_distributed_set_stays():
    assert len(refined([NEURONS] * 4).neurons) == len(NEURONS) > 5
    assert not adaptive([NEURONS] * 4).converged


def test_dai_bag_needs_three_prompts():
    scores = torch.zeros(2, 1, 4)
    scores[:, 0, 0] = 1
    assert dai_bag(scores) == set()
    assert dai_bag(torch.cat([scores, scores])[:3]) == {(0, 0)}


def test_neurons_shared_by_other_facts():
    a, b, c = NEURONS[:3]
    others = [{a, b}] + [{a, c}] + [set()] * 18
    assert shared_by(others, 0.05) == {a}
    assert shared_by(others, 0.04) == {a, b, c}
    assert shared_by([], 0.1) == set()
