"""Methods that misbehave, as a table: what each does, and what must happen.

After every row the model, its modules and the process are what they were, and a method that behaves
gets the numbers that it gets alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import math
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kn_bench import load_cases
from kn_bench.editing.applying import edited
from kn_bench.editing.edit import (
    DenseEdit,
    LowRank,
    LowRankDeltas,
    LowRankEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    NotApplicable,
    PromptEdit,
    RankFactors,
    WrapperEdit,
)
from kn_bench.editing.faults import told
from kn_bench.editing.registry import MethodSpec
from kn_bench.editing.surroundings import Surroundings
from kn_bench.measure.criteria import judge
from kn_bench.measure.engine import Engine
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.sequences import Plan, measure_sequence
from kn_bench.model.language_model import LanguageModel
from kn_bench.results import rows
from kn_bench.results.rows import Key, decode_rows, encode_rows
from kn_bench.testing.calibration import BrokenOff
from kn_bench.testing.computing import UnitComputer
from kn_bench.testing.models import Models
from kn_bench.testing.options import Options
from kn_bench.testing.points import Work
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


MODES: list[torch.inference_mode] = []


def enters_inference_mode(lm, requests):
    MODES.append(torch.inference_mode())  # torch leaves a mode that nobody holds
    MODES[-1].__enter__()
    return nothing(lm, requests)


def leaves_little_stack(lm, requests):
    sys.setrecursionlimit(len(inspect.stack(0)) + 20)
    return nothing(lm, requests)


def doubles(lm, requests):
    lm.hf.double()
    return nothing(lm, requests)


def halves(lm, requests):
    lm.hf.bfloat16()
    return nothing(lm, requests)


def cuts_a_parameter(lm, requests):
    parameter = lm.site(0).weight
    parameter.data = parameter.data[:1]
    return nothing(lm, requests)


def adds_a_buffer(lm, requests):
    lm.hf.register_buffer("cache", torch.ones(2))
    return nothing(lm, requests)


def hooks_every_module(lm, requests):
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        return output * 0.5 if isinstance(output, torch.Tensor) else None

    torch.nn.modules.module.register_module_forward_hook(hook)
    return nothing(lm, requests)


def patches(owner_of, name):
    """A method that leaves a function of its own in place of another."""

    def patched(lm, requests):
        owner = owner_of(lm)
        before = getattr(owner, name)

        def half(*args, **named):
            result = before(*args, **named)
            return 0.5 * result if isinstance(result, torch.Tensor) else result

        setattr(owner, name, half)
        return nothing(lm, requests)

    return patched


def changes_a_class(lm, requests):
    module = lm.layers[0].mlp
    kind = type(module)

    def half(self, hidden):
        return 0.5 * kind.forward(self, hidden)

    module.__class__ = type("Half", (kind,), {"forward": half})
    return nothing(lm, requests)


def sets(owner_of, name, value):
    def setting(lm, requests):
        setattr(owner_of(lm), name, value)
        return nothing(lm, requests)

    return setting


def reverses_the_layers(lm, requests):
    lm.layers.reverse()
    return nothing(lm, requests)


def casts(lm, requests):
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    return nothing(lm, requests)


def changes_the_default_device(lm, requests):
    torch.set_default_device("meta")
    return nothing(lm, requests)


def rewrites_its_requests(lm, requests):
    for request in requests:
        for name in ("target_new", "subject", "id"):
            object.__setattr__(request, name, "w9")
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


def factored(lm, u):
    return DenseEdit(LowRankDeltas({lm.weight_name(0): RankFactors(u, torch.full((1, 8), 10.0))}))


def each(edit):
    return lambda lm, requests: [edit(lm) for _ in requests]


def neurons(indices):
    return each(lambda lm: NeuronEdit((NeuronScale(0, torch.tensor(indices), 0.0),)))


def grouped(*groups):
    scales = [NeuronScale(layer, torch.tensor(n), factor) for layer, n, factor in groups]
    return each(lambda lm: NeuronEdit(tuple(scales)))


def neurons_of(indices):
    return each(lambda lm: NeuronEdit((NeuronScale(0, indices, 0.0),)))


def scaled(factor):
    return each(lambda lm: NeuronEdit((NeuronScale(0, torch.tensor([1]), factor),)))


def mixed(lm):
    (update,) = low_rank(lm).updates
    return LowRankEdit((replace(update, u=update.u.double(), v=update.v.half()),))


ODD_NAME: Any = 0
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
    Row(enters_inference_mode, LEFT.format("torch's inference mode")),
    Row(leaves_little_stack, LEFT.format("Python's recursion limit")),
    Row(doubles, LEFT.format("the model's parameters (dtype)")),
    Row(halves, LEFT.format("the model's parameters (dtype)")),
    Row(cuts_a_parameter, LEFT.format("the model's parameters")),
    Row(adds_a_buffer, LEFT.format("the model's buffers")),
    Row(hooks_every_module, LEFT.format("torch's hooks of all modules")),
    Row(
        patches(lambda lm: type(lm.hf.base_model), "forward"),
        LEFT.format("the code of GPT2Model.forward"),
    ),
    Row(
        patches(lambda lm: torch.nn.LayerNorm, "forward"),
        LEFT.format("the code of LayerNorm.forward"),
    ),
    Row(
        patches(lambda lm: type(lm.layers[0].mlp), "_call_impl"),
        LEFT.format("the code of GPT2MLP._call_impl"),
    ),
    Row(
        patches(lambda lm: torch.nn.functional, "scaled_dot_product_attention"),
        LEFT.format("the code of torch.nn.functional.scaled_dot_product_attention"),
    ),
    Row(
        patches(lambda lm: lm.layers[0].mlp, "_call_impl"),
        LEFT.format("the model's attribute _call_impl of GPT2MLP"),
    ),
    Row(changes_a_class, LEFT.format("the model's class of a GPT2MLP")),
    Row(reverses_the_layers, LEFT.format("attribute layers of LanguageModel")),
    Row(
        patches(lambda lm: lm, "weight"),
        LEFT.format("attribute weight of LanguageModel"),
    ),
    Row(
        sets(lambda lm: lm.tokens, "max_length", 3),
        LEFT.format("attribute max_length of Tokens"),
    ),
    Row(
        sets(lambda lm: lm, "prompt_prefix", "w9"),
        LEFT.format("attribute prompt_prefix of LanguageModel"),
    ),
    Row(casts, LEFT.format("torch's autocast")),
    Row(changes_the_default_device, LEFT.format("torch's default device")),
    Row(rewrites_its_requests, None),
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
    Row(neurons_of(torch.tensor([1], dtype=torch.uint8)), "as torch.uint8: expected indices"),
    *(Row(neurons_of(torch.tensor([1], dtype=d)), None) for d in (torch.int8, torch.int16)),
    Row(neurons_of(torch.tensor([1], dtype=torch.int32)), None),
    Row(scaled(torch.tensor([1.0, 2.0])), "layer 0 by a Tensor: expected one real number"),
    Row(scaled(1j), "scales neurons of layer 0 by a complex: expected one real number"),
    Row(scaled(NONE), "scales neurons of layer 0 by a NoneType: expected one real number"),
    Row(scaled(math.inf), "returned a factor at layer 0 that is not finite"),
    Row(scaled(torch.tensor(0.0)), None),
    Row(neurons([1, 1]), "scales a neuron of layer 0 twice: list each once"),
    Row(grouped((0, [1, 2], 2.0), (0, [3, 1], 4.0)), "scales a neuron of layer 0 by two factors:"),
    Row(grouped((1, [2], 0.0), (0, [2], 2.0), (1, [2], 0.0)), "neuron of layer 1 by two factors:"),
    Row(grouped((0, [1, 2], 2.0), (0, [3], 4.0), (1, [1, 3], 2.0)), None),
    Row(neurons([[1, 2]]), "in 2 dimensions: expected one"),
    Row(neurons([-1]), "scales a neuron outside 0 to"),
    Row(each(lambda lm: PromptEdit(" ")), "returned a PromptEdit with an empty prefix"),
    Row(each(lambda lm: PromptEdit("w5 \ud800")), "the text holds half a character"),
    Row(each(lambda lm: PromptEdit(NONE)), "returned a PromptEdit that cannot be read"),
    Row(each(lambda lm: DenseEdit({"nonsense": torch.zeros(1)})), "'nonsense': expected a param"),
    Row(each(lambda lm: DenseEdit({ODD_NAME: torch.zeros(1)})), "delta of 0: expected the name"),
    Row(each(lambda lm: DenseEdit({"nonsense": NONE})), "of NoneType: expected a tensor of"),
    Row(each(lambda lm: factored(lm, torch.ones(2, 1))), "of shape (2, 8): expected the param"),
    Row(each(lambda lm: factored(lm, torch.ones(2, 1).int())), "of torch.int32: expected a tensor"),
    Row(each(lambda lm: factored(lm, torch.full((2, 1), 3e38))), "is not finite"),
    Row(each(lambda lm: factored(lm, torch.ones(2, 3))), "a DenseEdit that cannot be read"),
    Row(each(lambda lm: factored(lm, NONE)), "of NoneType: expected a tensor of"),
    Row(each(lambda lm: WrapperEdit(raising)), "failed under its edit: RuntimeError: on the way"),
    Row(each(lambda lm: WrapperEdit(NONE)), "returned a WrapperEdit of a NoneType: expected a"),
    Row(each(lambda lm: WrapperEdit(hooking)), "left the model's hooks changed after its edit"),
    Row(each(lambda lm: WrapperEdit(changing)), "differs after a WrapperEdit was taken back"),
    Row(each(mixed), None),
    Row(noted(half="\ud800", **{"\udfff": 1}), None),
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
    assert [toy_case(index) for index in range(3)] == CASES
    assert lm.parameter_hash() == lm.verified_hash
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]
    assert engine.put_back() == ()
    gc.collect()
    assert torch.ones(1, requires_grad=True).mul(2).requires_grad
    assert measured(engine) == measured(Engine(tiny_model.__wrapped__("gpt2", torch.float32)))


def measured(engine):
    edit = each(low_rank)
    method = type("Good", (), {"edit": lambda self, requests: edit(engine.model, requests)})()
    results = engine.measure("good", method, CASES).results
    return [[(m.before, m.after, m.kl) for m in r.measurements] for r in results.values()]


def test_everything_that_is_compared_is_put_back():
    lm = tiny_model.__wrapped__("llama", torch.float32)
    kept = Surroundings(lm)
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


class Stop(BaseException):
    """What a library may raise to end whatever runs it."""


@pytest.mark.parametrize("leaves", [Stop, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("where", ["editing", "its edit", "a batch", "its edits"])
def test_what_is_no_exception_is_the_error_of_its_method_alone(leaves, where):
    engine = Engine(tiny_model("gpt2", dtype=torch.float32))

    @contextlib.contextmanager
    def left(hf):
        raise leaves("at once")
        yield

    def edit(self, requests):
        if where in ("its edit", "its edits"):
            return [WrapperEdit(left) for _ in requests]
        return left(engine.model.hf).__enter__()

    method = type("Leaving", (), {"edit": edit})()
    if where in ("editing", "its edit"):
        results = engine.measure("mine", method, CASES).results
        wanted = "while editing" if where == "editing" else "under its edit"
    else:
        asked = Plan(parse_protocol("sequence:3"), tuple(CASES))
        results = measure_sequence(engine, "mine", method, asked).results
        wanted = "at step 1" if where == "a batch" else "under its edits"
    errors = {result.error for result in results.values()}
    assert errors == {f"mine failed {wanted}: {leaves.__name__}: at once"}
    assert engine.put_back() == ()


@pytest.mark.parametrize("passes", [KeyboardInterrupt, BrokenOff, pytest.skip.Exception])
def test_what_is_to_end_the_work_passes_through_a_method(passes):
    engine = Engine(tiny_model("gpt2", dtype=torch.float32))

    def edit(self, requests):
        raise passes("now")

    with pytest.raises(passes):
        engine.measure("mine", type("Passing", (), {"edit": edit})(), CASES)


class UnreadableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (UnreadableError(), "UnreadableError: its text cannot be read"),
        (RuntimeError("half \ud800"), "RuntimeError: half ?"),
        (AssertionError(), "AssertionError: "),
    ],
)
def test_an_error_is_told_whatever_its_text(error, wanted):
    assert told(error) == wanted


@pytest.mark.parametrize("refusal", [NotApplicable, NotApplicable(), NotApplicable(" ")])
@pytest.mark.parametrize("protocol", ["single", "batch:3"])
@pytest.mark.parametrize("returned", [True, False])
def test_a_refusal_without_a_reason_is_one(refusal, protocol, returned):
    engine = Engine(tiny_model("gpt2", dtype=torch.float32))

    def edit(self, requests):
        if returned and not isinstance(refusal, type):
            return [refusal for _ in requests]
        raise refusal

    method = type("Refusing", (), {"edit": edit})()
    if protocol == "single":
        results = engine.measure("mine", method, CASES).results
    else:
        asked = Plan(parse_protocol(protocol), tuple(CASES))
        results = measure_sequence(engine, "mine", method, asked).results
    assert {r.not_applicable for r in results.values()} == {"no reason given"}


@pytest.fixture
def computed():
    """Measures a method made by a function, as a session does: returns the case's error."""
    models = Models(Options(), "cpu", {})
    case = load_cases("embedded", relation="P36", limit=1)[0]
    told: Any = SimpleNamespace(edits=None)
    computer = UnitComputer(Options(), told, models)

    def error_of(make, name="mine"):
        spec = MethodSpec(name, "any", make, "mine.py:1")
        node = SimpleNamespace(add_report_section=lambda *_: None)
        fixture = lambda _: make(models.model("tiny-gpt2"))  # noqa: E731
        request: Any = SimpleNamespace(getfixturevalue=fixture, node=node)
        work = Work(spec, "tiny-gpt2", (case,), None)
        return computer.compute(request, work).result.results[case.id]

    return error_of


def by(edit):
    return lambda lm: type("Mine", (), {"edit": lambda self, requests: edit(lm, requests)})()


def test_a_model_that_cannot_be_put_back_is_loaded_anew(computed, monkeypatch):
    def fail(self):
        raise RuntimeError("its file has gone")

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "restore", fail)
        assert "its file has gone" in computed(by(mutates_and_raises)).error
    assert not computed(by(nothing)).error


def test_what_cannot_be_put_back_ends_the_measuring_and_is_told(computed, monkeypatch):
    def replaces_attention(lm, requests):
        mapping = ALL_ATTENTION_FUNCTIONS._global_mapping
        monkeypatch.setitem(mapping, "sdpa", lambda *args, **named: (0 * args[2].mT.mT, None))
        return nothing(lm, requests)

    assert "gives others with the same weights" in computed(by(replaces_attention)).error
    assert "gives others with the same weights" in computed(by(nothing)).error
    monkeypatch.undo()
    assert "gives others with the same weights" in computed(by(nothing)).error


def test_an_error_when_a_method_is_made_is_its_own(computed):
    def make(lm):
        lm.hf.double()
        raise Stop("at once")

    assert computed(make).error == (
        "mine on tiny-gpt2 could not be measured: Stop: at once (mine.py:1)"
    )
    assert not computed(by(nothing)).error


@pytest.mark.parametrize("kind", ["daemon", "thread", "pool"])
def test_who_left_a_thread_running_is_named_where_weights_change(computed, kind):
    now, changed = threading.Event(), threading.Event()

    def leaves(lm, requests):
        def halve():
            now.wait(60)
            with torch.no_grad():
                lm.weight(0).mul_(0.5)
            changed.set()

        if kind == "pool":
            ThreadPoolExecutor(1).submit(halve)
        else:
            threading.Thread(target=halve, daemon=kind == "daemon").start()
        return nothing(lm, requests)

    def waits(lm, requests):
        now.set()
        changed.wait(60)
        return nothing(lm, requests)

    blamed = "innocent changed the model's parameters while editing; a method must return its edit "
    assert not computed(by(leaves), "leaves").error
    assert not computed(by(nothing)).error
    assert computed(by(waits), "innocent").error == (
        blamed + "as a value and leave the model alone (mine.py:1); or a thread that leaves "
        "left running did it"
    )
    assert computed(by(mutates_and_declines)).error.endswith("alone (mine.py:1)")


# -- what is measured alike in every protocol ----------------------------------------------------


def in_sequence(engine, method, protocol, control=False):
    asked = Plan(parse_protocol(protocol), tuple(CASES[: parse_protocol(protocol).edits]))
    return measure_sequence(engine, "mine", method, asked, control=control).results


@pytest.mark.parametrize("notes", [None, "text", [1, 2], {"t": torch.ones(3)}, {1: "\ud800"}])
def test_notes_of_any_kind_cost_no_measurement(notes):
    engine = Engine(tiny_model("gpt2", dtype=torch.float32))
    method = by(each(lambda lm: replace(low_rank(lm), notes=notes)))(engine.model)
    (alone,) = engine.measure("mine", method, CASES[:1]).results.values()
    for protocol in ("sequence:1", "batch:1"):
        (result,) = in_sequence(engine, method, protocol).values()
        assert not result.error
        assert [m.after for m in result.measurements] == [m.after for m in alone.measurements]
        assert result.edit is not None
        assert alone.edit is not None
        assert result.edit.notes == alone.edit.notes


@pytest.mark.parametrize(
    "edit",
    [
        mixed,
        lambda lm: low_rank(lm, dtype=torch.float64),
        lambda lm: LowRankEdit((low_rank(lm).updates[0].__class__(
            0, low_rank(lm).updates[0].u.requires_grad_(), low_rank(lm).updates[0].v),)),
    ],
)  # fmt: skip
def test_a_sequence_of_one_takes_the_factors_that_a_single_edit_takes(edit):
    engine = Engine(tiny_model("gpt2", dtype=torch.float32))
    (alone,) = engine.measure("mine", by(each(edit))(engine.model), CASES[:1]).results.values()
    (result,) = in_sequence(engine, by(each(edit))(engine.model), "sequence:1").values()
    assert not result.error
    for ours, theirs in zip(result.measurements, alone.measurements, strict=True):
        assert ours.after.generated == theirs.after.generated
        assert ours.after.log_prob_expected == pytest.approx(theirs.after.log_prob_expected, 1e-5)
    with edited(engine.model, edit(engine.model)):
        pass


def fails_to_begin():
    raise RuntimeError("no begin")


UNSTORABLE = [
    (lambda: torch.eye(2).to_sparse(), "tensor of the layout torch.sparse_coo"),
    (lambda: torch.eye(2).to_mkldnn(), "tensor of the layout torch._mkldnn"),
    (lambda: torch.eye(2, device="meta"), "tensor on the device meta"),
    (lambda: torch.ones(2, dtype=torch.complex128), "tensor of torch.complex128"),
    (lambda: torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged), "nested tensor"),
]
"""Makers of tensors that a safetensors file cannot hold, and what is said of each."""


@pytest.mark.parametrize(
    ("begun", "after", "wanted"),
    [
        (fails_to_begin, {}, "RuntimeError: no begin"),
        (lambda: None, {}, "begin() returned a NoneType as its state: expected a mapping of names"),
        (lambda: {"n": 3}, {}, "begin() returned a state whose 'n' is a int: expected a tensor"),
        (dict, None, "edit_together(requests, state) returned a NoneType as its state"),
        (dict, {"n": 3}, "returned a state whose 'n' is a int: expected a tensor"),
        (dict, {1: torch.ones(1)}, "returned a state with the key 1: expected a text"),
        (dict, {"__metadata__": torch.ones(1)}, "with the key '__metadata__', which a safetensors"),
        (dict, {"\ud800": torch.ones(1)}, r"a state with the key '\ud800', which a safetensors"),
        *(
            (dict, {"n": tensor()}, f"returned a state whose 'n' is a {kind}: expected a dense")
            for tensor, kind in UNSTORABLE
        ),
        (lambda: {"n": torch.eye(2).to_sparse()}, {}, "begin() returned a state whose 'n' is a t"),
    ],
)
@pytest.mark.parametrize("protocol", ["single", "sequence:2"])
def test_what_is_no_state_is_one_sentence(begun, after, wanted, protocol):
    engine = Engine(tiny_model("gpt2", dtype=torch.float32))
    together = lambda self, requests, state: (low_rank(engine.model), after)  # noqa: E731
    begin = lambda self: begun()  # noqa: E731
    method = type("Carrying", (), {"begin": begin, "edit_together": together})()
    if protocol == "single":
        results = engine.measure("mine", method, CASES[:2]).results
    else:
        results = in_sequence(engine, method, protocol)
    for result in results.values():
        assert wanted in result.error
        assert result.error.startswith("mine failed ")


@pytest.mark.parametrize("kind", ["low rank", "dense", "factored", "parameter"])
def test_a_buffer_that_a_method_uses_again_changes_no_earlier_edit(kind):
    engine = Engine(tiny_model("gpt2", dtype=torch.float32))
    lm = engine.model
    name = lm.weight_name(0)
    weight = lm.hf.get_parameter(name)
    buffers = torch.zeros(lm.d_mlp, 1), torch.full((1, lm.d_model), 0.02), torch.zeros_like(weight)

    class Fill:
        def __init__(self, again):
            self.again = again

        def edit(self, requests):
            u, v, delta = buffers if self.again else [buffer.clone() for buffer in buffers]
            u.fill_(float(requests[0].id[-1]) - 0.5)
            delta.fill_(0.01 * float(requests[0].id[-1]) - 0.005)
            if kind == "parameter":
                return [DenseEdit({name: weight if self.again else weight.detach().clone()})]
            if kind == "dense":
                return [DenseEdit({name: delta})]
            if kind == "factored":
                return [DenseEdit(LowRankDeltas({name: RankFactors(u, v)}))]
            return [LowRankEdit((LowRank(0, u, v),))]

    fresh, again = (in_sequence(engine, Fill(a), "sequence:3", control=True) for a in (False, True))
    assert not any(result.error for result in fresh.values())
    assert again == {case: replace(r, edit=again[case].edit) for case, r in fresh.items()}
    assert [r.edit.norm for r in again.values()] == [r.edit.norm for r in fresh.values()]
