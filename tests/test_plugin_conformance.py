"""The conformance kit finds what is wrong with a method, and nothing wrong with ours."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from kn_bench.cases import sources
from kn_bench.editing import builtin
from kn_bench.editing.edit import LowRank, LowRankEdit, NoEdit, PromptEdit
from kn_bench.editing.registry import edit_method, marked
from kn_bench.editing.settings import settings_for
from kn_bench.model import embedded
from kn_bench.model.loading import load_model
from kn_bench.testing import conformance
from kn_bench.testing.conformance import complaints
from tests.shares import mostly_slow


@pytest.fixture(scope="module")
def lm():
    return load_model("tiny-gpt2")


@pytest.fixture(scope="module")
def cases():
    return sources.load("embedded", limit=2, relations=["P36"]).cases


def updates(model, requests, generator):
    """A random update a request."""
    tensors = []
    for _ in requests:
        u = torch.randn(model.d_mlp, 1, generator=generator)
        tensors.append(LowRankEdit((LowRank(0, u, torch.randn(1, model.d_model)),)))
    return tensors


class Good:
    def __init__(self, model):
        self.model = model

    def edit(self, requests):
        edits = []
        for request in requests:
            generator = torch.Generator().manual_seed(len(request.subject))
            u = torch.randn(self.model.d_mlp, 1, generator=generator)
            v = torch.randn(1, self.model.d_model, generator=generator)
            edits.append(LowRankEdit((LowRank(1, u, v),)))
        return edits


class Unseeded(Good):
    def edit(self, requests):
        generator = torch.Generator()
        generator.seed()
        return updates(self.model, requests, generator)


class ByPosition(Good):
    def edit(self, requests):
        prefixes = ("Yes.", "No, never, not even once.")
        return [PromptEdit(prefixes[index % 2]) for index, _ in enumerate(requests)]


class Overflowing(Good):
    """Its edits make every logit NaN."""

    def edit(self, requests):
        u = torch.full((self.model.d_mlp, 1), 1e30)
        edit = LowRankEdit((LowRank(0, u, torch.ones(1, self.model.d_model)),))
        return [edit for _ in requests]


class OverflowingLast(Overflowing):
    def edit(self, requests):
        return [NoEdit() for _ in requests[:-1]] + super().edit(requests[-1:])


class Counting(Good):
    def __init__(self, model):
        super().__init__(model)
        self.history = []

    def edit(self, requests):
        self.history.append(len(requests))
        return [PromptEdit("So. " * len(self.history)) for _ in requests]


class Declared(Counting):
    state = ("history",)

    def reset(self):
        self.history = []


class WithoutReset(Counting):
    state = ("history",)


class Seeding(Good):
    def edit(self, requests):
        random.seed(0)
        torch.manual_seed(0)
        return super().edit(requests)


class Mutating(Good):
    def edit(self, requests):
        with torch.no_grad():
            self.model.weight(0).add_(1e-3)
        return [NoEdit() for _ in requests]


class Hooking(Good):
    def edit(self, requests):
        self.model.site(0).register_forward_hook(lambda *_: None)
        return super().edit(requests)


class TooFew(Good):
    def edit(self, requests):
        return super().edit(requests)[:1]


def check(cls, lm, cases):
    return complaints(lambda language_model: cls(language_model), model=lm, cases=cases)


@pytest.mark.parametrize("cls", [Good, Declared, Overflowing])
def test_a_good_method_has_no_complaints(cls, lm, cases):
    assert check(cls, lm, cases) == []


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Unseeded, "is not deterministic: the same requests again, and embedded/P36/"),
        (ByPosition, "depends on the order of the requests: reversed, embedded/P36/"),
        (OverflowingLast, "of the requests: reversed, embedded/P36/.* otherwise .by inf nats"),
        (Counting, "changes its attribute 'history' while editing and does not declare it"),
        (Counting, "remembers earlier requests: asked a second time, embedded/P36/"),
        (WithoutReset, r"declares state \(history\) but no reset\(\)"),
        (TooFew, "returned 1 edits: expected one for each of 2 requests"),
    ],
)
def test_each_fault_is_named(cls, sentence, lm, cases):
    complaints = check(cls, lm, cases)
    assert any(pytest.importorskip("re").search(sentence, text) for text in complaints), complaints


def test_a_method_that_seeds_is_given_a_random_state_of_its_own(lm, cases):
    before = random.getstate(), torch.get_rng_state()
    assert check(Seeding, lm, cases) == []
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_what_is_done_to_the_model_is_named(cases):
    (hooked,) = check(Hooking, load_model("tiny-gpt2"), cases)
    assert "changed the model's hooks while editing" in hooked
    (mutated,) = check(Mutating, load_model("tiny-gpt2"), cases)
    assert "changed the model's parameters while editing" in mutated


def test_a_method_that_never_applies(lm, cases):
    class Never:
        def edit(self, requests):
            from kn_bench.editing.edit import NotApplicable

            raise NotApplicable("needs a larger model")

    assert complaints(Never, model=lm, cases=cases) == [
        "Never applies to none of the cases: needs a larger model"
    ]


def test_the_model_follows_from_the_kind_of_method(monkeypatch):
    asked = []
    monkeypatch.setattr(conformance, "_model", lambda name: asked.append(name))
    monkeypatch.setattr(conformance._Bench, "complaints", lambda self, cases: iter(()))
    edit_method("m", models="masked")(function := lambda language_model: None)
    complaints(function, cases=())
    complaints(lambda: None, cases=())
    assert asked == ["tiny-bert", "tiny-gpt2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        ({"a": 1}, {"a": 2}),
        ([torch.zeros(1)], [torch.ones(1)]),
        ({1, 2}, {1, 3}),
    ],
)
def test_digests_tell_contents_apart(one, other):
    assert conformance.digest(one) != conformance.digest(other)
    assert conformance.digest(one) == conformance.digest(one)


BUILT_IN = {
    spec.name: spec for module in builtin.modules() for spec in marked(module) if not spec.takes
}
"""All but those that need an argument: a checkpoint its folder."""
ONE_OF_A_KIND = ("alphaedit", "ft-m", "grace", "in-context", "kn-edit", "lora", "memit", "rome")


@pytest.mark.parametrize("name", mostly_slow(BUILT_IN, fast=ONE_OF_A_KIND))
def test_our_own_methods_conform(name):
    spec = BUILT_IN[name]
    model = "tiny-bert" if spec.models == "masked" else "tiny-gpt2"
    if not (embedded.folder(model) / "config.json").is_file():
        pytest.skip(f"{model} is not there yet")
    # in float64, so that no step of Adam can pass rounding off as dependence
    lm = load_model(model, dtype="float64")
    assert complaints(_quick(spec), model=lm, tolerance=1e-7) == []


FEW = {"n_iter": 8, "num_steps": 4, "v_num_grad_steps": 4, "mom2_n_tokens": 3_000}
"""What a method must keep to, it keeps to after few steps of training as after many."""


def _quick(spec):
    if spec.settings is None:
        return spec.function

    def made(language_model):
        settings = settings_for(spec.name, spec.settings, language_model)
        few = {name: few for name, few in FEW.items() if hasattr(settings, name)}
        return spec.function(language_model, settings=replace(settings, **few))

    return made
