"""Causal tracing: exact against whole runs, state by state; what noise cannot reach; what adds."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import EditRequest
from kn_bench.localise.corruption import (
    TracePrompt,
    corrupt,
    embedding_std,
    noise,
)
from kn_bench.localise.patching import Patch, PatchedRun, branched, restore
from kn_bench.localise.token_positions import by_role, peak, roles, trace_prompt, trace_study
from kn_bench.localise.tracing import KINDS, Trace, trace, windowed
from kn_bench.measure.encoding import Unencodable
from kn_bench.measure.statistics import Interval
from kn_bench.model.attention import attention_output
from tests.tiny_models import FAMILIES, WINDOWED, tiny_model

ADDING = set(FAMILIES) - {"gemma2", "gemma3_text", "olmo2"}
ADDING -= {"bert", "roberta", "electra", "albert", "distilbert"}
"""Families whose layers add what attention and MLP give; the others normalise in between."""


def prompt_of(lm, length=7, subject=(2, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 64, (length,), generator=generator).tolist()
    position = length - 1
    if not lm.is_causal:
        position = length - 2
        ids[position] = lm.tokens.mask_id
    return TracePrompt(tuple(ids), position, subject, answer=9)


def noise_of(lm, prompt, samples=2):
    return noise(prompt, 0.5, lm.input_embeddings.shape[1], samples=samples)


def whole_run(lm, prompt, added, patches):
    """P(answer), clean row first, by one run of the whole model with hooks: as published."""
    ids = torch.tensor([prompt.ids] * (1 + len(added)))
    handles = []

    def corrupted(module, _, embedded):
        embedded = embedded.clone()
        embedded[1:, slice(*prompt.subject)] += added.to(embedded.dtype)
        return embedded

    handles.append(lm.hf.get_input_embeddings().register_forward_hook(corrupted))
    for patch in patches:
        module = {
            "hidden": lambda layer: lm.layers[layer],
            "mlp": lm.site,
            "attention": lambda layer: attention_output(lm, layer),
        }[patch.kind](patch.layer)

        def put(_, __, output, token=patch.token):
            state = output[0] if isinstance(output, tuple) else output
            state = state.reshape(*ids.shape, -1).clone()
            state[1:, token] = state[0, token]
            if isinstance(output, tuple):
                return (state, *output[1:])
            return state.reshape(output.shape)

        handles.append(module.register_forward_hook(lm.own_call(patch.layer, put)))
    with torch.no_grad():
        logits = lm.hf(input_ids=ids).logits[:, prompt.position]
    for handle in handles:
        handle.remove()
    return logits.softmax(-1)[:, prompt.answer]


@pytest.mark.parametrize("family", [*FAMILIES, *WINDOWED])
def test_every_state_of_every_family_is_restored_as_in_a_whole_run(family):
    lm = tiny_model(family)
    prompt = prompt_of(lm)
    added = noise_of(lm, prompt)
    (trace_of_prompt,) = trace(lm, [prompt], [added], window=2)
    nothing = whole_run(lm, prompt, added, [])
    assert trace_of_prompt.clean == pytest.approx(float(nothing[0]), rel=1e-10)
    assert trace_of_prompt.corrupted == pytest.approx(float(nothing[1:].mean()), rel=1e-10)
    for k, kind in enumerate(KINDS):
        for token in (1, 2, 3, prompt.position):
            for layer in range(lm.n_layers):
                patches = windowed(kind, layer, token, lm.n_layers, 2)
                expected = whole_run(lm, prompt, added, patches)[1:].mean()
                got = trace_of_prompt.scores[k, token, layer]
                assert torch.isclose(got, expected, rtol=1e-9, atol=1e-13), (kind, token, layer)


@pytest.mark.parametrize("family", sorted(ADDING))
def test_the_traced_contributions_are_what_a_layer_adds(family):
    lm = tiny_model(family)
    prompt = prompt_of(lm)
    states = corrupt(lm, [prompt], [noise_of(lm, prompt)])
    for layer in range(lm.n_layers - 1):
        change = states.run.layer_inputs[layer + 1] - states.run.layer_inputs[layer]
        assert torch.allclose(change, states.attention[layer] + states.mlp[layer], atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "bloom"])
def test_sets_of_states_at_several_tokens_and_layers(family):
    lm = tiny_model(family)
    prompts = [prompt_of(lm, seed=seed) for seed in range(2)]
    added = [noise_of(lm, prompt) for prompt in prompts]
    sets = [
        (Patch("hidden", 0, 3), Patch("hidden", 1, 5)),
        (Patch("mlp", 1, 2), Patch("attention", 2, prompts[0].position), Patch("hidden", 2, 4)),
        (Patch("hidden", 2, prompts[0].position),),
    ]
    states = corrupt(lm, prompts, added)
    runs = [PatchedRun(number, patches) for patches in sets for number in range(2)]
    restored = restore(states, runs)
    for run, got in zip(runs, restored, strict=True):
        expected = whole_run(lm, prompts[run.prompt], added[run.prompt], run.patches)[1:]
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-13)


PATCHES = st.builds(
    Patch,
    kind=st.sampled_from(KINDS),
    layer=st.integers(0, 2),
    token=st.sampled_from([3, 4]),
    clean=st.booleans(),
)
# one value a state: what is set twice has no one value
SETS = st.lists(PATCHES, min_size=1, max_size=4, unique_by=lambda patch: patch[:3])


@settings(max_examples=40)
@given(sets=st.lists(SETS, min_size=1, max_size=8))
def test_runs_that_branch_off_each_other_equal_runs_made_alone(sets):
    lm = tiny_model("gpt2")
    prompts = [prompt_of(lm, seed=seed) for seed in range(2)]
    states = corrupt(lm, prompts, [noise_of(lm, prompt) for prompt in prompts])
    runs = [PatchedRun(i % 2, tuple(patches)) for i, patches in enumerate(sets)]
    together = restore(states, runs)
    apart = torch.cat([restore(states, [run]) for run in runs])
    assert torch.allclose(together, apart, rtol=1e-11)


@given(sets=st.lists(SETS, min_size=1, max_size=20))
def test_what_runs_have_in_common_is_run_once(sets):
    runs = {PatchedRun(i % 2, tuple(sorted(patches))) for i, patches in enumerate(sets)}
    branches = branched(list(runs), 3)
    assert {branch.run for branch in branches} == runs
    assert [branch.join for branch in branches] == sorted(branch.join for branch in branches)
    prefixes = {
        (run.prompt, layer, tuple(patch for patch in run.patches if patch.depth <= layer))
        for run in runs
        for layer in range(3)
    }
    different = sum(bool(patches) for _, _, patches in prefixes)
    assert sum(3 - branch.join for branch in branches) == different
    for run, join, stem in branches:
        common = () if stem is None else branches[stem].run.patches
        below = [tuple(p for p in which if p.depth < join) for which in (run.patches, common)]
        assert below[0] == below[1]
        assert stem is None or (
            branches[stem].join < join and branches[stem].run.prompt == run.prompt
        )


def test_windows_that_begin_at_one_layer_share_what_comes_before_they_end():
    runs = [PatchedRun(0, windowed("mlp", layer, 3, 12, 10)) for layer in range(12)]
    layers = sum(12 - min(patch.layer for patch in run.patches) for run in runs)
    assert layers == 123
    assert sum(12 - branch.join for branch in branched(runs, 12)) == 88


def test_batches_of_any_size_give_the_same(monkeypatch):
    lm = tiny_model("gpt2")
    prompts = [prompt_of(lm, length, seed=length) for length in (6, 7, 6)]
    added = [noise_of(lm, prompt) for prompt in prompts]
    together = trace(lm, prompts, added)
    monkeypatch.setattr(lm.batcher, "memory", 1)
    apart = trace(lm, prompts, added)
    for left, right, prompt, its in zip(together, apart, prompts, added, strict=True):
        (alone,) = trace(lm, [prompt], [its])
        assert left.scores.shape == (3, len(prompt.ids), 3)
        assert torch.allclose(left.scores, right.scores, rtol=1e-11)
        assert torch.allclose(left.scores, alone.scores, rtol=1e-11)


def test_nothing_before_the_subject_matters_in_a_causal_model():
    lm = tiny_model("llama")
    prompt = prompt_of(lm)
    (trace_of_prompt,) = trace(lm, [prompt], [noise_of(lm, prompt)])
    assert torch.equal(
        trace_of_prompt.indirect_effects[:, :2].abs().max(), torch.tensor(0.0).double()
    )
    assert (trace_of_prompt.indirect_effects[:, 2:].abs() > 1e-9).any()


def test_the_last_state_before_the_answer_restores_all():
    for family in ("gpt2", "bert"):
        lm = tiny_model(family)
        prompt = prompt_of(lm)
        (trace_of_prompt,) = trace(lm, [prompt], [noise_of(lm, prompt)])
        assert float(trace_of_prompt.scores[0, prompt.position, -1]) == pytest.approx(
            trace_of_prompt.clean, rel=1e-12
        )


def test_within_a_pair_the_preference_is_followed():
    lm = tiny_model("gpt2")
    prompt = prompt_of(lm)
    pair = dataclasses.replace(prompt, rival=11)
    added = noise_of(lm, prompt)
    (good,), (bad,) = (
        trace(lm, [dataclasses.replace(prompt, answer=token)], [added]) for token in (9, 11)
    )
    (both,) = trace(lm, [pair], [added])
    assert both.clean == pytest.approx(good.clean / (good.clean + bad.clean))
    # one sample at a time: a mean of ratios is no ratio of means
    patches = windowed("hidden", 1, 3, 3, 1)
    shares = [
        restore(corrupt(lm, [p], [added]), [PatchedRun(0, patches)])[0]
        for p in (pair, prompt, dataclasses.replace(prompt, answer=11))
    ]
    assert torch.allclose(shares[0], shares[1] / (shares[1] + shares[2]), rtol=1e-10)


def test_frozen_states_sever_a_path():
    """With all that follows it frozen, a restored state changes nothing; its own freezing, too."""
    lm = tiny_model("gpt2")
    prompt = prompt_of(lm)
    states = corrupt(lm, [prompt], [noise_of(lm, prompt)])
    own = (Patch("mlp", 1, 3), *(Patch("hidden", 1, t, clean=False) for t in range(2, 7)))
    (restored,) = restore(states, [PatchedRun(0, own)])
    assert torch.allclose(restored, states.probability[0, 1:], rtol=1e-12)


def test_noise_depends_on_the_prompt_and_the_seed_alone():
    lm = tiny_model("gpt2")
    left, right = prompt_of(lm), prompt_of(lm, seed=1)
    assert torch.equal(noise(left, 1.0, 16), noise(left, 1.0, 16))
    assert not torch.equal(noise(left, 1.0, 16), noise(left, 1.0, 16, seed=1))
    assert not torch.equal(noise(left, 1.0, 16), noise(right, 1.0, 16))
    assert noise(left, 3.0, 4096, samples=20).std() == pytest.approx(3.0, rel=0.02)


def test_embeddings_have_the_spread_that_they_have():
    lm = tiny_model("gpt2")
    rows = lm.hf.transformer.wte.weight[[5, 6, 7]]
    assert embedding_std(lm, [5, 6, 7]) == pytest.approx(float(rows.std()), rel=1e-6)


def test_a_subject_outside_of_the_prompt_is_refused():
    with pytest.raises(
        ValueError, match="subject 1 to 3, answer read at 1: expected both within the 2"
    ):
        TracePrompt((1, 2), 1, (1, 3), 0)


def test_windows_are_cut_as_published():
    layers = [patch.layer for patch in windowed("mlp", 5, 0, 12, 10)]
    assert layers == list(range(10))
    assert [p.layer for p in windowed("attention", 2, 0, 12, 3)] == [1, 2, 3]
    assert windowed("hidden", 5, 0, 12, 10) == (Patch("hidden", 5, 0),)


# --- roles -------------------------------------------------------------------------------------


def test_every_token_has_a_role():
    prompt = TracePrompt((1,) * 9, 8, (2, 5), 0)
    assert roles(prompt) == [
        *("before", "before", "first", "middle", "last", "next", "further", "further", "answer")
    ]
    masked = TracePrompt((1,) * 5, 0, (2, 3), 0)
    assert roles(masked) == ["answer", "before", "last", "next", "further"]


def trace_of(effects, subject=(1, 3), low=0.1):
    scores = torch.tensor(effects, dtype=torch.float64)[None] + low
    prompt = TracePrompt((7,) * len(effects), len(effects) - 1, subject, 0)
    return Trace(prompt, ("hidden",), scores, 0.9, low)


def test_averages_by_role_count_each_prompt_once():
    first = trace_of([[0.0, 0.0], [0.1, 0.2], [0.4, 0.2], [0.2, 0.6]])
    two = trace_of([[0.0, 0.0], [0.3, 0.1], [0.1, 0.1], [0.3, 0.3], [0.6, 0.8]], (1, 4), low=0.3)
    effects = by_role([first, two], ["a", "b"])
    mean = {(e.role, e.layer): [e.effect.mean, e.effect.n] for e in effects.effects}
    assert mean["first", 0] == pytest.approx([0.2, 2])
    assert mean["middle", 1] == pytest.approx([0.1, 1])
    assert mean["last", 0] == pytest.approx([0.35, 2])
    assert mean["answer", 1] == pytest.approx([0.7, 2])
    assert ("next", 0) not in mean
    assert effects.total.mean == pytest.approx((0.8 + 0.6) / 2)
    highest = peak(effects.effects)
    assert highest is not None
    assert (highest.role, highest.layer) == ("answer", 1)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[0.0, 0.0], [0.1, 0.2], [0.4, 0.2], [0.3, 0.6]], ("last", 0)),
        ([[0.0, 0.0], [0.1, 0.2], [0.2, 0.2], [0.3, 0.6]], ("answer", 0)),
        ([[0.0, 0.0], [0.1, 0.2], [0.4, 0.4 - 1e-7], [0.3, 0.6]], ("last", None)),
        ([[0.0, 0.0], [0.1, 0.2], [0.4, 0.4 - 1e-5], [0.3, 0.6]], ("last", 0)),
        ([[0.0, 0.0], [0.1, 0.2], [0.1, 0.2], [0.6, 0.6]], ("answer", None)),
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], (None, None)),
        ([[0.0, 0.0], [0.4, 0.1], [0.4, 0.2], [0.3, 0.6]], (None, 0)),
    ],
)
def test_layers_that_regain_as_much_are_not_told_apart(scores, expected):
    """The last layer's state where the answer is read is the output itself: it is no peak."""
    effects = by_role([trace_of(scores)], ["a"]).effects
    highest = peak(effects, output=False)
    assert highest is not None
    assert (highest.role, highest.layer) == expected
    assert peak([e for e in effects if (e.role, e.layer) == ("answer", 1)], output=False) is None


def test_a_section_names_no_layer_where_the_subject_ends_the_prompt():
    """What is restored there is all that was corrupted, at whichever layer."""
    from kn_bench.study.sections import tracing

    lm = tiny_model("gpt2")
    prompts = (prompt_of(lm, length=5, subject=(4, 5), seed=seed) for seed in range(9))
    studies = (trace_study(lm, [prompt], ["a"], window=1, samples=2) for prompt in prompts)
    study = next(study for study in studies if study.total.mean > 0.001)
    side = tracing.TracedTask("fact", (), study, 1, 0)
    (told,) = tracing._findings(side)
    assert told.startswith("On facts (1 prompt) the noise takes")
    assert re.search(r"residual stream where the answer is read, layer – \(\d", told)
    *before, late = tracing._peaks([side]).rows[0]
    assert before == ["facts", "residual stream", None, None, None]
    assert isinstance(late, Interval)
    assert late.mean == pytest.approx(study.total.mean, abs=1e-6)


def test_intervals_of_role_effects_cover_at_the_stated_rate():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(40):
        noise_ = 0.1 * torch.randn(30, 3, 2, generator=generator)
        traces = [trace_of((0.3 + drawn).tolist(), (0, 2)) for drawn in noise_]
        effects = by_role(traces, [str(i) for i in range(30)])
        covered += sum(e.effect.low <= 0.3 <= e.effect.high for e in effects.effects)
    assert 0.9 < covered / 240 < 0.99


def request(prompt, suffix=""):
    return EditRequest("t/1", "fact", "P", "w8 w9", prompt, "w11", "w12", suffix)


def test_subjects_are_found_where_they_stand():
    causal = trace_prompt(tiny_model("gpt2"), request("w7 {} w10"))
    assert isinstance(causal, TracePrompt)
    assert (causal.ids, causal.subject) == ((7, 8, 9, 10), (1, 3))
    assert (causal.position, causal.answer) == (3, 11)
    lm = tiny_model("bert")
    masked = trace_prompt(lm, request("w7 w10", "w13 {}"))
    assert isinstance(masked, TracePrompt)
    assert masked.ids == (1, 7, 10, lm.tokens.mask_id, 13, 8, 9, 2)
    assert (masked.subject, masked.position) == ((5, 7), 3)
    after = trace_prompt(tiny_model("gpt2"), request("w7 w10", "{}"))
    assert isinstance(after, Unencodable)
    pair = trace_prompt(lm, dataclasses.replace(request("w7 {}", "w13"), task="pair"))
    assert isinstance(pair, TracePrompt)
    assert (masked.rival, pair.answer, pair.rival) == (None, 11, 12)


def test_a_study_traces_all_prompts_with_three_standard_deviations():
    lm = tiny_model("gpt2")
    prompts = [prompt_of(lm, length, seed=length) for length in (6, 7)]
    study = trace_study(lm, prompts, ["a", "b"], samples=3, window=2)
    tokens = [t for left in prompts for t in left.ids[2:4]]
    std = 3 * embedding_std(lm, tokens)
    expected = trace(lm, prompts, [noise(p, std, 16, samples=3) for p in prompts], window=2)
    for left, right in zip(study.traces, expected, strict=True):
        assert torch.equal(left.scores, right.scores)
    assert not trace_study(lm, [], []).effects
