"""MEMIT, EMMET and AlphaEdit: the closed forms against float64 systems; one request among many."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kn_bench.editing.applying import in_place
from kn_bench.editing.edit import LowRank, LowRankEdit, NotApplicable, norm
from kn_bench.editing.rome.remembered import solver_of, values_of
from kn_bench.editing.rome.spread import (
    alphaedit_coefficients,
    null_space,
    typed_mean,
    whitened_coefficients,
)
from kn_bench.editing.rome.update import SecondMomentSolver
from kn_bench.edits.alphaedit import AlphaEdit, AlphaEditHyperparameters, History, joined
from kn_bench.edits.memit import Emmet, Memit, MemitHyperparameters, memit_hyperparameters
from kn_bench.edits.rome import Rome, RomeHyperparameters
from kn_bench.model.context_templates import contexts
from tests.test_rome import CORPUS, REQUESTS
from tests.tiny_models import tiny_model

SMALL: dict[str, Any] = {
    "v_lr": 0.1,
    "v_num_grad_steps": 6,
    "context_template_length_params": ((3, 2), (5, 1)),
}
MEMIT = MemitHyperparameters(layers=(0, 1), mom2_update_weight=3.0, **SMALL)
ALPHA = AlphaEditHyperparameters(layers=(0, 1), nullspace_threshold=0.5, L2=2.0, **SMALL)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed, d):
    square = drawn(seed, d, 3 * d)
    return square @ square.T / d


def change(edit):
    return torch.cat([(up.u @ up.v).flatten() for up in edit.updates])


# -- closed forms ------------------------------------------------------------------------------


@given(n=st.integers(1, 9), weight=st.floats(1e-2, 1e4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_memits_coefficients_solve_its_system(n, weight, seed):
    keys, c = drawn(seed, n, 12), moment(seed + 1, 12)
    ours = whitened_coefficients(keys, SecondMomentSolver(c), weight)
    exact = torch.linalg.solve(weight * c + keys.T @ keys, keys.T)
    torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-12)


@given(
    n=st.integers(1, 6),
    earlier=st.integers(0, 6),
    ridge=st.floats(1e-2, 1e3),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_alphaedits_coefficients_solve_its_system(n, earlier, ridge, seed):
    keys, history, c = drawn(seed, n, 12), drawn(seed + 1, earlier, 12), moment(seed + 2, 12)
    basis = null_space(c, float(torch.linalg.eigvalsh(c)[6:8].mean()))
    assert basis.shape == (12, 7)
    p = basis @ basis.T
    torch.testing.assert_close(p @ p, p)
    ours = alphaedit_coefficients(keys, basis, history, ridge)
    system = p @ (keys.T @ keys + history.T @ history) + ridge * torch.eye(12, dtype=p.dtype)
    torch.testing.assert_close(ours, torch.linalg.solve(system, p @ keys.T), rtol=1e-8, atol=1e-12)
    # what the text uses is not touched
    used = torch.linalg.eigh(c)[1][:, 7:]
    assert float((used.T @ ours).abs().max()) < 1e-10


def test_alphaedit_with_every_direction_and_no_history_is_ridge_regression():
    keys, residual = drawn(0, 5, 12), drawn(1, 5, 4)
    ours = alphaedit_coefficients(keys, torch.eye(12).double(), keys[:0], 0.7) @ residual
    ridge = torch.linalg.solve(keys.T @ keys + 0.7 * torch.eye(12), keys.T @ residual)
    torch.testing.assert_close(ours, ridge)


def test_emmet_without_a_ridge_meets_every_target():
    keys, residual = drawn(0, 5, 12), drawn(1, 5, 4)
    dw = whitened_coefficients(keys, SecondMomentSolver(moment(2, 12)), 0.0) @ residual
    torch.testing.assert_close(keys @ dw, residual)


def test_the_bare_prompt_weighs_one_half():
    keys = drawn(0, 4, 3)
    torch.testing.assert_close(typed_mean(keys), keys[0] / 2 + keys[1:].sum(0) / 6)
    torch.testing.assert_close(typed_mean(keys[:1]), keys[0])


# -- the methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
@pytest.mark.parametrize("kind", ["memit", "alphaedit"])
def test_a_request_is_edited_alone_as_among_others(family, kind):
    lm = tiny_model(family)
    method = (
        Memit(lm, MEMIT, corpus=CORPUS) if kind == "memit" else AlphaEdit(lm, ALPHA, corpus=CORPUS)
    )
    many = method.edit(REQUESTS)
    for edit, request in zip(many, REQUESTS, strict=True):
        (alone,) = method.edit([request])
        assert isinstance(edit, LowRankEdit)
        assert isinstance(alone, LowRankEdit)
        torch.testing.assert_close(change(edit), change(alone), rtol=1e-5, atol=1e-8)
        assert [up.layer for up in edit.updates] == [0, 1]


def test_memit_of_one_request_together_is_memit_of_it_alone():
    lm = tiny_model("gpt2")
    method = Memit(lm, MEMIT, corpus=CORPUS)
    (alone,) = method.edit(REQUESTS[:1])
    assert isinstance(alone, LowRankEdit)
    torch.testing.assert_close(change(method.edit_together(REQUESTS[:1])), change(alone))


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
        matrix = solver_of(lm, layer, CORPUS, None).matrix
        a = torch.linalg.solve(MEMIT.mom2_update_weight * matrix + torch.outer(k, k), k)
        new = LowRank(layer, a[:, None], residual[None])
        total = joined(total, LowRankEdit(updates=(new,)))
    return total


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


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_emmet_of_one_request_is_r_rome(family):
    lm = tiny_model(family)
    chosen = RomeHyperparameters(layer=1, k_p_from="mean", **SMALL)
    emmet, r_rome = Emmet(lm, chosen, corpus=CORPUS), Rome(lm, chosen, corpus=CORPUS)
    for request in REQUESTS:
        (expected,) = r_rome.edit([request])
        assert isinstance(expected, LowRankEdit)
        torch.testing.assert_close(change(emmet.edit_together([request])), change(expected))
    assert emmet.edit_together(REQUESTS).updates[0].u.shape[1] == len(REQUESTS)


def test_a_history_of_edits_belongs_to_its_sequence():
    lm = tiny_model("gpt2")
    method = AlphaEdit(lm, ALPHA, corpus=CORPUS)
    before = lm.parameter_hash()
    first = method.after(History(), REQUESTS[:1])
    second = method.after(first, REQUESTS[1:2])
    assert [second.keys[layer].shape[0] for layer in (0, 1)] == [2, 2]
    assert [first.keys[layer].shape[0] for layer in (0, 1)] == [1, 1]
    again = method.after(History(), REQUESTS[:1])
    assert torch.equal(change(again.edit), change(first.edit))
    (alone,) = method.edit(REQUESTS[:1])
    assert isinstance(alone, LowRankEdit)
    torch.testing.assert_close(change(first.edit), change(alone))
    fresh = method.after(History(), REQUESTS[1:2])
    assert norm(fresh.edit) != pytest.approx(norm(second.edit), rel=1e-3)
    assert lm.parameter_hash() == before


def test_joined_updates_add_up():
    lm = tiny_model("gpt2")
    one, two = (edit for edit in Memit(lm, MEMIT, corpus=CORPUS).edit(REQUESTS[:2]))
    assert isinstance(one, LowRankEdit)
    assert isinstance(two, LowRankEdit)
    torch.testing.assert_close(change(joined(one, two)), change(one) + change(two))


def test_what_does_not_apply_is_said_for_its_request():
    after = replace(REQUESTS[0], prompt="w12", suffix="w13 {} .")
    for method in (
        Memit(tiny_model("gpt2"), MEMIT, corpus=CORPUS),
        AlphaEdit(tiny_model("gpt2"), ALPHA, corpus=CORPUS),
    ):
        made = method.edit([after, REQUESTS[1]])
        assert isinstance(made[0], NotApplicable)
        assert isinstance(made[1], LowRankEdit)
        assert method.edit([after])[0] is not None
    with pytest.raises(NotApplicable, match="the subject must come before it"):
        Memit(tiny_model("gpt2"), MEMIT, corpus=CORPUS).edit_together([after])
    with pytest.raises(NotApplicable, match="ROME edits causal models"):
        Memit(tiny_model("bert"), MEMIT).edit(REQUESTS)


def test_published_layers_and_the_stated_default():
    lm = tiny_model("gpt2")
    assert memit_hyperparameters(lm).layers == (0, 1)
    assert memit_hyperparameters(lm).layers_from.startswith("default")
    original, lm.name = lm.name, "openai-community/gpt2-xl"
    try:
        chosen = memit_hyperparameters(lm)
    finally:
        lm.name = original
    assert chosen.layers == (13, 14, 15, 16, 17)
    assert (chosen.mom2_update_weight, chosen.clamp_norm_factor) == (20_000.0, 0.75)
