"""Measures of localisation: closed forms, nulls and intervals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kn_bench.localise.locating import Locating
from kn_bench.localise.matching import matched
from kn_bench.localise.measures import (
    NON_NEGATIVE_NULL,
    Measure,
    _random_shares,
    attribution_share,
    layer_histogram,
    localisation,
    participation_ratio,
    permuted,
    r1_squared,
)
from kn_bench.localise.selection import Neuron
from kn_bench.measure.encoding import EncodedQuery
from kn_bench.model.seeding import seeded
from kn_bench.study.material import METHODS, Material
from kn_bench.study.sections import matched as section
from kn_bench.study.sections.levels.group_levels import averaged, levels_of
from tests.made_up_study import made_up_material
from tests.tiny_models import tiny_model


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000))
def test_r1_squared_of_two_profiles_is_the_cosine(seed):
    a, b = noise(2, 3, 5, seed=seed).double()
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    assert r1_squared(torch.stack([a, b])) == pytest.approx(abs(float(cosine)), abs=1e-9)


def test_r1_squared_by_its_definition():
    scores = noise(6, 3, 40)
    rows = scores.flatten(1).double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    s_0 = np.linalg.svd(rows, compute_uv=False)[0]
    assert r1_squared(scores) == pytest.approx((s_0**2 - 1) / 5, abs=1e-9)


def test_r1_squared_of_equal_orthogonal_and_missing_profiles():
    profile = noise(1, 2, 8)
    assert r1_squared(torch.cat([profile, 2 * profile, 5 * profile])) == pytest.approx(1)
    assert r1_squared(torch.eye(4).reshape(4, 2, 2)) == pytest.approx(0, abs=1e-12)
    assert math.isnan(r1_squared(profile))
    assert math.isnan(r1_squared(torch.cat([profile, 0 * profile])))


def test_unrelated_non_negative_profiles_are_alike():
    scores = noise(30, 4, 5000).abs()
    assert r1_squared(scores) == pytest.approx(NON_NEGATIVE_NULL, abs=0.01)
    assert pytest.approx(0.6366, abs=1e-4) == NON_NEGATIVE_NULL


def test_the_null_stands_beside_the_figure():
    unrelated = localisation(noise(8, 3, 400).abs(), resamples=50, draws=20)
    assert unrelated.r1_squared.value == pytest.approx(unrelated.r1_squared.null, abs=0.02)
    profile = noise(1, 3, 400).abs()
    alike = localisation(profile + 0.1 * noise(8, 3, 400, seed=1), resamples=50, draws=20)
    assert alike.r1_squared.value > alike.r1_squared.null_high + 0.2


def test_permutation_keeps_every_layer_of_every_prompt():
    scores = noise(4, 3, 50)
    shuffled = permuted(scores, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.sort(2).values, scores.sort(2).values)
    assert not torch.equal(shuffled[0], scores[0])


def test_attribution_share_and_participation_ratio():
    scores = torch.zeros(2, 2, 4)
    scores[:, 0, 0], scores[:, 0, 1], scores[:, 1, 2] = 3.0, 1.0, -7.0
    assert attribution_share(scores, frozenset({Neuron(0, 0)})) == 0.75
    assert attribution_share(scores, frozenset({Neuron(1, 2)})) == 0.0
    assert participation_ratio(scores) == pytest.approx(16 / 10)
    assert participation_ratio(torch.ones(3, 2, 4)) == pytest.approx(8)
    assert participation_ratio(torch.eye(4)[:1].reshape(1, 2, 2)) == pytest.approx(1)


def test_layer_histogram():
    neurons = frozenset({Neuron(0, 1), Neuron(2, 3), Neuron(2, 5)})
    assert layer_histogram(neurons, 4) == (1, 0, 2, 0)


def planted(n=12):
    """Two neurons in every prompt, some in none but one."""
    scores = 0.05 * noise(n, 3, 60).abs()
    scores[:, 1, 7] = 1.0
    scores[:, 2, 9] = 0.8
    scores[torch.arange(n), 0, torch.arange(n)] = 0.9
    return scores


def test_localisation_finds_what_was_planted():
    measured = localisation(planted(), resamples=100, draws=20)
    assert measured.neurons == {(1, 7), (2, 9)}
    assert measured.n_prompts == 12
    assert measured.n_neurons.value == 2
    assert measured.tau.value == 0.7
    assert [layer.value for layer in measured.layers] == [0, 1, 1]
    assert measured.n_neurons.low == measured.n_neurons.high == 2
    assert [(layer.low, layer.high) for layer in measured.layers] == [(0, 0), (1, 1), (1, 1)]
    for measure in (measured.attribution_share, measured.participation_ratio):
        assert measure.low <= measure.value <= measure.high
        assert measure.low < measure.high
    assert measured.r1_squared.null < measured.r1_squared.value


def test_the_null_of_the_size_is_what_chance_selects():
    """Without the cap nothing is shared by permuted prompts; the planted neurons are."""
    measured = localisation(planted(), locating=Locating(capped=False), resamples=20, draws=20)
    assert measured.n_neurons.value == 2
    assert measured.n_neurons.null == 0


def test_the_null_of_tau_mixes_prompts_of_other_relations():
    others = torch.cat([planted().roll(shift, 2) for shift in range(1, 6)])
    measured = localisation(planted(), unrelated=others, resamples=20, draws=20)
    assert measured.tau.null < measured.tau.value
    assert math.isnan(localisation(planted(), resamples=2, draws=2).tau.null)


def test_the_null_of_the_share_is_that_of_random_neurons_of_the_same_layers():
    """On average a neuron holds its layer's mean: for the share a closed form."""
    scores = noise(6, 3, 30)
    measured = localisation(scores, resamples=2, draws=1000)
    positive = scores.clamp_min(0).sum(0)
    layers = torch.tensor([layer.value for layer in measured.layers])
    expected = float((layers * positive.mean(1)).sum() / positive.sum())
    assert measured.neurons
    assert measured.attribution_share.null == pytest.approx(expected, rel=0.05)
    assert measured.attribution_share.value > measured.attribution_share.null_high


def test_the_null_of_the_participation_ratio_shares_nothing_between_prompts():
    """Distinct spikes of n prompts add up to n neurons of equal weight; planted, they are one."""
    scores = torch.zeros(8, 1, 4000)
    scores[:, 0, 5] = 1.0
    measured = localisation(scores, resamples=2, draws=20)
    assert measured.participation_ratio.value == pytest.approx(1)
    assert measured.participation_ratio.null == pytest.approx(8, abs=0.2)


def test_the_null_of_the_layers_draws_as_many_neurons_anywhere():
    measured = localisation(planted(), resamples=2, draws=1000)
    assert [layer.null for layer in measured.layers] == pytest.approx([2 / 3] * 3, abs=0.08)
    assert [layer.null_high for layer in measured.layers] == [2, 2, 2]


def test_random_neurons_hold_no_more_than_their_null():
    """Selected by nothing, a set's share exceeds the null's 95th percentile in one draw of 20."""
    scores = noise(5, 2, 50).abs()
    rng = torch.Generator().manual_seed(1)
    beyond = 0
    for _ in range(400):
        units = torch.randperm(50, generator=rng)[:3].tolist()
        chosen = frozenset(Neuron(0, unit) for unit in units)
        nulls = _random_shares(scores, chosen, draws=200, seed=0)
        beyond += int(attribution_share(scores, chosen) > np.percentile(nulls, 95))
    assert 0.02 < beyond / 400 < 0.09


def test_one_prompt_has_figures_and_no_intervals():
    measured = localisation(planted()[:1], resamples=20, draws=5)
    assert measured.n_neurons.value > 0
    assert math.isnan(measured.n_neurons.low)
    assert math.isnan(measured.r1_squared.value)
    assert all(math.isnan(layer.low) for layer in measured.layers)


@pytest.mark.parametrize("n", [2, 3])
def test_the_likeness_of_two_prompts_has_no_interval(n):
    """Every resample that has a value holds both: its interval had no width."""
    measured = localisation(noise(n, 3, 40).abs(), resamples=50, draws=5)
    assert math.isnan(measured.r1_squared.low) == math.isnan(measured.r1_squared.high) == (n == 2)
    assert n == 2 or measured.r1_squared.low < measured.r1_squared.high
    assert measured.attribution_share.low < measured.attribution_share.high


@pytest.mark.parametrize(("name", "agreed"), [("tau", 0.7), ("attribution_share", 0.25)])
@pytest.mark.parametrize("capped", [True, False])
def test_shares_that_all_groups_agree_on_have_an_interval(name, agreed, capped, material):
    """By hand: none of n groups deviates with probability (1 - q)^n = 0.025."""
    (levels,) = levels_of(material, material.profiles[0], METHODS[:1], resamples=5)
    tau, share = Measure(0.7), Measure(0.25)
    groups = [
        replace(
            levels,
            profile=replace(levels.profile, group=replace(levels.profile.group, id=f"{i}")),
            capped=replace(levels.capped, tau=tau, attribution_share=share),
            uncapped=replace(levels.uncapped, tau=tau, attribution_share=share),
        )
        for i in range(3)
    ]
    mean = averaged(groups, name, capped=capped)
    q = 1 - 0.025 ** (1 / 3)
    assert mean == pytest.approx((agreed, agreed - q * agreed, agreed + q * (1 - agreed), 3))
    beyond = [replace(g, capped=replace(g.capped, tau=Measure(-0.3))) for g in groups]
    assert averaged(beyond, "tau")[:3] == pytest.approx((-0.3, -0.3, -0.3))


def test_groups_draw_their_nulls_apart_and_from_the_seed():
    """Equal scores in two groups: from one seed all their nulls were equal."""
    made_up = made_up_material()
    profile = made_up.profiles[0]
    other = replace(profile, group=replace(profile.group, id="another"))

    def nulls(of, seed):
        settings = replace(made_up.settings, seed=seed)
        seeded_otherwise = Material(made_up.lm, made_up.cases, settings)
        (levels,) = levels_of(seeded_otherwise, of, METHODS[:1], resamples=2)
        return [levels.capped.attribution_share.null, levels.capped.r1_squared.null]

    first, second = nulls(profile, 0), nulls(other, 0)
    assert not set(first) & set(second)
    assert not set(first) & set(nulls(profile, 1))
    assert first == nulls(profile, 0)


def test_localisation_is_seeded():
    others = planted().roll(1, 2)
    first, again = (
        localisation(planted(), unrelated=others, resamples=20, draws=5, seed=3) for _ in range(2)
    )
    assert first == again


# -- matched random neurons ----------------------------------------------------------------


def test_matched_neurons_have_the_same_layers_and_similar_activations():
    mean = torch.arange(200.0).repeat(3, 1)
    neurons = frozenset({Neuron(0, 50), Neuron(0, 51), Neuron(2, 120)})
    drawn = matched(mean, neurons, seeded(0, "case"), nearest=10)
    assert not drawn & neurons
    assert sorted(n.layer for n in drawn) == [0, 0, 2]
    for neuron in drawn:
        assert min(abs(neuron.unit - n.unit) for n in neurons if n.layer == neuron.layer) <= 12


def test_matched_neurons_are_seeded_by_content():
    mean = noise(3, 200)
    neurons = frozenset({Neuron(0, 50), Neuron(2, 120)})
    draws = {case: matched(mean, neurons, seeded(0, case)) for case in map(str, range(20))}
    assert draws["3"] == matched(mean, neurons, seeded(0, "3"))
    assert len(set(draws.values())) > 10


def test_control_1_shows_the_mean_activation_of_the_located_and_of_the_drawn():
    """The neighbours of a layer's most active neuron are all below it."""
    lm = tiny_model("bert")
    mean = torch.zeros(3, lm.d_mlp).double()
    mean[1] = torch.tensor([9.0, *[3.0] * 20, *[1.0] * 3])
    queries = [EncodedQuery((5, 6, 7), 1, (8,))]
    against = section.against_random(lm, queries, frozenset({Neuron(1, 0)}), mean, draws=4)
    assert (against.activation, against.of_draws) == (9, 3)  # the 20 nearest
    material = made_up_material()
    summary, groups = section.run(material).tables
    by_hand = {
        profile.group.id: np.mean(
            [material.scores(profile, "activation")[:, n.layer, n.unit].mean().item()
             for n in material.neurons(profile)]
        )
        for profile in material.profiles
    }  # fmt: skip
    for row in groups.rows:
        assert row[8] == pytest.approx(by_hand[row[0]], rel=1e-5)
        assert row[8] != pytest.approx(row[9])
    facts = [by_hand[profile.group.id] for profile in material.of_task("fact")]
    rows = {row[:2]: row for row in summary.rows}
    assert rows["all facts", "enhanced"][6] == pytest.approx(np.mean(facts), rel=1e-5)


def test_the_grey_band_holds_95_percent_of_further_draws():
    """By normal draws, and in the figure by Student's t of three draws from a printed table."""
    draws = np.random.default_rng(0).normal(size=(100_000, 21))
    mean, sd = draws[:, 1:].mean(1), draws[:, 1:].std(1, ddof=1)
    inside = np.abs(draws[:, 0] - mean) / sd < section.band(20)
    assert inside.mean() == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 100_000))
    for axes in section.run(made_up_material()).figures[0].draw().axes:
        grey = axes.patches[0]
        ends = grey.get_patch_transform().transform(grey.get_path().vertices)[:, 0]
        edge = 4.303 * np.sqrt(4 / 3)
        assert (ends.min(), ends.max()) == pytest.approx((-edge, edge), abs=1e-3)


def test_too_few_neurons_to_match_are_refused():
    everything = frozenset(Neuron(0, unit) for unit in range(3))
    with pytest.raises(
        ValueError, match="layer 0: expected at most 2 neurons to match, half of its 5, got 3"
    ):
        matched(noise(1, 5), everything, seeded(0))
