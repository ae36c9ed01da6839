"""Controls of localisation: planted neurons are told from random ones, null effects are not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kn_bench.cases.case import Case, Cloze, EditRequest, Query
from kn_bench.editing.edit import LowRank, LowRankEdit, NoEdit
from kn_bench.localise.groups import (
    NOTHING_BEFORE,
    SAME,
    UNFIT,
    Group,
    class_of,
    encode_group,
    gap_prompts,
    groups_of,
    profiles,
)
from kn_bench.localise.interventions import answers, suppress
from kn_bench.localise.selection import Neuron
from kn_bench.measure.encoding import EncodedQuery
from kn_bench.measure.sentences import perplexity, token_log_probs
from kn_bench.measure.statistics import Interval
from kn_bench.study.material import Material
from kn_bench.study.sections import activators
from kn_bench.study.sections.activators import PARTS, firing, greatest, texts_of
from kn_bench.study.sections.choice import choose, halves, top
from kn_bench.study.sections.dose import dose_response
from kn_bench.study.sections.erasing import erased
from kn_bench.study.sections.matched import AgainstRandom, against_random
from kn_bench.study.sections.selectivity import GroupPrompts, SuppressedGroup, selectivity
from tests.made_up_study import SETTINGS, fact
from tests.tiny_models import tiny_model

PLANTED = Neuron(2, 0)
ANSWER = 20


@pytest.fixture(scope="module")
def lm():
    """A random model in which neuron 0 of the last layer always fires and writes one answer."""
    lm = tiny_model.__wrapped__("gpt2")
    parameters = dict(lm.layers[2].get_submodule("mlp.c_fc").named_parameters())
    with torch.no_grad():
        parameters["bias"][0], parameters["weight"][:, 0] = 3.0, 0.0
        lm.output_embeddings[:, 0] = 0.0
        lm.output_embeddings[ANSWER, 0] = 3.0
        lm.weight(2)[0] = 0.0
        lm.weight(2)[0, 0] = 1.0
    return lm


def queries_of(n=8, answer=ANSWER, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 64, (n, 5), generator=generator).tolist()
    return [EncodedQuery(tuple(row), 4, (answer,)) for row in ids]


def activations_of(lm, queries):
    keys = lm.neurons(lm.tensor([q.ids for q in queries]), range(3))
    return torch.stack([keys[layer][:, 4] for layer in range(3)], 1)


# --- random neurons ----------------------------------------------------------------------------


def test_a_planted_neuron_stands_out_of_matched_random_ones(lm):
    queries = queries_of()
    mean = activations_of(lm, queries).double().mean(0)
    against = against_random(lm, queries, frozenset({PLANTED}), mean)
    assert len(against.draws) == 20
    assert against.z < -4
    assert against.p() == pytest.approx(1 / 21)
    assert against.p(falls=False) == 1.0
    before, after = (answers(lm, queries, [e]).log_prob for e in (NoEdit(), suppress([PLANTED])))
    assert against.effect == pytest.approx(float((after - before).mean()))
    doubled = against_random(lm, queries, frozenset({PLANTED}), mean, factor=2.0)
    assert doubled.z > 2


def test_random_neurons_stand_out_at_the_stated_rate():
    """Neurons drawn as the control draws them: p below 0.1 in a tenth of all cases."""
    lm = tiny_model("gpt2")
    generator = torch.Generator().manual_seed(0)
    queries = queries_of(6)
    mean = torch.zeros(3, lm.d_mlp)  # all alike: matched neurons are any of the layer
    rejected = []
    for trial in range(150):
        units = torch.randperm(lm.d_mlp, generator=generator)[:2].tolist()
        neurons = frozenset(Neuron(trial % 3, unit) for unit in units)
        against = against_random(lm, queries, neurons, mean, draws=19, seed=trial)
        rejected += [against.p() <= 0.1, against.p(falls=False) <= 0.1]
    assert np.mean(rejected) == pytest.approx(0.1, abs=3 * np.sqrt(0.1 * 0.9 / 300))


def test_z_scores_and_ranks_by_hand():
    against = AgainstRandom(2, -3.0, (0.0, 1.0, -1.0, 0.0))
    assert against.z == pytest.approx(-3 / np.std([0, 1, -1, 0], ddof=1))
    assert against.p() == pytest.approx(1 / 5)
    assert np.isnan(AgainstRandom(1, 1.0, (0.0, 0.0)).z)
    assert np.isnan(AgainstRandom(1, 1.0, (0.3, 0.3, 0.1 + 0.2)).z)


# --- doses -------------------------------------------------------------------------------------


def test_dose_and_response(lm):
    queries = queries_of()
    order = [PLANTED, *(Neuron(2, unit) for unit in range(1, 24))]
    curve = dose_response(lm, queries, order, doses=(0, 1, 2, 24, 99))
    assert curve.doses == (0, 1, 2, 24)
    plain = answers(lm, queries)
    assert curve.probability[0] == pytest.approx(plain.probability.mean())
    assert curve.accuracy[0] == pytest.approx(plain.right.mean())
    assert curve.rank[0] == pytest.approx(plain.rank.mean())
    gone = answers(lm, queries, [suppress(order[:2])])
    assert curve.probability[2] == pytest.approx(gone.probability.mean())
    assert curve.needed(0.5) == 1
    with pytest.raises(ValueError, match="expected 0, the unedited model, as the first"):
        dose_response(lm, queries, order, doses=(1, 2))


@pytest.mark.parametrize(("answer", "share"), [((20,), 1.0), ((20, 20), 1.0), ((20, 30), 0.0)])
def test_an_answer_is_right_when_all_its_tokens_are(lm, answer, share):
    """Not when its first token alone is the argmax, before or under an edit."""
    queries = [replace(query, answer_ids=answer) for query in queries_of(4)]
    elsewhere = Neuron(0, 5)
    for edit in (NoEdit(), suppress([elsewhere])):
        read = answers(lm, queries, [edit])
        assert (read.rank == 0).all()
        assert (read.right == share).all()
    curve = dose_response(lm, queries, [elsewhere], doses=(0, 1))
    assert curve.accuracy == (share, share)
    assert curve.rank == (0.0, 0.0)
    lost = erased(lm, queries, ["w5 w20"], ["w30 w31"], [("one", suppress([elsewhere]))])
    assert [result.accuracy for result in lost] == [share, share]


def test_doses_needed_for_a_share_of_the_loss():
    from kn_bench.study.sections.dose import DoseResponse

    curve = DoseResponse((0, 1, 2, 4, 8), (0.8, 0.7, 0.4, 0.1, 0.2), (1,) * 5, (0,) * 5)
    assert curve.needed(0.5) == 2
    assert curve.needed(0.9) == 4
    assert curve.needed(0.1) == 1
    assert DoseResponse((0, 1), (0.1, 0.2), (1, 1), (0, 0)).needed(0.5) is None


# --- selectivity -------------------------------------------------------------------------------


def test_planted_neurons_carry_their_own_answers_alone(lm):
    mine, others = queries_of(4), queries_of(4, answer=30, seed=1)
    cells = selectivity(
        lm,
        [SuppressedGroup("a", "r", frozenset({PLANTED})), SuppressedGroup("b", "s", frozenset())],
        [
            GroupPrompts("a", "r", tuple(mine)),
            GroupPrompts("b", "s", tuple(others)),
            GroupPrompts("c", "r", (mine[0],)),
        ],
    )
    by_place = {(c.row, c.column, c.own): c.change for c in cells}
    assert by_place["r", "r", True].mean < -1
    assert by_place["r", "r", False].mean < -1
    assert by_place["r", "s", False].mean > 0
    assert by_place["s", "s", True].mean == 0
    assert by_place["s", "r", False].n == 1
    assert ("s", "s", False) not in by_place
    change = answers(lm, mine, [suppress([PLANTED])]).log_prob - answers(lm, mine).log_prob
    assert by_place["r", "r", True].mean == pytest.approx(change.mean())


# --- perplexity and erasing --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_pseudo_perplexity_asks_for_every_token_once(family):
    lm = tiny_model(family)
    texts = ["w7 w8 w9 w10", "w11 w12 w13"]
    log_probs = token_log_probs(lm, texts, [NoEdit()])
    expected = []
    for text in texts:
        ids = list(lm.tokens.encode(text).ids)
        if lm.is_causal and ids[0] not in lm.tokens.special_ids:
            assert lm.tokens.bos_id is not None
            ids = [lm.tokens.bos_id, *ids]  # the first word counts too
        for place in range(1, len(ids)):
            if lm.is_causal:
                logits = lm.hf(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
            elif place < len(ids) - 1:
                row = [*ids[:place], lm.tokens.mask_id, *ids[place + 1 :]]
                logits = lm.hf(input_ids=torch.tensor([row])).logits[0, place]
            else:
                continue
            expected.append(float(logits.log_softmax(-1)[ids[place]]))
    assert np.concatenate(log_probs, 1)[0] == pytest.approx(expected)
    assert perplexity(log_probs)[0] == pytest.approx(np.exp(-np.mean(expected)))


def test_erasing_a_planted_value_loses_the_answer_and_nothing_else(lm):
    one_hot = torch.zeros(lm.d_mlp, 1, dtype=torch.float64)
    one_hot[0] = 1
    gone = LowRankEdit((LowRank(2, one_hot, -lm.weight(2)[:1]),))
    queries = queries_of()
    none, zero = erased(lm, queries, ["w5 w20"], ["w30 w31 w32"], [("zero", gone)])
    assert (none.name, zero.name) == ("none", "zero")
    assert zero.at_answer > 2 * none.at_answer
    assert zero.own_texts > none.own_texts  # its one token is the answer
    assert zero.other_texts < none.other_texts
    p = answers(lm, queries).log_prob
    assert none.at_answer == pytest.approx(np.exp(-p.mean()))
    (alone, _) = erased(lm, queries, ["w5 w20"], [], [("zero", gone)])
    assert np.isnan(alone.other_texts)
    assert alone.own_texts == none.own_texts


# --- choosing ----------------------------------------------------------------------------------


def test_direct_search_finds_what_was_planted(lm):
    from kn_bench.localise.alternatives import direct_ablation

    queries = queries_of()
    scores = [
        ("direct_ablation", direct_ablation(lm, queries)),
        ("activation", activations_of(lm, queries)),
    ]
    choices = {choice.method: choice for choice in choose(lm, queries, scores, k=2)}
    assert PLANTED in choices["direct_ablation"].neurons
    assert choices["direct_ablation"].change < choices["random"].change - 1
    assert choices["direct_ablation"].overlap == 1
    with pytest.raises(ValueError, match="activation: expected two prompts or more"):
        choose(lm, queries[:1], scores)


def test_neurons_are_chosen_on_the_prompts_that_are_not_tested():
    seen, unseen = halves(5)
    assert (seen, unseen) == ([0, 2, 4], [1, 3])
    scores = torch.zeros(4, 2, 3)
    scores[[0, 2], 1, 2] = 1.0
    scores[[1, 3], 0, 1] = 5.0
    assert top(scores[halves(4)[0]], 1) == {Neuron(1, 2)}


# --- activators --------------------------------------------------------------------------------


def request(subject="w6 w7", true="w8"):
    return EditRequest("t/1", "fact", "P1", subject, "w9 {} w10", true, "w11", ".")


def test_texts_hold_the_parts_that_they_name():
    text_of = dict(zip(PARTS, texts_of(request()), strict=True))
    assert text_of["subject"] == "w6 w7"
    assert text_of["subject+relation"] == "W9 w6 w7 w10"
    assert text_of["relation+object"] == "W9 it w10 w8"
    assert text_of["all"] == "W9 w6 w7 w10 w8"


def test_a_neuron_that_fires_for_one_word_fires_for_the_parts_that_hold_it():
    lm = tiny_model("gpt2")
    at_answer = torch.ones(3, lm.d_mlp)
    readings = firing(lm, request(), [request("w12", "w13")], frozenset({Neuron(0, 4)}), at_answer)
    assert [reading.parts for reading in readings] == list(PARTS)
    with torch.no_grad():
        keys = lm.neurons(torch.tensor([lm.tokens.encode("w6 w7").ids]), [0])[0][0, :, 4]
        other = lm.neurons(torch.tensor([lm.tokens.encode("w12").ids]), [0])[0][0, :, 4]
    assert readings[0].own == pytest.approx(float(keys.max()))
    assert readings[0].other == pytest.approx(float(other.max()))


def test_special_tokens_are_not_read():
    lm = tiny_model("bert")
    read = greatest(lm, ["w6"], [Neuron(0, 1)], np.array([1.0]))
    keys = lm.neurons(torch.tensor([lm.tokens.encode("w6").ids]), [0])[0][0, :, 1]
    assert read[0, 0] == pytest.approx(float(keys[1]))


def test_a_text_of_special_tokens_alone_counts_nowhere_and_is_said():
    """Unknown words: their greatest value over no token was -inf, and p = 0."""
    lm = tiny_model("bert")
    assert lm.tokens.encode("zzz").ids[1] in lm.tokens.special_ids
    read = greatest(lm, ["zzz", "w6"], [Neuron(0, 1)], np.array([1.0]))
    assert np.isnan(read[0, 0])
    assert np.isfinite(read[1, 0])
    at_answer = torch.ones(3, lm.d_mlp)
    asked = request("zzz"), [request("w12", "w13"), request("zzz", "w14")]
    readings = firing(lm, *asked, frozenset({Neuron(0, 4)}), at_answer)
    keys = lm.neurons(torch.tensor([lm.tokens.encode("w12").ids]), [0])[0][0, :, 4]
    assert np.isnan(readings[0].own)
    assert readings[0].other == pytest.approx(float(keys[1:-1].max()))
    assert [reading.unread for reading in readings] == [2, 0, 0, 0, 0, 0, 0]
    cases = [fact(i, "P1", name, f"w{60 + i}", "w57") for i, name in enumerate(("zzz", "w6", "w7"))]
    section = activators.run(Material(lm, cases, replace(SETTINGS, facts=3)))
    own, others = section.tables[0].rows[0][1:3]
    assert isinstance(own, Interval)
    assert isinstance(others, Interval)
    assert (own.n, others.n) == (2, 3)
    assert np.isfinite([*own, *others]).all()
    # as the subject alone: of itself, and as another fact of the two others
    assert "such as [UNK], which count nowhere: 3." in " ".join(section.notes)


# --- groups ------------------------------------------------------------------------------------


def pair(number, subject, prompt, suffix, good, bad, relation="determiner_noun_agreement_2"):
    edit_request = EditRequest(f"t/{number}", "pair", relation, subject, prompt, good, bad, suffix)
    return Case(edit_request, (), subject, "t")


def test_pairs_are_grouped_by_determiner_else_by_number():
    cases = [
        pair(0, "book", "She likes", "{}.", "this", "these"),
        pair(1, "cup", "She sees", "{}.", "this", "these"),
        pair(2, "cups", "She sees", "{}.", "those", "that"),
        pair(
            3,
            "planes",
            "Few {}",
            "malls.",
            "cook",
            "cooks",
            "regular_plural_subject_verb_agreement_1",
        ),
        pair(4, "this", "She sees {}", ".", "cup", "cups", "determiner_noun_agreement_1"),
    ]
    groups = groups_of(cases)
    assert [(g.id, len(g.queries)) for g in groups] == [
        ("determiner_noun_agreement_2/this", 2),
        ("determiner_noun_agreement_2/those", 1),
        ("regular_plural_subject_verb_agreement_1/plural", 1),
        ("determiner_noun_agreement_1/this", 1),
    ]
    assert set(groups[0].clusters) == {"book", "cup"}
    assert groups[-1].clusters == ("cup",)
    assert class_of(cases[0].request) == "this"
    assert len(gap_prompts(cases, causal=False)) == 3
    # "She sees {}." twice, of a cup and of cups: to a causal model one prompt
    assert len(gap_prompts(cases, causal=True)) == 2


def test_profiles_attribute_what_fits_and_rank_all_neurons():
    lm = tiny_model("gpt2")
    edit_request = EditRequest(
        "t/1",
        "fact",
        "P",
        "w6",
        "w9 {}",
        "w8",
        "w11",
        ".",
        queries=(
            Query(Cloze("w9 w6"), "w8"),
            Query(Cloze("w9 w6"), "unheard"),
            Query(Cloze("w7"), "w8"),
        ),
    )
    (group,) = groups_of([Case(edit_request, (), "w6", "t")])
    (profile,) = profiles(lm, [group])
    assert profile.kept == (0, 2)
    assert profile.clusters == ["0", "2"]
    assert profile.scores.shape == (2, 3, lm.d_mlp)
    mean = profile.scores.double().mean(0)
    assert mean[profile.ranked[0]] == mean.max()
    assert len(profile.ranked) == 192
    assert profile.select().neurons
    assert not profiles(lm, groups_of([]))


ASKED = (
    (Cloze("w9 w6"), "w8"),
    (Cloze("", "w6"), "w8"),
    (Cloze("w9 w6", "w7"), "w8"),  # the same as the first one to a causal model
    (Cloze("w9 w6"), "w11"),
    (Cloze("", "w9 w6"), "w8"),
    (Cloze("w7"), "unheard"),
    (Cloze("w9 w6"), "w8"),  # the same to any
    (Cloze("w9 w7"), "w8"),
)


@pytest.mark.parametrize(
    ("family", "kept", "left_out"),
    [
        ("gpt2", (0, 3, 7), {UNFIT: 1, NOTHING_BEFORE: 2, SAME: 2}),
        ("llama", (0, 3, 7), {UNFIT: 1, NOTHING_BEFORE: 2, SAME: 2}),
        ("bert", (0, 1, 2, 3, 4, 7), {UNFIT: 1, SAME: 1}),
    ],
)
def test_a_prompt_counts_once_and_with_something_to_predict_it_from(family, kept, left_out):
    lm = tiny_model(family)
    queries = tuple(Query(cloze, answer) for cloze, answer in ASKED)
    clusters = tuple(map(str, range(len(queries))))
    group = Group("t/w8", "pair", "t", "w8", queries, clusters, ())
    prompts = encode_group(lm, group)
    assert (prompts.kept, dict(prompts.left_out)) == (kept, left_out)
    assert len(set(prompts.encoded)) == len(kept)
    (profile,) = profiles(lm, [group])
    assert profile.clusters == [clusters[i] for i in kept]
    assert len(profile.attributions) == len(kept)
    only_first = replace(group, queries=queries[1:2])
    assert len(profiles(lm, [only_first])) == (family == "bert")
