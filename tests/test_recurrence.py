"""Neurons that recur in a class's pairs, and what recurs by chance."""

from itertools import product

import numpy as np
import pytest

from kn_bench.localise.recurrence import chance_recurrence, number_neuron, recurrences
from kn_bench.localise.selection import Neuron


def test_neurons_recur_in_shares_of_pairs():
    a, b, c = Neuron(0, 1), Neuron(1, 1), Neuron(1, 2)
    these = [frozenset({a, b}), frozenset({a}), frozenset({a, c})]
    those = [frozenset({a}), frozenset({b})]
    this = [frozenset({b, c}), frozenset({b})]
    pairs_of_sets = recurrences([these, those, this])
    assert {recurrence.neuron: recurrence.shares for recurrence in pairs_of_sets} == {
        a: (1.0, 0.5, 0.0),
        b: (1 / 3, 0.5, 1.0),
        c: (1 / 3, 0.0, 0.5),
    }
    assert [recurrence.neuron for recurrence in recurrences([these, those], least=0.6)] == [a]
    assert number_neuron([these, those], [this]) == a
    assert number_neuron([this], [these, those]) == b
    with pytest.raises(ValueError, match="coarse sets: expected a neuron in at least one"):
        number_neuron([[frozenset()]], [[frozenset()]])


def test_the_highest_share_by_chance_is_that_of_all_draws_counted():
    """Three pairs, one neuron each in a layer of four: all 64 outcomes are equally likely."""
    sets = [frozenset({Neuron(0, unit)}) for unit in (3, 3, 1)]
    outcomes = [max(map(drawn.count, drawn)) / 3 for drawn in product(range(4), repeat=3)]
    shares = chance_recurrence(sets, 4, draws=4000)
    assert shares.mean == pytest.approx(np.mean(outcomes), abs=0.01)
    assert shares.high == np.percentile(outcomes, 95, method="inverted_cdf")


def test_chance_keeps_each_pairs_number_in_each_layer():
    whole_layer = frozenset(Neuron(1, unit) for unit in range(5))
    assert chance_recurrence([whole_layer, whole_layer], 5, draws=3) == (1.0, 1.0)
    assert chance_recurrence([frozenset(), frozenset()], 5, draws=3) == (0.0, 0.0)
    one, draws = [frozenset({Neuron(0, 2), Neuron(7, 2)})] * 40, 50
    assert chance_recurrence(one, 400, draws=draws).high < 0.15
    assert chance_recurrence(one, 400, seed=1) == chance_recurrence(one, 400, seed=1)
    with pytest.raises(ValueError, match="no pairs: expected"):
        chance_recurrence([], 5)
