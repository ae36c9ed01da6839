"""Modifiers under suppression: planted effects are found, null effects at the stated rate."""

import numpy as np
import pytest
import torch
from scipy import stats

from kn_bench.cases.case import Cloze
from kn_bench.editing.edit import NoEdit
from kn_bench.localise.interventions import answers, crossed, lost_share, relative_change, scale
from kn_bench.localise.selection import Neuron
from kn_bench.measure.encoding import EncodedQuery
from kn_bench.study.sections.modifiers.co_occurrence import NounCounts, association, count_nouns
from kn_bench.study.sections.modifiers.modifier_shifts import (
    BLOCKS,
    MODIFIERS,
    Modifier,
    modifier_study,
    shifts_of,
)
from tests.tiny_models import tiny_model

WORDS = [Modifier(f"w{i}", BLOCKS[i % 3]) for i in range(10, 34)]


def clusters_of(n, size=1):
    return [f"noun {i // size}" for i in range(n)]


def test_the_paper_has_24_modifiers_in_three_blocks():
    assert [len([m for m in MODIFIERS if m.block == block]) for block in BLOCKS] == [7, 9, 8]
    assert len({m.word for m in MODIFIERS}) == 24


# --- statistics --------------------------------------------------------------------------------


def simulated(rng, effect, n=40):
    """Probabilities that differ much from prompt to prompt and little by the intervention."""
    level = rng.lognormal(-6, 1.0, (24, n))
    noise = rng.normal(0, 0.1, (24, n))
    return level, level * np.exp(effect[:, None] + noise - 0.005)


def test_modifiers_are_tested_in_pairs_and_corrected_by_holm():
    """Planted falls are found by the paired test and missed by the published one."""
    rng = np.random.default_rng(0)
    effect = np.where(np.arange(24) < 7, -0.3, 0.0)
    before, after = simulated(rng, effect)
    shifts = shifts_of(WORDS, before, after, clusters_of(40))
    assert [shift.p_holm < 0.05 for shift in shifts] == [True] * 7 + [False] * 17
    assert all(shift.p_published > 0.05 for shift in shifts[:7])
    assert all(shift.p_holm >= shift.p for shift in shifts)
    for shift in shifts[:7]:
        assert -0.45 < shift.change < -0.2
        assert shift.low < shift.change < shift.high < 0
        assert shift.effect_size < -0.3


def test_null_effects_are_found_at_the_stated_rate():
    rng = np.random.default_rng(1)
    single, familywise = [], []
    for _ in range(40):
        before = rng.lognormal(-6, 0.5, (24, 12))
        change = before * rng.normal(0, 0.3, before.shape)
        shifts = shifts_of(WORDS, before, before + change, clusters_of(12))
        single += [shift.p < 0.05 for shift in shifts]
        familywise.append(any(shift.p_holm < 0.05 for shift in shifts))
    # 960 tests at 0.05, 40 families at no more than that: 3 standard errors
    assert np.mean(single) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 960))
    assert np.mean(familywise) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)


def test_intervals_of_the_change_cover_at_the_stated_rate():
    rng = np.random.default_rng(2)
    true = float(relative_change(1.0, np.exp(-0.3)))
    covered = []
    for _ in range(12):
        before, after = simulated(rng, np.full(24, -0.3))
        shifts = shifts_of(WORDS, before, after, clusters_of(40))
        covered += [shift.low <= true <= shift.high for shift in shifts]
    assert 0.9 < np.mean(covered) < 0.985  # 288 intervals: 3 standard errors are 0.039


def test_clusters_count_once():
    """Forty prompts on two nouns are two observations: nothing can be significant."""
    rng = np.random.default_rng(3)
    before, after = simulated(rng, np.full(24, -0.3))
    shifts = shifts_of(WORDS, before, after, clusters_of(40, size=20))
    assert all(shift.p == pytest.approx(0.5) for shift in shifts)


def test_one_noun_has_neither_an_interval_nor_an_effect_size():
    before = np.full((24, 3), 0.2)
    for shift in shifts_of(WORDS, before, before - 0.1, ["lake"] * 3):
        assert shift.change == pytest.approx(-1)
        assert np.isnan([shift.low, shift.high, shift.effect_size]).all()


def test_the_published_variant_is_scipys():
    rng = np.random.default_rng(4)
    before, after = simulated(rng, np.full(24, -0.1))
    shifts = shifts_of(WORDS, before, after, clusters_of(40))
    assert shifts[3].p_published == pytest.approx(stats.ttest_ind(before[3], after[3]).pvalue)


def test_relative_changes():
    assert relative_change([0.2, 0.1, 0.3], [0.1, 0.2, 0.3]) == pytest.approx([-1, 1, 0])
    assert lost_share([0.2, 0.1], [0.1, 0.2]) == pytest.approx([0.5, -1.0])


# --- the model under an intervention -----------------------------------------------------------


def query(lm, seed, n_answer=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 64, (6,), generator=generator).tolist()
    if not lm.is_causal:
        ids[2 : 2 + n_answer] = [lm.tokens.mask_id] * n_answer
    position = 5 if lm.is_causal else 2
    return EncodedQuery(tuple(ids), position, tuple(range(20 + seed, 20 + seed + n_answer)))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_answers_under_edits_are_those_of_a_model_with_hooks(family):
    lm = tiny_model(family)
    queries = [query(lm, 0), query(lm, 1, n_answer=2), query(lm, 2)]
    neurons = [Neuron(0, 3), Neuron(2, 5), Neuron(2, 6)]
    read = answers(lm, queries * 2, [NoEdit(), scale(neurons, 0.0)], [0, 0, 0, 1, 1, 1])
    for index, asked in enumerate(queries * 2):
        expected = by_hooks(lm, asked, neurons if index > 2 else [])
        assert read.log_prob[index] == pytest.approx(expected, rel=1e-9)
    again = crossed(lm, queries, [NoEdit(), scale(neurons, 0.0)])
    assert again.log_prob.shape == again.rank.shape == again.right.shape == (2, 3)
    assert again.log_prob.ravel() == pytest.approx(read.log_prob, rel=1e-12)
    assert (again.rank.ravel() == read.rank).all()
    assert (again.right.ravel() == read.right).all()


def by_hooks(lm, query, neurons):
    total = 0.0
    for index, token in enumerate(query.answer_ids):
        ids, at = list(query.ids), query.answer_position + index
        earlier = list(query.answer_ids[:index])
        if lm.is_causal:
            ids = ids[: query.answer_position + 1] + earlier
        else:
            ids[query.answer_position : at] = earlier
        first = query.answer_position if lm.is_causal else at
        handles = []
        for neuron in neurons:

            def silence(_, inputs, unit=neuron.unit, first=first, last=at):
                keys = inputs[0].clone()
                keys[:, first : last + 1, unit] = 0
                return (keys,)

            handles.append(lm.site(neuron.layer).register_forward_pre_hook(silence))
        with torch.no_grad():
            logits = lm.hf(input_ids=torch.tensor([ids])).logits[0, at]
        for handle in handles:
            handle.remove()
        total += float(logits.log_softmax(-1)[token])
    return total


def test_answers_say_whether_all_tokens_are_the_argmax():
    lm = tiny_model("gpt2")
    ids = tuple(range(6, 12))
    with torch.no_grad():
        best = int(lm.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        then = int(lm.hf(input_ids=torch.tensor([[*ids, best]])).logits[0, -1].argmax())
    wrong = 5 if then != 5 else 6
    read = answers(lm, [EncodedQuery(ids, 5, (best, then)), EncodedQuery(ids, 5, (best, wrong))])
    assert read.right.tolist() == [True, False]
    assert read.rank.tolist() == [0, 0]


def test_a_planted_number_neuron_shifts_its_words_alone():
    """Neuron 0 of the last layer always fires, and writes what the plural words are read by."""
    lm = tiny_model.__wrapped__("gpt2")
    parameters = dict(lm.layers[2].get_submodule("mlp.c_fc").named_parameters())
    with torch.no_grad():
        parameters["bias"][0], parameters["weight"][:, 0] = 3.0, 0.0
        lm.output_embeddings[:, 0] = 0.0
        lm.output_embeddings[[int(m.word[1:]) for m in WORDS if m.block == "plural"], 0] = 2.0
        lm.weight(2)[0] = 0.0
        lm.weight(2)[0, 0] = 1.0
    prompts = [Cloze(f"w{i} w{i + 20} w{i + 9}", "w40 w41") for i in range(5, 35)]
    study = modifier_study(lm, prompts, clusters_of(30), [Neuron(2, 0)], modifiers=WORDS)
    for shift in study.shifts:
        assert shift.n == 30
        assert shift.p_holm < 0.05
        assert shift.change < -0.2 if shift.modifier.block == "plural" else shift.change > 0
    assert not study.excluded
    assert not study.skipped


def test_prompts_and_words_that_do_not_fit_are_counted():
    lm = tiny_model("bert")
    prompts = [Cloze("w5 w6", "w7"), Cloze("", "w8 w9")]
    words = [*WORDS[:2], Modifier("unheard", "neutral")]
    study = modifier_study(lm, prompts, ["a", "b"], [Neuron(0, 0)], modifiers=words)
    assert [shift.n for shift in study.shifts] == [1, 1]
    assert study.excluded == (words[2],)
    assert study.skipped == 1
    with pytest.raises(ValueError, match="1 prompts for random-bert: expected at least one"):
        modifier_study(lm, prompts[1:], ["b"], [Neuron(0, 0)], modifiers=words)


# --- co-occurrence ---------------------------------------------------------------------------


def test_co_occurrence_is_counted_within_the_sentence():
    texts = [
        "These old dogs bark. This dog barks, these days.",
        "The very big old dogs sleep. Every dog, every cat! These. Dogs run.",
    ]
    counts = count_nouns(
        texts,
        ["these", "this", "the", "every", "sole"],
        singular={"dog", "cat", "sheep"},
        plural={"dogs", "days", "sheep"},
    )
    assert counts == [
        NounCounts("these", 2, 0),
        NounCounts("this", 0, 1),
        NounCounts("the", 0, 0),  # the noun is the fourth word
        NounCounts("every", 0, 2),
        NounCounts("sole", 0, 0),
    ]
    assert counts[0].bias == pytest.approx(np.log(2.5 / 0.5))
    assert counts[-1].bias == 0


def test_partial_correlation_is_the_correlation_of_residuals():
    rng = np.random.default_rng(0)
    blocks = [m.block for m in MODIFIERS]
    x, y = rng.normal(size=24), rng.normal(size=24)
    measured = association(x, y, blocks)
    assert measured.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    dummies = np.array([[b == block for block in BLOCKS] for b in blocks], dtype=float)
    residuals = []
    for values in (x, y):
        ranks = stats.rankdata(values)
        encoded = dummies @ np.linalg.lstsq(dummies, ranks, rcond=None)[0]
        residuals.append(ranks - encoded)
    assert measured.partial == pytest.approx(stats.pearsonr(*residuals).statistic)


def test_what_blocks_explain_leaves_no_partial_correlation():
    """Shift and bias both follow the block: correlated, but not given the block."""
    rng = np.random.default_rng(1)
    blocks = [m.block for m in MODIFIERS]
    level = np.array([{"plural": 0.0, "singular": 6.0, "neutral": 3.0}[b] for b in blocks])
    raw, partial = [], []
    for seed in range(150):
        noise = rng.normal(size=(2, 24))
        measured = association(level + noise[0], level + noise[1], blocks, seed=seed)
        raw.append(measured.p < 0.05)
        partial.append(measured.partial_p < 0.05)
        assert measured.by_block > 0.7
    assert np.mean(raw) == 1.0
    assert np.mean(partial) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 150))
    own = association(level + noise[0], level + noise[0] + 0.1 * noise[1], blocks)
    assert own.partial_p < 0.01
    assert own.partial > 0.9
