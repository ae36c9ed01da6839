"""ROME: the optimisation against a plain one, the update in closed form, many requests at once."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.cases.case import EditRequest
from kn_bench.editing.applying import in_place
from kn_bench.editing.edit import LowRankEdit, NotApplicable, norm
from kn_bench.editing.rome import remembered
from kn_bench.editing.rome.encoding import encode_problem
from kn_bench.editing.rome.problem import ValueProblem, ValueRow, ValueSettings
from kn_bench.editing.rome.update import rank_one
from kn_bench.editing.rome.value import optimise_values
from kn_bench.editing.settings import SettingError, settings_for
from kn_bench.edits.rome import Rome, RomeSettings
from kn_bench.model.corpus import Texts
from kn_bench.model.tokens import Tokens
from tests.shares import mostly_slow
from tests.tiny_models import FAMILIES, ROUNDED, tiny_model, word_tokenizer

CAUSAL = [family for family in FAMILIES if tiny_model(family).is_causal]
SETTINGS = ValueSettings(v_lr=0.1, v_num_grad_steps=8, v_weight_decay=0.5, stop_loss=1.0)
PREFIXES = ("w20 w21 w22. ".replace(".", " w23"), "w30 w31 w32 w33 w34 w35 ")
CORPUS = Texts([" ".join(f"w{5 + (7 * i + i * j * j) % 55}" for j in range(9)) for i in range(60)])


def request(index=0, subject="w10 w11", prompt="w12 {} w13 w14", new="w15"):
    return EditRequest(
        id=f"toy/{index}",
        task="fact",
        relation="any",
        subject=subject,
        prompt=prompt,
        target_true="w16",
        target_new=new,
    )


REQUESTS = (
    request(0),
    request(1, "w17", "{} w18 w19 w20 w21 w22", "w23 w24"),
    request(2, "w25 w26 w27", "w28 w29 {}", "w30"),
    request(3, "w31", "w5 w6 {} w7", "w32 w33 w34"),
)


def problems(lm, requests=REQUESTS):
    return [encode_problem(each, lm.tokens, PREFIXES) for each in requests]


def small(**changes):
    chosen = RomeSettings(
        layer=1,
        v_lr=0.1,
        v_num_grad_steps=8,
        context_template_length_params=((3, 2), (5, 1)),
        mom2_adjustment=False,
    )
    return replace(chosen, **changes)


def edits_of(lm, chosen, requests=REQUESTS, corpus=None) -> list[LowRankEdit]:
    edits = Rome(lm, chosen, corpus=corpus).edit(requests)
    assert all(isinstance(edit, LowRankEdit) for edit in edits)
    return [edit for edit in edits if isinstance(edit, LowRankEdit)]


@pytest.fixture(autouse=True)
def _fresh_memory():
    """Other tests' models are made anew, and with them what they remember."""
    tiny_model.cache_clear()


# -- the optimisation --------------------------------------------------------------------------


def brute_force(lm, layer, problem, chosen):
    """One request, one row at a time through the whole model: the definition, read aloud."""

    def hidden(row, delta):
        here = (torch.arange(len(row.ids)) == row.subject)[:, None]

        def add(_, keys, values):
            seen.append(values.reshape(len(row.ids), -1)[row.subject].detach())
            return values + (here * delta).reshape(values.shape)

        with lm.site_hooks(add, [layer]):
            return lm.logits(lm.hidden(lm.tensor([row.ids]), use_cache=False).last_hidden_state)[0]

    seen: list[torch.Tensor] = []
    delta = torch.zeros(lm.d_model, dtype=lm.dtype, requires_grad=True)
    initial = hidden(problem.anchor, delta.detach())[problem.anchor.subject].log_softmax(0)
    hidden(problem.contexts[0], delta.detach())
    v_0 = seen[-1]
    adam = torch.optim.Adam([delta], lr=chosen.v_lr)
    losses = []
    for step in range(chosen.v_num_grad_steps):
        nll = torch.zeros((), dtype=lm.dtype)
        for row in problem.contexts:
            log_p = hidden(row, delta).log_softmax(1)
            each = [-log_p[at, target] for at, target in zip(row.reads, row.targets, strict=True)]
            nll = nll + sum(each) / len(each) / len(problem.contexts)
        log_q = hidden(problem.anchor, delta)[problem.anchor.subject].log_softmax(0)
        kl = (log_q.exp() * (log_q - initial)).sum()
        loss = nll + chosen.kl_factor * kl
        loss = loss + chosen.v_weight_decay * delta.norm() / v_0.norm() ** 2
        losses.append(loss.item())
        if loss < chosen.stop_loss or step == chosen.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = chosen.clamp_norm_factor * v_0.norm()
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    return delta.detach(), losses


PLACES = [*((family, 1) for family in CAUSAL), ("gpt2", 0), ("llama", 0)]


@pytest.mark.parametrize(
    "place", mostly_slow(PLACES, fast=[("gpt2", 0), ("gpt2", 1), ("llama", 1), ("gemma2", 1)])
)
def test_the_optimised_delta_equals_a_plain_optimisation(place):
    family, layer = place
    lm = tiny_model(family)
    exact = family not in ROUNDED
    optimised = optimise_values(lm, layer, problems(lm), SETTINGS)
    for value, problem in zip(optimised, problems(lm), strict=True):
        delta, losses = brute_force(lm, layer, problem, SETTINGS)
        assert value.losses.tolist() == pytest.approx(losses, abs=1e-8 if exact else 1e-4)
        error = (value.delta - delta).norm() / delta.norm()
        assert error < (1e-7 if exact else 1e-2)


def test_requests_leave_the_batch_at_their_own_step():
    lm = tiny_model("gpt2")
    fast = replace(SETTINGS, v_lr=0.5, v_num_grad_steps=60, stop_loss=3.5, clamp_norm_factor=50)
    optimised = optimise_values(lm, 0, problems(lm), fast)
    assert len({len(value.losses) for value in optimised}) > 1
    for value in optimised:
        assert all(loss >= 3.5 for loss in value.losses[:-1].tolist())
        assert value.losses[-1] < 3.5 or len(value.losses) == 60


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_progress_counts_the_facts_of_all_batches(memory, monkeypatch):
    """A calibration reckons what is left from the share done: of all, not of the first batch."""
    lm = tiny_model("gpt2")
    monkeypatch.setattr(lm.batcher, "memory", memory)
    tasks: list[tuple[str, float | None]] = []
    done: list[float] = []

    @contextmanager
    def task(what, total=None):
        tasks.append((what, total))
        yield done.append

    monkeypatch.setattr(lm.batcher, "progress", SimpleNamespace(task=task))
    optimise_values(lm, 1, problems(lm), SETTINGS)
    assert tasks == [("editing, fact", len(REQUESTS))]
    assert sum(done) == pytest.approx(len(REQUESTS))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_one_at_a_time_gives_the_same_update_to_1e4_in_float32(family, monkeypatch):
    lm = tiny_model(family, torch.float32)
    together = optimise_values(lm, 1, problems(lm), SETTINGS)
    monkeypatch.setattr(lm.batcher, "memory", 1)
    small_batches = optimise_values(lm, 1, problems(lm), SETTINGS)
    for many, alone in zip(together, small_batches, strict=True):
        a, b = (rank_one(value, 1, solver=None).update for value in (many, alone))
        assert float((a.u @ a.v - b.u @ b.v).norm() / (b.u @ b.v).norm()) < 1e-4


@given(
    c=st.floats(0.05, 2.0),
    lr=st.floats(0.05, 3.0),
    which=st.integers(0, len(REQUESTS) - 1),
)
@settings(max_examples=8, deadline=None)
def test_delta_stays_in_its_ball(c, lr, which):
    lm = tiny_model("llama")
    chosen = replace(SETTINGS, clamp_norm_factor=c, v_lr=lr, stop_loss=0.0)
    (value,) = optimise_values(lm, 0, problems(lm)[which : which + 1], chosen)
    assert float(value.delta.norm()) <= c * float(value.outputs[0].norm()) * (1 + 1e-12)


def test_one_gradient_step_makes_no_update():
    lm = tiny_model("gpt2")
    for value in optimise_values(lm, 0, problems(lm), replace(SETTINGS, v_num_grad_steps=1)):
        assert not value.delta.any()
        assert len(value.losses) == 1


def test_the_model_is_left_alone():
    lm = tiny_model("gpt2")
    before = lm.parameter_hash()
    lm.hf.requires_grad_(True)
    try:
        optimise_values(lm, 1, problems(lm), SETTINGS)
        assert all(p.requires_grad and p.grad is None for p in lm.hf.parameters())
    finally:
        lm.hf.requires_grad_(False)
    assert lm.parameter_hash() == before
    optimise_values(lm, 1, problems(lm), SETTINGS)
    assert not any(p.requires_grad for p in lm.hf.parameters())


# -- reading the text --------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("one", REQUESTS)
def test_the_subjects_index_ends_the_subject(bos, one):
    tokens = Tokens(word_tokenizer(causal=True, bos=bos), "causal")
    problem = encode_problem(one, tokens, PREFIXES)
    assert [row.ids[0] == 1 for row in problem.rows] == [bos] * 4
    for row in problem.rows:
        upto = tokens.decode(row.ids[: row.subject + 1])
        assert upto.endswith(one.subject)
    for row in problem.contexts:
        assert tokens.decode(row.targets) == one.target_new
        assert tokens.decode(row.ids[row.context :]).startswith(one.prompt.split("{}")[0].strip())
        assert row.reads == tuple(range(len(row.ids) - len(row.targets), len(row.ids)))
        assert (*row.ids, row.targets[-1])[-len(row.targets) :] == row.targets
    assert tokens.decode(problem.contexts[1].ids).startswith(PREFIXES[0].strip())
    assert [row.context for row in problem.rows] == [0, 4 + bos, 6 + bos, 0]


def test_a_subject_after_the_answer_is_not_applicable():
    after = replace(REQUESTS[0], prompt="w12", suffix="w13 {} .")
    with pytest.raises(NotApplicable, match="the subject must come before it"):
        encode_problem(after, tiny_model("gpt2").tokens, ())
    edits = Rome(tiny_model("gpt2"), small()).edit([REQUESTS[0], after])
    assert isinstance(edits[0], LowRankEdit)
    assert isinstance(edits[1], NotApplicable)


@pytest.mark.parametrize("words", [20, 200])
def test_a_prompt_that_does_not_fit_after_a_context_is_not_applicable(words):
    """It ended the unit with an IndexError of the position embedding."""
    tokens = tiny_model("gpt2").tokens
    context = " ".join(["w1"] * words) + " "
    if words < tokens.max_length:
        assert len(encode_problem(request(), tokens, (context,)).contexts) == 2
        return
    sentence = f"after a generated context has .* tokens, and the model takes {tokens.max_length}"
    with pytest.raises(NotApplicable, match=sentence):
        encode_problem(request(), tokens, (context,))


def test_positions_out_of_order_are_refused():
    with pytest.raises(ValueError, match="the subject must come before the answer"):
        ValueRow((1, 2, 3), 2, (1,), (3,))


# -- the method --------------------------------------------------------------------------------


def test_a_masked_model_is_not_applicable():
    with pytest.raises(NotApplicable, match="ROME edits causal models: the subject must come bef"):
        Rome(tiny_model("bert"), small()).edit(REQUESTS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_notes_say_what_the_edit_is(family):
    lm = tiny_model(family)
    for edit in edits_of(lm, small()):
        (update,) = edit.updates
        change = update.u @ update.v
        assert edit.notes["relative_norm"] == pytest.approx(
            float(change.norm() / lm.weight(1).norm()), rel=1e-5
        )
        assert edit.notes["passes"] == 8
        assert float(edit.notes["final_loss"]) > 0
        assert edit.notes["denominator"] != 0
        assert norm(edit) == pytest.approx(float(change.norm()))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_half_precision_weights_get_an_update_in_float32(family):
    whole, half = tiny_model(family, torch.float32), tiny_model(family, torch.bfloat16)
    for exact, rough in zip(edits_of(whole, small()), edits_of(half, small()), strict=True):
        assert rough.updates[0].u.dtype == torch.float32
        assert float(rough.notes["final_loss"]) == pytest.approx(
            float(exact.notes["final_loss"]), rel=0.2
        )


def test_the_weight_moves_by_the_update_once():
    lm = tiny_model("llama")
    (edit,) = edits_of(lm, small(), REQUESTS[:1])
    before = lm.weight(1).clone()
    with in_place(lm, edit):
        moved = (lm.weight(1) - before).norm()
    assert float(moved) == pytest.approx(norm(edit), rel=1e-9)
    assert torch.equal(lm.weight(1), before)


def test_the_same_seed_gives_the_same_update_bit_for_bit():
    lm = tiny_model("gpt2", torch.float32)

    def made(seed):
        lm.memo.clear()
        torch.manual_seed(seed)  # the process-wide generator plays no part
        return [edit.updates[0] for edit in edits_of(lm, small())]

    for first, second in zip(made(0), made(1), strict=True):
        assert torch.equal(first.u, second.u)
        assert torch.equal(first.v, second.v)
    other = edits_of(lm, small(context_seed=1))
    assert not torch.equal(other[0].updates[0].u, made(0)[0].u)


def test_order_and_earlier_edits_do_not_matter():
    lm = tiny_model("gpt2")
    forward = edits_of(lm, small())
    lm.memo.clear()
    backward = edits_of(lm, small(), REQUESTS[::-1])[::-1]
    again = edits_of(lm, small(), REQUESTS[1:2])[0]
    for left, right in zip(forward, backward, strict=True):
        torch.testing.assert_close(left.updates[0].v, right.updates[0].v, rtol=1e-8, atol=1e-10)
    assert torch.equal(again.updates[0].v, backward[1].updates[0].v)


def test_two_models_do_not_share_what_is_remembered():
    first, second = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    alone = edits_of(second, small(mom2_adjustment=True), REQUESTS[:1], CORPUS)[0]
    second.memo.clear()
    edits_of(first, small(mom2_adjustment=True), REQUESTS[:1], CORPUS)
    after = edits_of(second, small(mom2_adjustment=True), REQUESTS[:1], CORPUS)[0]
    assert torch.equal(alone.updates[0].u, after.updates[0].u)
    assert torch.equal(alone.updates[0].v, after.updates[0].v)


def test_the_three_methods_share_one_optimisation(monkeypatch):
    lm = tiny_model("gpt2")
    asked = []

    def counted(lm, layer, problems: list[ValueProblem], settings, **options):
        asked.append(len(problems))
        return optimise_values(lm, layer, problems, settings, **options)

    monkeypatch.setattr(remembered, "optimise_values", counted)
    chosen = small(mom2_adjustment=True)
    edits = [
        edits_of(lm, variant, corpus=CORPUS)
        for variant in (
            chosen,
            replace(chosen, mom2_adjustment=False),
            replace(chosen, k_p_from="mean"),
        )
    ]
    assert asked == [4]
    u_rome, u_plain, u_r = (edit[0].updates[0].u for edit in edits)
    assert torch.equal(u_rome, u_r)
    assert not torch.allclose(u_rome, u_plain)


def named(name, family="gpt2", layers=48):
    """What settings ask of a model."""
    like = tiny_model(family)
    return SimpleNamespace(
        name=name, n_layers=layers, architecture=like.architecture, tokens=like.tokens
    )


def settings_of(lm) -> RomeSettings:
    return settings_for("rome", RomeSettings, lm)


def test_published_layers_and_the_stated_default():
    lm = tiny_model("gpt2")
    assert settings_of(lm).settings_from == "default: a third of the depth"
    assert settings_of(lm).layer == 1
    assert settings_of(tiny_model("llama")).v_weight_decay == 1e-3
    for name, layer in (("gpt2-xl", 17), ("EleutherAI/gpt-j-6b", 5), ("x/Llama-2-7b-hf", 5)):
        assert settings_of(named(name)).layer == layer
        assert settings_of(named(name)).settings_from.startswith("rome.toml for ")
    with pytest.raises(SettingError, match="rome on gpt2-xl: layer 17: gpt2-xl has layers 0 to 11"):
        settings_of(named("gpt2-xl", layers=12))


def test_without_text_for_c_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    lm = tiny_model("gpt2")
    monkeypatch.setattr(lm, "corpus", None)
    monkeypatch.setenv("KN_BENCH_CORPUS", str(tmp_path / "nothing.txt"))
    with pytest.raises(ValueError, match="expected a text file with one document per line"):
        remembered.corpus_for(lm)
    (tmp_path / "text.txt").write_text("w5 w6 w7\n\nw8 w9\n")
    monkeypatch.setenv("KN_BENCH_CORPUS", str(tmp_path / "text.txt"))
    chosen = remembered.corpus_for(lm)
    assert list(chosen.corpus.documents()) == ["w5 w6 w7", "w8 w9"]
    assert (chosen.name, remembered.corpus_for(lm)) == ("text.txt", chosen)
