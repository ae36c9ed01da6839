"""LoRA and IKE: what they leave alone, what they say, what they return."""

import builtins
from typing import Any

import pytest
import torch

from kn_bench.cases import sources
from kn_bench.editing.applying import in_place
from kn_bench.editing.edit import DenseEdit, NotApplicable, PromptEdit, tensors_of
from kn_bench.edits import lora as lora_module
from kn_bench.edits.ike import Ike, IkeSettings, most_similar
from kn_bench.edits.lora import Lora, LoraSettings
from kn_bench.model.loading import load_model
from tests.test_rome import REQUESTS
from tests.tiny_models import tiny_model

SETTINGS = LoraSettings(target_modules=("down_proj", "c_proj"), num_steps=8, lr=2e-2, rank=2)


def without(monkeypatch, package):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)


def modes(lm):
    return [(name, type(module), module.training) for name, module in lm.hf.named_modules()]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora_returns_a_low_rank_change_and_leaves_the_model_as_it_was(family):
    pytest.importorskip("peft")
    lm = tiny_model(family)
    modules, before = modes(lm), lm.parameter_hash()
    state = torch.get_rng_state()
    method = Lora(lm, SETTINGS)
    edit, again = method.edit([REQUESTS[0]])[0], method.edit([REQUESTS[0]])[0]
    assert isinstance(edit, DenseEdit)
    assert isinstance(again, DenseEdit)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes(lm) == modules
    assert lm.parameter_hash() == before
    assert not any(p.requires_grad for p in lm.hf.parameters())
    for name, delta in edit.deltas.items():
        assert torch.equal(delta, again.deltas[name])
        assert int(torch.linalg.matrix_rank(delta.double(), rtol=1e-5)) <= 2
    (row,) = method._rows(REQUESTS[:1])
    assert not isinstance(row, NotApplicable)

    def log_p():
        with torch.no_grad():
            logits = lm.forward(lm.tensor([row.ids]), torch.tensor([row.reads]))
        return float(logits[0].log_softmax(1).gather(1, torch.tensor(row.targets)[:, None]).mean())

    plain = log_p()
    with in_place(lm, edit):
        assert log_p() > plain + 0.1


@pytest.mark.parametrize(
    ("family", "modules"), [("gpt2", ("c_attn", "mlp.c_proj")), ("llama", ("v_proj", "down_proj"))]
)
def test_lora_keeps_its_factors_and_changes_a_weight_as_peft_would(family, modules, monkeypatch):
    """GPT-2's Conv1D holds its weight transposed; alpha / rank is no power of two."""
    pytest.importorskip("peft")
    lm = tiny_model(family, torch.float32)
    own_factors = lora_module._factors
    by_peft: list[torch.Tensor] = []

    def factors(adapted):
        by_peft.append(adapted.get_delta_weight("default").detach().clone())
        return own_factors(adapted)

    monkeypatch.setattr(lora_module, "_factors", factors)
    settings = LoraSettings(target_modules=modules, num_steps=8, lr=2e-2, rank=3)
    edit: Any = Lora(lm, settings).edit([REQUESTS[0]])[0]
    assert len(edit.deltas) == 2 * lm.n_layers
    for delta, peft_says in zip(edit.deltas.values(), by_peft, strict=True):
        largest = float(peft_says.abs().max())
        assert largest > 1e-3
        rounding = 4 * torch.finfo(torch.float32).eps * largest
        torch.testing.assert_close(delta, peft_says, rtol=0, atol=rounding)
    shapes = [lm.hf.get_parameter(name).shape for name in edit.deltas]
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(edit).values())
    assert held == sum(4 * 3 * sum(shape) for shape in shapes)
    assert not any(tensor.requires_grad for tensor in tensors_of(edit).values())


def test_lora_draws_its_dropout_on_the_cpu_wherever_the_model_is(monkeypatch):
    """The generator of a GPU would give another edit."""

    def drawn(dropout, x):
        torch.manual_seed(0)
        return dropout(x), torch.get_rng_state()

    wanted, state = drawn(torch.nn.Dropout(0.25), torch.ones(3, 4))
    there, after = drawn(lora_module._Dropout(0.25), torch.ones(3, 4, device="meta"))
    assert torch.equal(drawn(lora_module._Dropout(0.25), torch.ones(3, 4))[0], wanted)
    assert (there.device.type, torch.equal(after, state)) == ("meta", True)

    pytest.importorskip("peft")
    lm = tiny_model("llama")  # without dropout of its own
    monkeypatch.delattr(torch.nn.Dropout, "forward")
    (edit,) = Lora(lm, SETTINGS).edit([REQUESTS[0]])
    assert isinstance(edit, DenseEdit)


def test_lora_without_peft_names_the_extra(monkeypatch):
    without(monkeypatch, "peft")
    with pytest.raises(NotApplicable, match=r"lora needs peft: pip install 'kn_bench\[peft\]'"):
        lora_module._peft()


def test_the_most_similar_text_comes_first():
    pytest.importorskip("sklearn")
    others = ["dogs bark at night", "The capital of Peru is Lima", "The capital of Spain is Madrid"]
    assert most_similar("The capital of Spain is Oslo", others)[0] == 2
    assert most_similar("The capital of Spain is Oslo", others)[-1] == 0


def test_ike_shows_other_facts_and_states_the_new_one_last():
    pytest.importorskip("sklearn")
    lm = load_model("tiny-gpt2")
    cases = sources.load(
        "embedded", limit=1, relations=["P36", "determiner_noun_agreement_1"]
    ).cases
    for case, edit in zip(
        cases,
        Ike(lm, IkeSettings(context_share=0.95)).edit([case.request for case in cases]),
        strict=True,
    ):
        assert isinstance(edit, PromptEdit)
        request = case.request
        *shown, last = edit.prefix.split("\n\n")
        assert last == f"New Fact: {request.cloze.fill(request.target_new).rstrip('.')}.\nPrompt:"
        assert shown
        assert len(shown) == edit.notes["demonstrations"]
        assert all(
            example.startswith("New Fact: ") and "\nPrompt: " in example for example in shown
        )
        # nothing of the fact itself is given away
        assert not any(
            f" {request.subject} " in example for example in shown if request.task == "fact"
        )
        assert len(lm.tokens.encode(edit.prefix).ids) <= lm.tokens.max_length * 0.95


def test_ike_without_scikit_learn_names_the_extra(monkeypatch):
    without(monkeypatch, "sklearn")
    with pytest.raises(NotApplicable, match=r"pip install 'kn_bench\[ike\]'"):
        most_similar("a", ["b"])
