"""Neurons that recur in a class's pairs, and what recurs by chance."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kn_bench.localise.recurrence import chance_recurrence, number_neuron, recurrences
from kn_bench.localise.selection import Neuron
from kn_bench.study.sections import determiners
from kn_bench.study.writing import cell
from tests.made_up_study import made_up_material


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


@pytest.fixture
def told(monkeypatch):
    """The section with made-up coarse sets: 40 pairs each but of ``this``, one of ``these``."""
    own, other = Neuron(3, 36), Neuron(0, 1)
    sets = {
        "this": [frozenset({own})] * 21 + [frozenset({other})] * 19,
        "that": [frozenset({other})] * 40,
        "these": [frozenset({own, other})],
        "those": [frozenset({other})] * 2,
    }
    monkeypatch.setattr(determiners, "determiner_sets", lambda material: sets)
    monkeypatch.setattr(determiners, "best_class", lambda profiles, name: [NounsOf(sets[name])])
    made_up = made_up_material()
    made_up.settings = replace(made_up.settings, neurons=(own,))
    return determiners.run(made_up)


class NounsOf:
    def __init__(self, pairs):
        self.clusters = [f"noun {i}" for i in range(len(pairs))]


def test_the_sentence_rounds_as_the_table_and_inflects(told):
    """21 of 40 pairs are 0.525: 0.53 in the table."""
    sentence, by_chance = told.findings
    assert sentence == (
        "The given neuron 3:36 recurs in 53% of the 40 pairs of this, 0% of the 40 pairs of that, "
        "100% of the 1 pair of these, 0% of the 2 pairs of those."
    )
    (row,) = (row for row in told.tables[0].rows if row[0] == "3:36")
    assert cell(row[1], told.tables[0].digits).startswith("0.53 ")
    assert re.findall(r"% for (\w+)", by_chance) == ["this", "that", "those"]


def test_nothing_is_said_of_chance_in_a_single_pair(told):
    """Its own neurons recur in all of it, whichever they are."""
    for row in told.tables[0].rows[:2]:
        assert [chance is None for chance in row[1:5]] == [False, False, True, False]
