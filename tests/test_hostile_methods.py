"""Methods that misbehave, as a table: what each does, and what must happen.

After every row the model, its modules and the process are what they were, and a method that behaves
gets the numbers that it gets alone.
"""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from kn_bench.editing.edit import (
    DenseEdit,
    LowRank,
    LowRankEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    NotApplicable,
    PromptEdit,
    WrapperEdit,
)
from kn_bench.editing.surroundings import Surroundings
from kn_bench.measure.criteria import judge
from kn_bench.measure.engine import Engine
from kn_bench.results import rows
from kn_bench.results.rows import Key, decode_rows, encode_rows
from tests.test_engine import toy_case
from tests.tiny_models import tiny_model

CASES = [toy_case(index) for index in range(3)]


def nothing(lm, requests):
    return [NoEdit() for _ in requests]


def low_rank(lm, layer=0, fill=0.01, dtype=None):
    d_mlp, d_model = lm.weight(0).shape
    u, v = torch.full((d_mlp, 1), fill), torch.full((1, d_model), fill)
    kind = dtype or lm.dtype
    return LowRankEdit((LowRank(layer, u.to(kind), v.to(kind)),))


# -- what a method may do while editing -----------------------------------------------------------


def mutates_and_raises(lm, requests):
    with torch.no_grad():
        lm.weight(0).add_(1.0)
    raise RuntimeError("midway")


def mutates_and_declines(lm, requests):
    with torch.no_grad():
        lm.weight(0).add_(1.0)
    raise NotApplicable("not here")


def leaves_a_hook(lm, requests):
    lm.hf.get_output_embeddings().register_forward_hook(lambda m, i, o: o * 0.5)
    return nothing(lm, requests)


def leaves_a_pre_hook(lm, requests):
    lm.layers[0].register_forward_pre_hook(lambda m, i: None)
    return nothing(lm, requests)


def changes_epsilon(lm, requests):
    for module in lm.hf.modules():
        if hasattr(module, "eps"):
            module.eps = 0.5
    return nothing(lm, requests)


def replaces_forward(lm, requests):
    lm.layers[0].forward = lambda hidden, *args, **kwargs: hidden
    return nothing(lm, requests)


def replaces_a_module(lm, requests):
    lm.layers[0].mlp = torch.nn.Identity()
    return nothing(lm, requests)


def trains(lm, requests):
    lm.hf.train()
    return nothing(lm, requests)


def wants_gradients(lm, requests):
    lm.hf.requires_grad_(True)
    return nothing(lm, requests)


def changes_the_config(lm, requests):
    lm.hf.config.layer_norm_epsilon = 0.5
    return nothing(lm, requests)


def changes_the_default_dtype(lm, requests):
    torch.set_default_dtype(torch.float16)
    return nothing(lm, requests)


def turns_gradients_off(lm, requests):
    torch.set_grad_enabled(False)
    return nothing(lm, requests)


def leaves_by_system_exit(lm, requests):
    raise SystemExit(3)


def one_malformed(lm, requests):
    return [low_rank(lm, layer=0.0), *nothing(lm, requests[1:])]


def draws(lm, requests):
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    return nothing(lm, requests)


# -- what an edit may do -------------------------------------------------------------------------


@contextlib.contextmanager
def raising(hf):
    raise RuntimeError("on the way in")
    yield


@contextlib.contextmanager
def hooking(hf):
    hf.get_output_embeddings().register_forward_hook(lambda m, i, o: o * 0.5)
    yield


@contextlib.contextmanager
def changing(hf):
    with torch.no_grad():
        next(hf.parameters()).add_(1.0)
    yield


def each(edit):
    return lambda lm, requests: [edit(lm) for _ in requests]


def neurons(indices):
    return each(lambda lm: NeuronEdit((NeuronScale(0, torch.tensor(indices), 0.0),)))


ODD_NOTES: Any = [("loss", 1)]


def noted(**notes):
    return each(lambda lm: NoEdit(notes=notes))


NONE: Any = None
"""What a careless author passes where an edit wants a value."""
LEFT = "mine changed {} while editing; a method must return its edit as a value"


@dataclass(frozen=True)
class Row:
    """One method, and the error of its cases: None where they are measured."""

    edit: Any
    error: str | None
    spared: bool = False
    """Only the first case is in error."""


TABLE = [
    Row(mutates_and_raises, "mine failed while editing: RuntimeError: midway"),
    Row(mutates_and_declines, LEFT.format("the model's parameters")),
    Row(leaves_a_hook, LEFT.format("the model's hooks")),
    Row(leaves_a_pre_hook, LEFT.format("the model's hooks")),
    Row(changes_epsilon, LEFT.format("the model's attribute eps of LayerNorm")),
    Row(replaces_forward, LEFT.format("the model's attribute forward of GPT2Block")),
    Row(replaces_a_module, LEFT.format("the model's modules or parameters")),
    Row(trains, LEFT.format("the model's mode (train, eval)")),
    Row(wants_gradients, LEFT.format("requires_grad or gradients of the model's parameters")),
    Row(changes_the_config, LEFT.format("the model's config")),
    Row(changes_the_default_dtype, LEFT.format("torch's default dtype")),
    Row(turns_gradients_off, LEFT.format("torch's grad mode")),
    Row(leaves_by_system_exit, "mine failed while editing: SystemExit: 3"),
    Row(draws, None),
    Row(one_malformed, "mine edits layer 0.0: expected a whole number", spared=True),
    Row(
        lambda lm, requests: None,
        "mine returned a NoneType: expected a list with one edit a request",
    ),
    Row(lambda lm, requests: [], "mine returned 0 edits: expected one for each of 3 requests"),
    Row(each(lambda lm: "an edit"), "mine returned a str in place of an edit"),
    Row(each(lambda lm: low_rank(lm, layer=True)), "mine edits layer True: expected a whole"),
    Row(each(lambda lm: low_rank(lm, layer=99)), "mine edits layer 99; random-gpt2 has layers 0"),
    Row(each(lambda lm: low_rank(lm, dtype=torch.complex64)), "of torch.complex64: expected a"),
    Row(each(lambda lm: low_rank(lm, fill=math.nan)), "that is not finite (NaN or infinity)"),
    Row(each(lambda lm: low_rank(lm, fill=1e30)), "a log-probability is NaN"),
    Row(neurons([True, False]), "given as torch.bool: expected indices"),
    Row(neurons([1, 1]), "scales a neuron of layer 0 twice: list each once"),
    Row(neurons([[1, 2]]), "in 2 dimensions: expected one"),
    Row(neurons([-1]), "scales a neuron outside 0 to"),
    Row(each(lambda lm: PromptEdit(" ")), "returned a PromptEdit with an empty prefix"),
    Row(each(lambda lm: PromptEdit(NONE)), "returned a PromptEdit that cannot be read"),
    Row(each(lambda lm: DenseEdit({"nonsense": torch.zeros(1)})), "'nonsense': expected a param"),
    Row(each(lambda lm: DenseEdit({"nonsense": NONE})), "of NoneType: expected a tensor of"),
    Row(each(lambda lm: WrapperEdit(raising)), "failed under its edit: RuntimeError: on the way"),
    Row(each(lambda lm: WrapperEdit(NONE)), "failed under its edit: TypeError"),
    Row(each(lambda lm: WrapperEdit(hooking)), "left the model's hooks changed after its edit"),
    Row(each(lambda lm: WrapperEdit(changing)), "differs after a WrapperEdit was taken back"),
    Row(noted(loss=math.nan, at=math.inf, by=None, of=[1.0, 2.0], n=np.int64(3)), None),
    Row(noted(big=10**400, tensor=torch.tensor(2.0), many=torch.zeros(3), odd=object()), None),
    Row(each(lambda lm: NoEdit(notes=ODD_NOTES)), None),
]


def outcome(case, result):
    """The first verdict of a case, whose rows our own reader takes."""
    verdict = judge("reliability", case, result)
    text = encode_rows(Key("m", "mine", case.id, "reliability"), case, result, verdict)
    assert isinstance(decode_rows(text)[-1], rows.VerdictRow)
    return verdict


@pytest.mark.parametrize("row", TABLE, ids=lambda row: getattr(row.edit, "__name__", None))
def test_a_hostile_method_has_its_error_and_the_next_one_its_numbers(row):
    lm = tiny_model("gpt2", dtype=torch.float32)
    method = type("Mine", (), {"edit": lambda self, requests: row.edit(lm, requests)})()
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    engine = Engine(lm)
    results = engine.measure("mine", method, CASES).results
    verdicts = [outcome(case, results[case.id]) for case in CASES]
    for number, verdict in enumerate(verdicts):
        if row.error is None or (row.spared and number):
            assert verdict.status in ("holds", "missed"), verdict
        else:
            assert verdict.status == "error"
            assert row.error in verdict.reason
    assert lm.parameter_hash() == lm.verified_hash
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]
    assert engine.put_back() == ()
    assert measured(engine) == measured(Engine(tiny_model.__wrapped__("gpt2", torch.float32)))


def measured(engine):
    edit = each(low_rank)
    method = type("Good", (), {"edit": lambda self, requests: edit(engine.model, requests)})()
    results = engine.measure("good", method, CASES).results
    return [[(m.before, m.after, m.kl) for m in r.measurements] for r in results.values()]


def test_everything_that_is_compared_is_put_back():
    lm = tiny_model.__wrapped__("llama", torch.float32)
    kept = Surroundings(lm.hf)
    assert kept.put_back() == ()
    lm.hf.train()
    lm.site(1).register_forward_hook(lambda m, i, o: o)
    torch.set_float32_matmul_precision("high")
    parameter = next(lm.hf.parameters())
    parameter.grad = torch.zeros_like(parameter)
    assert kept.put_back() == (
        "the model's mode (train, eval)",
        "the model's hooks",
        "requires_grad or gradients of the model's parameters",
        "torch's precision of products",
    )
    assert kept.put_back() == ()
