"""Attribution equals a plain brute force on every architecture, and is complete."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.localise.alternatives import (
    activation,
    direct_ablation,
    gradient_x_activation,
)
from kn_bench.localise.attribution import Attribution, _Intervals, _mean, _worst, attribute
from kn_bench.localise.integration import Nodes, Rule
from kn_bench.localise.queries import questions_of
from kn_bench.localise.scaling import CleanBatch
from kn_bench.localise.selection import Neuron
from tests.brute_force import (
    Place,
    integrated_gradients,
    neurons_at,
    probability,
)
from tests.tiny_models import FAMILIES, tiny_model

ONE_INTERVAL = Rule(most=5)
"""Gauss-Legendre with 5 nodes and no refinement."""


@dataclass(frozen=True)
class Fitted:
    ids: tuple[int, ...]
    answer_position: int
    answer_ids: tuple[int, ...]


def queries(lm, lengths=(6, 5), n_answer=1, seed=0):
    """Random prompts of several lengths; for masked models the answer stands at position 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return tuple(torch.randint(5, 60, (n,), generator=generator).tolist())

    return [Fitted(draw(n), n - 1 if lm.is_causal else 2, draw(n_answer)) for n in lengths]


def site(lm, layer, position):
    return Place(lm.site(layer), position, call=lm.sharers(layer).index(layer))


def brute(lm, ids, position, token, nodes):
    row = torch.tensor(ids)
    return torch.stack(
        [
            integrated_gradients(lm.hf, row, token, site(lm, layer, position), nodes)
            for layer in range(lm.n_layers)
        ]
    )


def relative(ours, expected):
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rule", [Rule("linspace", 5), ONE_INTERVAL], ids=["linspace", "gauss"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_equals_brute_force(family, rule):
    lm = tiny_model(family)
    asked = queries(lm)
    nodes = rule.on_unit_interval()
    for query, attribution in zip(asked, attribute(lm, asked, rule=rule), strict=True):
        expected = brute(lm, query.ids, query.answer_position, query.answer_ids[0], nodes)
        assert relative(attribution.scores, expected) < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_float32_attribution_equals_float64_brute_force(family):
    narrow, wide = tiny_model(family, torch.float32), tiny_model(family)
    wide.hf.load_state_dict(narrow.hf.state_dict())
    rule = Rule("riemann")
    nodes = rule.on_unit_interval()
    asked = queries(narrow)
    for query, attribution in zip(asked, attribute(narrow, asked, rule=rule), strict=True):
        expected = brute(wide, query.ids, query.answer_position, query.answer_ids[0], nodes)
        assert relative(attribution.scores.double(), expected) < 1e-5
    tiny_model.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_attribution_says_of_itself_is_true(family):
    """P(w), P(0) and completeness, recomputed from whole runs; converged where it says so."""
    lm = tiny_model(family)
    asked = queries(lm, (6,))
    (attribution,) = attribute(lm, asked)
    (query,) = asked
    row, (token,) = torch.tensor(query.ids), query.answer_ids
    for layer in range(lm.n_layers):
        place = site(lm, layer, query.answer_position)
        neurons = neurons_at(lm.hf, row, place)
        p, without = (
            float(probability(lm.hf, row, token, place, factor * neurons)) for factor in (1, 0)
        )
        assert attribution.probability == pytest.approx(p, rel=1e-9)
        assert float(attribution.without[layer]) == pytest.approx(without, rel=1e-9)
        error = abs(float(attribution.scores[layer].sum()) - (p - without))
        assert float(attribution.completeness[layer]) == pytest.approx(error, rel=1e-4, abs=1e-12)
        allowed = max(1e-3 * abs(p - without), 1e-6)
        assert bool(attribution.converged[layer]) == (error <= allowed)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bert", "distilbert"])
def test_adaptive_rule_finds_the_integral(family):
    lm = tiny_model(family)
    asked = queries(lm)
    fine = Rule("adaptive", 60).on_unit_interval()
    for query, attribution in zip(
        asked, attribute(lm, asked, rule=Rule(tolerance=1e-6, floor=1e-9)), strict=True
    ):
        expected = brute(lm, query.ids, query.answer_position, query.answer_ids[0], fine)
        assert bool(attribution.converged.all())
        assert relative(attribution.scores, expected) < 1e-4


def test_adaptive_rule_spends_nodes_only_where_they_are_needed():
    lm = tiny_model("gpt2")
    asked = queries(lm, (7,) * 6)
    loose, tight = (
        torch.stack([f.nodes for f in attribute(lm, asked, rule=Rule(tolerance=t))])
        for t in (1e-2, 1e-5)
    )
    assert set(loose.flatten().tolist()) >= {5}
    assert bool((tight >= loose).all())
    assert tight.sum() > loose.sum()
    assert len(set(tight.flatten().tolist())) > 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 64)), min_size=1, max_size=12),
    st.integers(0, 128),
)
@settings(max_examples=60, deadline=None)
def test_the_fewest_intervals_are_refined(parts, tolerated):
    cell, error = np.array([c for c, _ in parts]), np.array([2.0**-e for _, e in parts])
    tolerated = 2.0**-tolerated
    intervals = _Intervals(
        integral=torch.zeros(len(parts), 1), cell=cell, low=error, high=error, p_low=error,
        p_high=error, error=error,
    )  # fmt: skip
    worst = _worst(intervals, np.full(4, tolerated))
    for path in range(4):
        ascending = np.sort(error[cell == path])
        # by brute force: the most of the smallest whose sum is tolerated
        aside = max(n for n in range(len(ascending) + 1) if ascending[:n].sum() <= tolerated)
        assert worst[cell == path].sum() == len(ascending) - aside
        refined = error[(cell == path) & worst]
        assert sorted(refined) == list(ascending[aside:])


def test_a_row_that_does_not_converge_is_reported():
    lm = tiny_model("gemma2")  # a norm behind the site: P is a step at g = 0
    (attribution,) = attribute(lm, queries(lm, (6,)), rule=Rule(most=15))
    assert not bool(attribution.converged.all())
    assert attribution.worst > 1
    assert int(attribution.nodes.max()) <= 15


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_neither_batch_nor_memory_changes_a_score(family, monkeypatch):
    lm = tiny_model(family)
    asked = queries(lm, (7, 5, 7, 6, 5))
    together = attribute(lm, asked)
    apart = [attribute(lm, [query])[0] for query in asked]
    backwards = attribute(lm, asked[::-1])[::-1]
    monkeypatch.setattr(lm.batcher, "memory", 1)
    cramped = attribute(lm, asked)
    for others in (apart, backwards, cramped):
        for left, right in zip(together, others, strict=True):
            assert relative(left.scores, right.scores) < 1e-10
            assert torch.equal(left.nodes, right.nodes)


def test_out_of_memory_halves_the_rows(monkeypatch):
    lm = tiny_model("gpt2")
    monkeypatch.setattr(lm.batcher, "memory", lm.batcher.memory)  # put back: it shrinks for good
    asked = queries(lm, (6, 6))
    expected = attribute(lm, asked)
    sizes, run = [], CleanBatch._run

    def cramped(self, rows, gradient):
        sizes.append(len(rows.g))
        if len(rows.g) > 40:
            raise torch.OutOfMemoryError("no more")
        return run(self, rows, gradient)

    monkeypatch.setattr(CleanBatch, "_run", cramped)
    for left, right in zip(expected, attribute(lm, asked), strict=True):
        assert relative(left.scores, right.scores) < 1e-10
    assert max(sizes) > 40
    assert 0 < min(sizes) <= 40

    monkeypatch.setattr(
        CleanBatch, "_run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(torch.OutOfMemoryError):
        attribute(lm, asked)


# -- the rules themselves ------------------------------------------------------------------


def integral(nodes: Nodes, power: int) -> float:
    return float((nodes.weights * nodes.places**power).sum())


@given(st.integers(5, 40))
@settings(max_examples=20)
def test_gauss_legendre_is_exact_on_polynomials(n):
    nodes = Rule("adaptive", n).on_unit_interval()
    for power in range(2 * n):
        assert integral(nodes, power) == pytest.approx(1 / (power + 1), rel=1e-9)


def test_an_integration_rule_that_counts_both_ends_is_biased_on_a_cubic():
    linspace, riemann, legendre = (
        integral(rule.on_unit_interval(), 3) / 0.25 - 1
        for rule in (Rule("linspace"), Rule("riemann"), Rule())
    )
    assert linspace == pytest.approx(1 / 19)
    assert riemann == pytest.approx(-39 / 400)
    assert abs(legendre) < 1e-12


def test_published_rules_have_the_published_nodes():
    linspace = Rule("linspace", 20).on_unit_interval()
    riemann = Rule("riemann", 20).on_unit_interval()
    np.testing.assert_allclose(linspace.places, np.linspace(0, 1, 20))
    np.testing.assert_allclose(riemann.places, np.arange(20) / 20)
    for nodes in (linspace, riemann):
        np.testing.assert_allclose(nodes.weights, np.full(20, 0.05))


@pytest.mark.parametrize("name", ["adaptive", "riemann", "linspace"])
def test_fewer_than_five_nodes_are_refused(name):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is pinned below
        Rule(name, 1)
    assert str(error.value) == "1 integration nodes: expected at least 5"
    assert Rule(name, 5).n_nodes == 5


def test_an_unknown_rule_is_refused():
    with pytest.raises(
        ValueError, match="rule 'simpson': expected one of adaptive, riemann, linspace"
    ):
        Rule("simpson")  # type: ignore[arg-type]


# -- answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_later_tokens_come_after_the_answers_own_earlier_ones(family):
    lm = tiny_model(family)
    (query,) = queries(lm, (6,), n_answer=3)
    nodes = Rule("riemann", 6).on_unit_interval()
    (attribution,) = attribute(lm, [query], rule=Rule("riemann", 6))
    singles = [
        brute(lm, (*query.ids, *query.answer_ids[:k]), 5 + k, query.answer_ids[k], nodes)
        for k in range(3)
    ]
    assert relative(attribution.scores, torch.stack(singles).mean(0)) < 1e-9
    stuck = [brute(lm, query.ids, 5, token, nodes) for token in query.answer_ids]
    assert relative(attribution.scores, torch.stack(stuck).mean(0)) > 1e-3


def test_an_answer_of_several_tokens_converges_where_each_of_them_does():
    """One token's error is not held against what another one is allowed."""

    def of_token(completeness, allowed):
        vector = torch.ones(2)
        nodes = torch.ones(2, dtype=torch.long)
        return Attribution(
            vector[:, None], 0.5, vector, vector.new(completeness), vector.new(allowed), nodes
        )

    attribution = _mean(
        [of_token([3e-4, 2e-6], [1e-3, 1e-6]), of_token([1e-7, 1e-4], [1e-6, 1e-3])]
    )
    assert attribution.converged.tolist() == [True, False]
    assert attribution.completeness.tolist() == pytest.approx([3e-4, 2e-6])
    assert attribution.allowed.tolist() == pytest.approx([1e-3, 1e-6])
    assert attribution.worst == pytest.approx(2)


def test_a_masked_model_sees_the_answers_earlier_tokens_in_place():
    lm = tiny_model("bert")
    mask = lm.tokens.mask_id
    assert mask is not None
    query = Fitted((10, 11, mask, mask, 12), 2, (20, 21))
    first, second = questions_of(lm, query)
    assert (first.ids, first.position, first.token) == (query.ids, 2, 20)
    assert (second.ids, second.position, second.token) == ((10, 11, 20, mask, 12), 3, 21)


@pytest.mark.parametrize(
    ("family", "answer", "what"),
    [
        ("gpt2", (1, 20), "special token 1"),
        ("gpt2", (4,), "special token 4"),
        ("bert", (3,), "special token 3"),
        ("bert", (), "none"),
    ],
)
def test_special_tokens_are_no_answer(family, answer, what):
    lm = tiny_model(family)
    with pytest.raises(
        ValueError, match=rf"expected ordinary tokens, got {what}; encode the answer"
    ):
        attribute(lm, [Fitted((10, 11, 12), 2, answer)])


# -- the controls --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_other_attributions_equal_brute_force(family):
    lm = tiny_model(family)
    (query,) = queries(lm, (6,))
    row, (token,), at = torch.tensor(query.ids), query.answer_ids, query.answer_position
    at_one = Nodes(np.ones(1), np.ones(1))
    sites = [site(lm, layer, at) for layer in range(lm.n_layers)]
    active = torch.stack([neurons_at(lm.hf, row, place) for place in sites])
    assert relative(activation(lm, [query])[0], active) < 1e-12
    by_gradient = brute(lm, query.ids, at, token, at_one)
    assert relative(gradient_x_activation(lm, [query])[0], by_gradient) < 1e-9

    fall = direct_ablation(lm, [query])[0]
    for layer, place in enumerate(sites):
        p = probability(lm.hf, row, token, place, active[layer])
        for unit in (0, 7, lm.d_mlp - 1):
            ablated = active[layer].clone()
            ablated[unit] = 0
            expected = float(p - probability(lm.hf, row, token, place, ablated))
            assert float(fall[layer, unit]) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_half_precision_weights_do_not_make_half_precision_probabilities():
    lm = tiny_model("gpt2", torch.bfloat16)
    (attribution,) = attribute(lm, queries(lm, (6,)), rule=ONE_INTERVAL)
    assert attribution.without.dtype == torch.float32
    assert attribution.completeness.dtype == torch.float32
    assert bool(torch.isfinite(attribution.scores).all())


def test_half_precision_is_reported_and_not_refined_in_vain():
    """bfloat16 rounds P by more than the tolerance: more nodes would not help, and it says so."""
    narrow, wide = tiny_model("gpt2", torch.bfloat16), tiny_model("gpt2", torch.float32)
    asked = queries(narrow, (6,) * 6)
    halves, singles = attribute(narrow, asked), attribute(wide, asked)
    assert not all(bool(attribution.converged.all()) for attribution in halves)
    assert all(bool(attribution.converged.all()) for attribution in singles)
    spent = [sum(int(f.nodes.sum()) for f in attribution) for attribution in (halves, singles)]
    assert spent[0] <= 2 * spent[1]


def test_ablating_some_neurons_scores_them_as_ablating_all_does_and_the_others_zero():
    lm = tiny_model("gpt2")
    asked = queries(lm, (4, 6))
    everything = direct_ablation(lm, asked)
    some = {Neuron(0, 3), Neuron(2, 0), Neuron(2, lm.d_mlp - 1)}
    few = direct_ablation(lm, asked, some)
    mask = torch.zeros(lm.n_layers, lm.d_mlp, dtype=torch.bool)
    for layer, unit in some:
        mask[layer, unit] = True
    assert torch.allclose(few[:, mask], everything[:, mask], rtol=1e-9, atol=1e-12)
    assert not few[:, ~mask].any()
