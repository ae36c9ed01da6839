"""MEMIT's family: the closed form against float64 systems; one request among many; identities."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.editing.applying import in_place
from kn_bench.editing.closed_form import Covariance, Factors, Prior, closed_form, joined
from kn_bench.editing.edit import DenseEdit, LowRank, LowRankEdit, NotApplicable
from kn_bench.editing.family import ClosedFormSettings, merged
from kn_bench.editing.maps import prune
from kn_bench.editing.rome import remembered
from kn_bench.editing.rome.remembered import covariance_of, values_of
from kn_bench.editing.rome.spread import mean_of
from kn_bench.editing.settings import settings_for
from kn_bench.edits.alphaedit import AlphaEdit, AlphaEditSettings
from kn_bench.edits.betaedit import BetaEdit, BetaEditSettings
from kn_bench.edits.emmet import Emmet, EmmetSettings
from kn_bench.edits.encore import Encore, EncoreSettings
from kn_bench.edits.memit import Memit
from kn_bench.edits.memit_merge import MemitMerge
from kn_bench.edits.memit_seq import MemitSeq
from kn_bench.edits.pmet import Pmet, PmetSettings
from kn_bench.edits.rome import Rome, RomeSettings
from kn_bench.model.context_templates import contexts
from kn_bench.model.second_moment import second_moments
from tests.test_golden_family import added
from tests.test_rome import CORPUS, REQUESTS, named
from tests.tiny_models import tiny_model

SMALL: dict[str, Any] = {
    "v_lr": 0.1,
    "v_num_grad_steps": 6,
    "context_template_length_params": ((3, 2), (5, 1)),
}
MEMIT = ClosedFormSettings(layers=(0, 1), mom2_update_weight=3.0, **SMALL)
ALPHA = AlphaEditSettings(layers=(0, 1), nullspace_threshold=0.5, L2=2.0, **SMALL)
ENCORE = EncoreSettings(layers=(0, 1), mom2_update_weight=3.0, **SMALL)
BETA = BetaEditSettings(layers=(0, 1), nullspace_threshold=0.5, lambda_2=2.0, **SMALL)
PMET = PmetSettings(layers=(0, 1), mom2_update_weight=3.0, **SMALL)
EMMET = EmmetSettings(layers=(0, 1), **SMALL)
FAMILY = {
    "memit": (Memit, MEMIT),
    "memit-seq": (MemitSeq, MEMIT),
    "memit-merge": (MemitMerge, MEMIT),
    "alphaedit": (AlphaEdit, ALPHA),
    "nas": (AlphaEdit, replace(ALPHA, norm_anchor=2.0)),
    "betaedit": (BetaEdit, BETA),
    "encore": (Encore, ENCORE),
    "emmet": (Emmet, EMMET),
    "pmet": (Pmet, PMET),
}


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed, d):
    square = drawn(seed, d, 3 * d)
    return square @ square.T / d


def change(edit):
    if isinstance(edit, DenseEdit):
        return torch.cat([delta.flatten() for delta in edit.deltas.values()])
    return torch.cat([(up.u @ up.v).flatten() for up in edit.updates])


def make(name, lm, **changes):
    cls, chosen = FAMILY[name]
    return cls(lm, replace(chosen, **changes), corpus=CORPUS)


def step(method, requests, state=None):
    """One step's edit and the state after it, whether the method carries one or not."""
    if hasattr(method, "begin"):
        return method.edit_together(requests, method.begin() if state is None else state)
    return method.edit_together(requests), {}


# -- closed forms ------------------------------------------------------------------------------


@given(
    n=st.integers(1, 6),
    earlier=st.integers(0, 9),
    weight=st.one_of(st.just(0.0), st.floats(1e-2, 1e3)),
    ridge=st.floats(1e-2, 1e3),
    projected=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_closed_form_solves_its_system(n, earlier, weight, ridge, projected, seed):
    keys, past, c = drawn(seed, n, 12), drawn(seed + 1, earlier, 12), moment(seed + 2, 12)
    residual = drawn(seed + 3, n, 4)
    basis = Covariance(c).null_space(float(torch.linalg.eigvalsh(c)[6:8].mean()))
    assert basis.shape == (12, 7)
    p = basis @ basis.T if projected else torch.eye(12).double()
    torch.testing.assert_close(p @ p, p)
    ours = closed_form(
        keys, residual, weight * c if weight else None, past, ridge, basis if projected else None
    )
    system = p @ (keys.T @ keys + past.T @ past + weight * c) + ridge * torch.eye(12).double()
    exact = torch.linalg.solve(system, p @ keys.T) @ residual
    torch.testing.assert_close(ours.u @ ours.v, exact, rtol=1e-7, atol=1e-11)
    if projected:  # what the text uses is not touched
        used = torch.linalg.eigh(c)[1][:, 7:]
        assert float((used.T @ ours.u).abs().max()) < 1e-10


def test_alphaedit_with_every_direction_and_no_history_is_ridge_regression():
    keys, residual = drawn(0, 5, 12), drawn(1, 5, 4)
    everything = torch.eye(12, dtype=torch.float64)
    ours = closed_form(keys, residual, ridge=0.7, projector=everything)
    ridge = torch.linalg.solve(keys.T @ keys + 0.7 * everything, keys.T @ residual)
    torch.testing.assert_close(ours.u @ ours.v, ridge)


def test_without_slack_every_target_is_met():
    keys, residual = drawn(0, 5, 12), drawn(1, 5, 4)
    ours = closed_form(keys, residual, moment(2, 12), slack=0.0)
    torch.testing.assert_close(keys @ ours.u @ ours.v, residual)


def test_a_slack_is_a_weight_of_c():
    """EMMET with lambda_e is MEMIT with lambda = lambda_e: the push-through identity."""
    keys, residual, c = drawn(0, 5, 12), drawn(1, 5, 4), moment(2, 12)
    emmet = closed_form(keys, residual, c, slack=0.3)
    memit = closed_form(keys, residual, 0.3 * c)
    torch.testing.assert_close(emmet.u @ emmet.v, memit.u @ memit.v)


@given(steps=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_one_at_a_time_is_all_at_once_with_keys_and_targets_held_fixed(steps, seed):
    """Recursive least squares with prior lambda C: residuals against the weights as they stand."""
    keys, targets, c = drawn(seed, steps, 12), drawn(seed + 1, steps, 4), moment(seed + 2, 12)
    prior, weight, past = Prior(5.0 * c), torch.zeros(12, 4).double(), None
    for i in range(steps):
        residual = targets[i : i + 1] - keys[i : i + 1] @ weight
        weight = weight + prior.coefficients(keys[i : i + 1], past) @ residual
        past = joined(past, keys[i : i + 1])
    together = closed_form(keys, targets, 5.0 * c)
    torch.testing.assert_close(weight, together.u @ together.v, rtol=1e-7, atol=1e-11)


def test_carried_keys_never_outgrow_their_dimension_and_keep_their_sum():
    past, everything = drawn(1, 0, 6), drawn(0, 40, 6)
    for i in range(0, 40, 4):
        past = joined(past, everything[i : i + 4])
        assert len(past) <= 6 + 4
    torch.testing.assert_close(past.T @ past, everything.T @ everything)


def test_c_of_too_little_text_is_refused():
    row = drawn(0, 1, 8)
    with pytest.raises(ValueError, match="C is not positive definite: too few tokens for its 8"):
        closed_form(row, drawn(1, 1, 3), row.T @ row)


def test_the_bare_prompt_weighs_one_half():
    keys = drawn(0, 4, 3)
    torch.testing.assert_close(mean_of(keys, "grouped"), keys[0] / 2 + keys[1:].sum(0) / 6)
    torch.testing.assert_close(mean_of(keys, "flat"), keys.mean(0))
    torch.testing.assert_close(mean_of(keys[:1], "grouped"), keys[0])


# -- the methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_request_is_edited_alone_as_among_others_and_as_a_first_step(model, name):
    lm = tiny_model(model)
    method, before = make(name, lm), lm.parameter_hash()
    many = method.edit(REQUESTS)
    for edit, request in zip(many, REQUESTS, strict=True):
        (alone,) = method.edit([request])
        torch.testing.assert_close(change(edit), change(alone), rtol=1e-5, atol=1e-7)
        first, _ = step(method, [request])
        torch.testing.assert_close(change(first), change(alone), rtol=1e-5, atol=1e-7)
        assert "settings_from" in alone.notes
    assert lm.parameter_hash() == before


@pytest.mark.parametrize("name", ["memit", "pmet", "alphaedit"])
@pytest.mark.parametrize("model", ["gemma2", "opt"])
def test_other_architectures(model, name):
    """A family whose MLP's output is normalised, and one that cannot resume."""
    lm = tiny_model(model)
    many, alone = make(name, lm).edit(REQUESTS[:2]), make(name, lm).edit(REQUESTS[:1])
    torch.testing.assert_close(change(many[0]), change(alone[0]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FAMILY)
def test_the_order_in_a_batch_changes_nothing(name):
    method = make(name, tiny_model("gpt2"))
    forward, _ = step(method, REQUESTS)
    other, _ = step(method, REQUESTS[::-1])
    torch.testing.assert_close(change(forward), change(other), rtol=1e-4, atol=1e-6)


def sequence(method, steps):
    """The edit of each step, on the model as edited so far."""
    lm, total, state, edits = method.lm, LowRankEdit(updates=()), method.begin(), []
    for number, requests in enumerate(steps):
        # in a test the hash is what tells the steps apart
        hashed = f"{[r.id for s in steps[:number] for r in s]} {method.settings}"
        names = [lm.weight_name(layer) for layer in method.settings.layers]
        weights = dict(lm.hf.named_parameters())
        holds = lm.holding(hashed, {name: weights[name].detach().clone() for name in names})
        with in_place(lm, total), holds:
            edit, state = method.edit_together(requests, state)
        edits.append(edit)
        total = added(total, edit)
    return edits, state


def equal_sequences(left, right):
    steps = [REQUESTS[:2], REQUESTS[2:3], REQUESTS[:1]]
    for ours, theirs in zip(sequence(left, steps)[0], sequence(right, steps)[0], strict=True):
        torch.testing.assert_close(change(ours), change(theirs), rtol=1e-5, atol=1e-7)


def test_encore_with_beta_0_is_memit_seq():
    lm = tiny_model("gpt2")
    equal_sequences(
        make("encore", lm, update_norm_lambda=0.0, stop_after_rank_1=0), make("memit-seq", lm)
    )


def test_betaedit_without_c_that_never_renews_is_alphaedit():
    lm = tiny_model("gpt2")
    beta = make("betaedit", lm, lambda_1=0.0, tau=10**9)
    equal_sequences(beta, make("alphaedit", lm, L2=beta.settings.lambda_2))


def test_betaedit_renews_its_null_space():
    lm = tiny_model("gpt2")
    _, state = sequence(make("betaedit", lm, tau=2, lambda_1=1.0), [REQUESTS[:2], REQUESTS[2:3]])
    assert int(state["used_edits.0"]) == 2
    assert state["used_keys.1"].shape == (2, lm.d_mlp)
    renewed, _ = sequence(make("betaedit", lm, tau=2, lambda_1=1.0), [REQUESTS[:2], REQUESTS[2:3]])
    other, _ = sequence(make("betaedit", lm, tau=9, lambda_1=1.0), [REQUESTS[:2], REQUESTS[2:3]])
    torch.testing.assert_close(change(renewed[0]), change(other[0]))
    assert not torch.allclose(change(renewed[1]), change(other[1]), rtol=1e-3)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_emmet_of_one_request_is_r_rome(model):
    """With ROME's choices: delta at the site, all contexts alike."""

    class AtSite(Emmet):
        place = "site"

    lm = tiny_model(model)
    emmet = AtSite(
        lm, replace(EMMET, layers=(1,), context_mean="flat", clamp_norm_factor=4.0), corpus=CORPUS
    )
    r_rome = Rome(lm, RomeSettings(layer=1, k_p_from="mean", **SMALL), corpus=CORPUS)
    for request in REQUESTS:
        (expected,) = r_rome.edit([request])
        ours = emmet.edit_together([request])
        torch.testing.assert_close(change(ours), change(expected), rtol=1e-4, atol=1e-6)
    together = emmet.edit_together(REQUESTS)
    assert isinstance(together, LowRankEdit)
    assert together.updates[0].u.shape[1] == len(REQUESTS)


def test_a_history_of_edits_belongs_to_its_sequence():
    lm = tiny_model("gpt2")
    method = make("alphaedit", lm)
    before = lm.parameter_hash()
    (first, second), state = sequence(method, [REQUESTS[:1], REQUESTS[1:2]])
    assert [state[f"keys.{layer}"].shape[0] for layer in (0, 1)] == [2, 2]
    (again,), _ = sequence(method, [REQUESTS[:1]])
    assert torch.equal(change(again), change(first))
    (fresh,), _ = sequence(method, [REQUESTS[1:2]])
    assert not torch.allclose(change(fresh), change(second), rtol=1e-3)
    assert method.begin() == {}
    assert lm.parameter_hash() == before


def test_memit_merge_gives_facts_of_one_subject_one_target_and_one_column():
    lm = tiny_model("gpt2")
    same = replace(REQUESTS[1], id="t/same", subject=REQUESTS[0].subject)
    merge, plain = make("memit-merge", lm), make("memit", lm)
    edit = merge.edit_together([REQUESTS[0], same, REQUESTS[2]])
    assert [up.u.shape[1] for up in edit.updates] == [2, 2]
    assert [up.u.shape[1] for up in plain.edit_together([REQUESTS[0], same]).updates] == [2, 2]
    # facts of different subjects: MEMIT
    torch.testing.assert_close(
        change(merge.edit_together(REQUESTS[:2])), change(plain.edit_together(REQUESTS[:2]))
    )
    (problem,) = merged(plain._read([REQUESTS[0], same]), ["a", "a"])
    assert [len(fact) for fact in problem.facts] == [4, 4]
    # the loss at no change is the sum of the facts'
    chosen = replace(MEMIT.value_settings, v_num_grad_steps=1)
    both = values_of(lm, 1, [problem], chosen, place="block")[problem].nll[0]
    apart = values_of(lm, 1, plain._read([REQUESTS[0], same]), chosen, place="block")
    torch.testing.assert_close(both, sum(value.nll[0] for value in apart.values()))


def test_the_norm_of_a_target_is_anchored():
    lm = tiny_model("gpt2")
    loose = Memit(lm, replace(MEMIT, layers=(1,)), corpus=CORPUS)
    for place in ("site", "block"):
        problems = loose._read(REQUESTS)
        free = values_of(lm, 1, problems, MEMIT.value_settings, place=place)
        m = float(torch.stack([v.v_star.norm() for v in free.values()]).mean())
        tied = values_of(lm, 1, problems, replace(MEMIT.value_settings, norm_anchor=m), place=place)
        small = replace(MEMIT.value_settings, norm_anchor=1e-4)
        skipped = values_of(lm, 1, problems, small, place=place)
        for value in skipped.values():
            assert float(value.delta.norm()) == 0
        if place == "site":
            for value in tied.values():
                assert float(value.v_star.norm()) == pytest.approx(m, rel=1e-5)


@pytest.mark.parametrize("which", ["rect", "prune", "sphere"])
def test_an_update_can_be_restrained(which):
    lm = tiny_model("gpt2")
    plain, restrained = make("memit", lm), make("memit", lm, update_map=which)
    whole, part = plain.edit(REQUESTS[:1])[0], restrained.edit(REQUESTS[:1])[0]
    kept = change(part).norm() / change(whole).norm()
    if which == "prune":  # no singular value is above the weight's
        torch.testing.assert_close(change(part), change(whole), rtol=1e-4, atol=1e-6)
    else:
        assert 0.3 < float(kept) < 1
    if which == "rect":
        share = (change(part) != 0).double().mean()
        assert float(share) == pytest.approx(0.4, abs=2e-3)


def test_prune_restrains_what_has_accumulated():
    """Steps of a sequence add up to the map of the whole change."""
    lm = tiny_model("gpt2")
    method = make("memit-seq", lm, update_map="prune", mom2_update_weight=1e-4, layers=(0,))
    plain = make("memit-seq", lm, mom2_update_weight=1e-4, layers=(0,))
    steps = [REQUESTS[:2], REQUESTS[2:4]]
    edits, state = sequence(method, steps)
    total = torch.stack([change(edit) for edit in edits]).sum(0).reshape(lm.weight(0).shape)
    sigma = float(torch.linalg.matrix_norm(lm.weight(0).double(), 2))
    raw = state["change_u.0"] @ state["change_v.0"]
    expected = prune(Factors(state["change_u.0"], state["change_v.0"]), sigma)
    torch.testing.assert_close(total, (expected.u @ expected.v).to(total.dtype), atol=1e-5, rtol=0)
    assert sequence(plain, steps)[0]
    assert float(torch.linalg.matrix_norm(raw, 2)) > 0


def brute_memit(lm, edit_request, target):
    """One request, layer by layer, in place: every key and output from whole runs."""
    prefixes = ("", *contexts(lm, lengths=MEMIT.context_template_length_params))
    texts = [prefix + edit_request.cloze.left for prefix in prefixes]

    def subject_position(text):
        upto = text[: text.rindex(edit_request.subject) + len(edit_request.subject)]
        return len(lm.tokens.encode(upto).ids) - 1

    def state(text, module, wanted):
        kept = []

        def keep(_, inputs, output):
            kept.append(inputs[0] if wanted == "input" else output)

        handle = module.register_forward_hook(keep)
        lm.hf(lm.tensor([lm.tokens.encode(text).ids]))
        handle.remove()
        return kept[0][0, subject_position(text)].detach()

    total = LowRankEdit(updates=())
    for index, layer in enumerate(MEMIT.layers):
        with in_place(lm, total):
            keys = torch.stack([state(text, lm.site(layer), "input") for text in texts])
            reached = state(texts[0], lm.layers[MEMIT.layers[-1]], "output")
        k = keys[0] / 2 + keys[1:].mean(0) / 2
        residual = (target - reached) / (len(MEMIT.layers) - index)
        matrix = covariance_of(lm, layer, CORPUS, None).matrix
        a = torch.linalg.solve(MEMIT.mom2_update_weight * matrix + torch.outer(k, k), k)
        new = LowRank(layer, a[:, None], residual[None])
        total = added(total, LowRankEdit(updates=(new,)))
    return total


def test_c_of_all_layers_is_measured_in_one_pass_before_the_targets(tmp_path, monkeypatch):
    """An estimate breaks the targets off, and must have seen how long C takes."""
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path))
    lm = tiny_model("gpt2")
    lm.memo.clear()
    passes = []

    def counted(lm, layers, *args, **options):
        passes.append(tuple(layers))
        return second_moments(lm, layers, *args, **options)

    class BrokenOff(BaseException):
        pass

    def broken_off(*args, **options):
        raise BrokenOff

    monkeypatch.setattr(remembered, "second_moments", counted)
    monkeypatch.setattr("kn_bench.editing.family.values_of", broken_off)
    with pytest.raises(BrokenOff):
        Memit(lm, MEMIT, corpus=CORPUS).edit(REQUESTS[:1])
    assert passes == [(0, 1)]
    lm.memo.clear()


def test_memit_equals_its_definition_read_aloud():
    lm = tiny_model("gpt2")
    method = Memit(lm, MEMIT, corpus=CORPUS)
    for request in REQUESTS[:2]:
        (problem,) = method._read([request])
        values = values_of(lm, 1, [problem], MEMIT.value_settings, place="block")
        (value,) = values.values()
        expected = brute_memit(lm, request, value.v_star)
        (ours,) = method.edit([request])
        assert isinstance(ours, LowRankEdit)
        torch.testing.assert_close(change(ours), change(expected), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", FAMILY)
def test_what_does_not_apply_is_said_for_its_request(name):
    after = replace(REQUESTS[0], prompt="w12", suffix="w13 {} .")
    method = make(name, tiny_model("gpt2"))
    edits = method.edit([after, REQUESTS[1]])
    assert isinstance(edits[0], NotApplicable)
    assert isinstance(edits[1], LowRankEdit)
    refused = method.refusals([after, REQUESTS[1]])
    assert isinstance(refused[0], NotApplicable)
    assert refused[1] is None
    with pytest.raises(NotApplicable, match="the subject must come before it"):
        step(method, [after])
    with pytest.raises(NotApplicable, match="ROME edits causal models"):
        make(name, tiny_model("bert")).edit(REQUESTS)


def test_published_settings_and_the_stated_default():
    lm = tiny_model("gpt2")

    def of(method, cls, model):
        return settings_for(method, cls, model)

    default = of("memit", ClosedFormSettings, lm)
    assert default.layers == (0, 1)
    assert default.settings_from.startswith("default")
    for method, cls in (
        ("memit", ClosedFormSettings),
        ("memit-seq", ClosedFormSettings),
        ("alphaedit", AlphaEditSettings),
        ("betaedit", BetaEditSettings),
        ("encore", EncoreSettings),
    ):
        xl = of(method, cls, named("openai-community/gpt2-xl"))
        assert xl.layers == (13, 14, 15, 16, 17)
        assert (xl.mom2_update_weight, xl.clamp_norm_factor) == (20_000.0, 0.75)
    assert of("encore", EncoreSettings, named("Llama-3-8B", "llama")).stop_after_rank_1 == 2
    assert of("encore", EncoreSettings, named("Llama-3-8B", "llama")).layers == (4, 5, 6, 7, 8)
    assert of("emmet", EmmetSettings, named("gpt2-xl")).layers == (17,)
    assert of("pmet", PmetSettings, named("gpt-j-6b")).mom2_update_weight == 6_000.0
