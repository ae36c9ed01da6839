"""Fine-tuning: against a plain loop on the model's own weights, and the published runs."""

import copy
from dataclasses import replace

import pytest
import torch

from kn_bench.editing.applying import in_place
from kn_bench.editing.edit import DenseEdit, NotApplicable
from kn_bench.editing.finetuning import TunedRow, TuningSettings, fine_tune
from kn_bench.edits.ft import FineTuning, FtLSettings, FtMSettings
from tests.golden import cases
from tests.test_golden_rome import request_of
from tests.test_rome import REQUESTS
from tests.tiny_models import FAMILIES, tiny_model

CAUSAL = [family for family in FAMILIES if tiny_model(family).is_causal]
SETTINGS = TuningSettings(lr=5e-3, num_steps=6)


def rows(lm, teacher_forced, requests=REQUESTS):
    method = FineTuning(lm, FtMSettings(), teacher_forced=teacher_forced)
    return [[row] for row in method._rows(requests)]


def plain(lm, layers, edit, settings):
    """The reference: the model's own weights, trained and thrown away."""
    hf = copy.deepcopy(lm.hf)
    names = {lm.weight_name(layer) for layer in layers}
    names |= {name.removesuffix("weight") + "bias" for name in names}
    trained = {n: p for n, p in hf.named_parameters() if n in names}
    old = {n: p.detach().clone() for n, p in trained.items()}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(trained.values(), lr=settings.lr, weight_decay=settings.weight_decay)
    losses = []
    for _ in range(settings.num_steps):
        loss = torch.zeros((), dtype=lm.dtype)
        for row in edit:
            log_p = hf(lm.tensor([row.ids]), use_cache=False).logits[0].log_softmax(1)
            each = [-log_p[at, t] for at, t in zip(row.reads, row.targets, strict=True)]
            loss = loss + sum(each) / len(each) / len(edit)
        losses.append(loss.item())
        if loss < settings.stop_loss:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        if settings.norm_constraint is not None:
            with torch.no_grad():
                for name, parameter in trained.items():
                    bound = settings.norm_constraint
                    parameter.clamp_(old[name] - bound, old[name] + bound)
    return {name: (p - old[name]).detach() for name, p in trained.items()}, losses


@pytest.mark.parametrize("family", CAUSAL)
def test_tuning_copies_equals_tuning_the_model(family):
    lm = tiny_model(family)
    before = lm.parameter_hash()
    edits = [*rows(lm, True), rows(lm, True)[0] + rows(lm, True)[1]]
    for edit, tuned in zip(edits, fine_tune(lm, [1], edits, SETTINGS), strict=True):
        deltas, losses = plain(lm, [1], edit, SETTINGS)
        assert tuned.losses.tolist() == pytest.approx(losses, abs=1e-5)
        ours = tuned.weights[1].T if lm.transposed(1) else tuned.weights[1]
        expected = deltas[lm.weight_name(1)]
        assert float((ours - expected).norm() / expected.norm()) < 1e-2
    assert lm.parameter_hash() == before
    assert not any(p.requires_grad for p in lm.hf.parameters())


@pytest.mark.parametrize("layers", [[0], [2], [0, 2]])
@pytest.mark.parametrize("teacher_forced", [True, False])
def test_it_is_exact_in_float64(layers, teacher_forced):
    lm = tiny_model("gpt2")
    bounded = replace(SETTINGS, norm_constraint=8e-3, weight_decay=0.1)
    for edit in rows(lm, teacher_forced):
        (tuned,) = fine_tune(lm, layers, [edit], bounded)
        deltas, losses = plain(lm, layers, edit, bounded)
        assert tuned.losses.tolist() == pytest.approx(losses, abs=1e-9)
        for layer in layers:
            name = lm.weight_name(layer)
            assert float((tuned.weights[layer] - deltas[name]).abs().max()) < 1e-6
            bias = deltas[name.replace("weight", "bias")]
            assert float((tuned.biases[layer] - bias).abs().max()) < 1e-6


def test_each_weight_stays_within_its_bound():
    lm = tiny_model("llama")
    for tuned in fine_tune(lm, [0], rows(lm, False), replace(SETTINGS, norm_constraint=1e-3)):
        largest = float(tuned.weights[0].abs().max())
        assert largest <= 1e-3 * (1 + 1e-9)
        assert largest > 0.9e-3


def test_an_edit_stops_for_itself_and_alone_as_among_others():
    lm = tiny_model("gpt2")
    easy = replace(SETTINGS, lr=3e-2, num_steps=40, stop_loss=1.0)
    many = fine_tune(lm, [0], rows(lm, True), easy)
    assert len({len(tuned.losses) for tuned in many}) > 1
    for tuned, edit in zip(many, rows(lm, True), strict=True):
        assert all(loss >= 1.0 for loss in tuned.losses[:-1].tolist())
        (alone,) = fine_tune(lm, [0], [edit], easy)
        assert len(alone.losses) == len(tuned.losses)
        torch.testing.assert_close(alone.weights[0], tuned.weights[0], rtol=1e-5, atol=1e-7)


def test_ft_l_reads_the_last_prompt_position_and_ft_m_every_one_before_an_answer_token():
    lm = tiny_model("gpt2")
    request = REQUESTS[3]  # "w5 w6 w31 w7" -> "w32 w33 w34"
    ((loose,),) = rows(lm, False, [request])
    ((forced,),) = rows(lm, True, [request])
    assert loose == TunedRow((5, 6, 31, 7), (3, 3, 3), (32, 33, 34))
    assert forced == TunedRow((5, 6, 31, 7, 32, 33), (3, 4, 5), (32, 33, 34))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_edit_makes_the_answer_likelier_when_applied(family):
    lm = tiny_model(family)
    method = FineTuning(lm, FtMSettings(lr=1e-2), teacher_forced=True)
    (edit,) = method.edit(REQUESTS[:1])
    assert isinstance(edit, DenseEdit)
    ((row,),) = rows(lm, True, REQUESTS[:1])
    ids, at = lm.tensor([row.ids]), torch.tensor([row.reads])

    def loss():
        with torch.no_grad():
            log_p = lm.forward(ids, at)[0].log_softmax(1)
        return -float(log_p[range(len(row.targets)), list(row.targets)].mean())

    before = loss()
    with in_place(lm, edit):
        after = loss()
    assert after < before - 0.5
    # the loss recorded last is that before the last update
    assert after <= float(edit.notes["final_loss"])


def test_half_precision_weights_are_tuned_in_float32():
    whole, half = tiny_model("llama", torch.float32), tiny_model("llama", torch.bfloat16)
    (exact,) = fine_tune(whole, [0], rows(whole, True)[:1], SETTINGS)
    (rough,) = fine_tune(half, [0], rows(half, True)[:1], SETTINGS)
    assert rough.weights[0].dtype == torch.float32
    assert float((rough.weights[0] - exact.weights[0]).abs().mean()) < 1e-2
    assert float(rough.weights[0].norm() / exact.weights[0].norm()) == pytest.approx(1, abs=0.1)


def test_what_does_not_apply():
    with pytest.raises(NotApplicable, match="defined here for causal models"):
        FineTuning(tiny_model("bert"), FtLSettings(), teacher_forced=False).edit(REQUESTS)
    with pytest.raises(ValueError, match="is a masked model"):
        fine_tune(tiny_model("bert"), [0], [[TunedRow((5, 6), (1,), (7,))]], SETTINGS)
    middle = replace(REQUESTS[0], suffix="w30 w31.")
    method = FineTuning(tiny_model("gpt2"), FtLSettings(), teacher_forced=False)
    edits = method.edit([middle, REQUESTS[0]])
    assert isinstance(edits[0], NotApplicable)
    assert isinstance(edits[1], DenseEdit)


# -- golden ------------------------------------------------------------------------------------


def hyperparameters_of(case):
    h = case.manifest["hyperparameters"]
    bound = h["norm_constraint"]
    return FtMSettings(
        layers=tuple(h["layers"]),
        lr=h["lr"],
        num_steps=h["num_steps"],
        weight_decay=h["weight_decay"],
        norm_constraint=bound if isinstance(bound, float) else None,
    )


@pytest.mark.parametrize("case", cases("ft", "losses_f64"))
def test_golden_ft(case):
    lm = case.model(torch.float64)
    method = FineTuning(lm, hyperparameters_of(case), teacher_forced=False)
    requests = [request_of(raw) for raw in case.manifest["requests"]]
    asked = [row for row in method._rows(requests) if isinstance(row, TunedRow)]
    for row, raw in zip(asked, case.manifest["requests"], strict=True):
        assert list(row.targets) == raw["target_ids"]
    edit = method.edit_together(requests)
    assert edit.notes["passes"] == case.outputs["n_steps"]
    golden = case.array("losses_f64")
    (tuned,) = fine_tune(lm, method.settings.layers, [asked], method.settings)
    assert float((tuned.losses - golden).abs().max()) < 1e-9
    for name, norm in case.outputs["delta_norms_f64"].items():
        assert float(edit.deltas[name].norm()) == pytest.approx(norm, rel=1e-4)
        stored = f"delta_f64__{name}"
        if stored in case.arrays:
            error = (edit.deltas[name] - case.array(stored)).norm() / case.array(stored).norm()
            assert float(error) < 1e-2
    with in_place(lm, edit), torch.no_grad():
        for index, probe in enumerate(case.manifest["probes"]):
            ids = lm.tensor([lm.tokens.encode(probe).ids])
            ours = lm.forward(ids, torch.tensor([[-1]]))[0, 0].softmax(0)
            assert float((ours - case.array("probs_post")[index]).abs().max()) < 1e-4
