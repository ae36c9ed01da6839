"""A model spread over two GPUs gives what it gives on one device: nothing is left where it was.

The GPUs are virtual (:mod:`tests.virtual_gpus`): an operation on tensors of two of them raises.
"""

import itertools
from contextlib import nullcontext
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from kn_bench.cases.sources import embedded as cases_of
from kn_bench.editing import builtin
from kn_bench.editing.applying import RowEdits, in_place
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.editing.registry import bind, marked
from kn_bench.localise.alternatives import direct_ablation, gradient_x_activation
from kn_bench.localise.attribution import attribute
from kn_bench.localise.tracing import trace
from kn_bench.measure.engine import Engine
from kn_bench.measure.sentences import perplexity, token_log_probs
from kn_bench.model.after_site import clean_sites
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loading import load_model
from kn_bench.study.material import Material
from kn_bench.study.sections import parts
from tests.made_up_study import SETTINGS, made_up_cases
from tests.shares import mostly_slow
from tests.test_attribution import queries
from tests.test_study import ALWAYS
from tests.test_tracing import noise_of, prompt_of
from tests.tiny_models import FAMILIES, tiny_model
from tests.virtual_gpus import VirtualGpus, spread

pytest.importorskip("accelerate")


def test_virtual_gpus_are_as_particular_as_real_ones():
    with VirtualGpus():
        vector = torch.ones(3, device="cuda:0")
        other = torch.arange(3.0).to("cuda:1")
        assert [str(t.device) for t in (vector, other[1:], other.cpu())] == [
            "cuda:0",
            "cuda:1",
            "cpu",
        ]
        for mixed in (
            lambda: vector + other,
            lambda: other @ torch.ones(3),
            lambda: torch.stack([vector, other]),
            lambda: vector[torch.tensor([0], device="cuda:1")],
        ):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mixed()
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            np.asarray(vector)
        # a number on the host and indices on the host go with everything
        assert str((other[torch.tensor([0])] * torch.tensor(2.0)).device) == "cuda:1"
        assert (vector + other.to(vector.device)).tolist() == [1, 2, 3]


NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_BENCH_CACHE", str(tmp_path))


def alone_and_spread(load, measured):
    """What ``measured`` finds on one device and on two, each with nothing remembered."""
    both = []
    for apart in (False, True):
        tiny_model.cache_clear()
        lm = load()
        with VirtualGpus() if apart else nullcontext():
            if apart:
                spread(lm)
                places = {str(lm.site(layer).weight.device) for layer in range(lm.n_layers)}
                assert places == {"cuda:0", "cuda:1"}
            # methods remember by content: nothing computed before is to be read
            lm.__dict__["original_hash"] = f"never seen before {next(NUMBERS)}"
            both.append(measured(lm))
    tiny_model.cache_clear()
    return both


UNROLLED = {"albert"}
"""Whose layers are one module, which cannot lie on two devices."""


SPREAD = sorted(set(FAMILIES) - UNROLLED)


@pytest.mark.parametrize("family", mostly_slow(SPREAD, fast=["bert", "gemma2", "gpt2", "llama"]))
def test_attribution_and_tracing_of_every_family(family):
    def measured(lm):
        prompt = prompt_of(lm)
        (traced,) = trace(lm, [prompt], [noise_of(lm, prompt)], window=2)
        scores = [left.scores for left in attribute(lm, queries(lm))]
        scores += gradient_x_activation(lm, queries(lm))
        scores += direct_ablation(lm, queries(lm))
        return [left.cpu() for left in (*scores, traced.scores)]

    alone, apart = alone_and_spread(lambda: tiny_model(family), measured)
    for left, right in zip(alone, apart, strict=True):
        assert left.abs().max() > 0
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - UNROLLED))
def test_no_shortcut_is_lost(family):
    """Where a way of going on behind a site fails, a slower one is taken and nothing is said."""

    def measured(lm):
        (query, _) = queries(lm)
        return clean_sites(lm, lm.tensor([query.ids]), lm.tensor([[query.answer_position]])[0]).ways

    alone, apart = alone_and_spread(lambda: tiny_model(family), measured)
    assert alone == apart


NAMES = (
    "kn-suppress", "kn-edit", "kn-erase", "rome", "r-rome", "rome-no-c", "memit", "ft-m",
    "in-context", "random-rank-one",
)  # fmt: skip
METHODS = [spec for module in builtin.modules() for spec in marked(module) if spec.name in NAMES]
"""One of each way to edit; the others differ in their closed form alone."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert"])
def test_every_method_edits_and_is_measured(name):
    cases = cases_of.load(only=["P36"], limit=1).cases

    def measured(lm: LanguageModel):
        of_method = {}
        for spec in METHODS:
            if spec.models in ("any", lm.architecture.kind):
                method = bind(spec, lm)
                results = Engine(lm).measure(spec.name, method, cases).results
                of_method[spec.name] = [result.measurements for result in results.values()]
        return of_method

    alone, apart = alone_and_spread(lambda: load_model(name, dtype="float64"), measured)
    assert alone.keys() == apart.keys()
    for method, measurements in alone.items():
        assert any(measurements), f"{method} measured nothing"
        _assert_alike(measurements, apart[method], method)


def _assert_alike(ours, theirs, where):
    """Equal, numbers to rounding."""
    if isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9, nan_ok=True), where
    elif is_dataclass(ours):
        for field in fields(ours):
            _assert_alike(getattr(ours, field.name), getattr(theirs, field.name), where)
    elif isinstance(ours, list | tuple):
        for left, right in zip(ours, theirs, strict=True):
            _assert_alike(left, right, where)
    else:
        assert ours == theirs, where


def test_an_edit_in_place_is_that_of_rows_and_is_taken_back():
    def measured(lm: LanguageModel):
        update = LowRank(
            2,
            torch.linspace(-1, 1, lm.d_mlp, device=lm.device, dtype=lm.dtype)[:, None],
            torch.linspace(-1, 2, lm.d_model, device=lm.device, dtype=lm.dtype)[None],
        )
        edit = LowRankEdit(updates=(update,))
        ids, at = lm.tensor([[5, 6, 7]]), lm.tensor([[2]])
        before = lm.forward(ids, at)
        with in_place(lm, edit):
            encode_one = lm.forward(ids, at)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        with RowEdits(lm, [edit]).on(lm.tensor([[0]])[0], everywhere):
            rows = lm.forward(ids, at)
        assert torch.equal(lm.forward(ids, at), before)
        return [left.cpu() for left in (before, encode_one, rows)]

    alone, apart = alone_and_spread(lambda: tiny_model("llama"), measured)
    torch.testing.assert_close(apart[1], apart[2], rtol=1e-9, atol=1e-12)
    for left, right in zip(alone, apart, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


WITHOUT_TRACING = sorted(set(ALWAYS) - {"tracing"})


@pytest.mark.parametrize("name", mostly_slow(WITHOUT_TRACING, fast=["dose", "levels", "place"]))
def test_every_section_of_the_study(name):
    def measured(lm: LanguageModel):
        return parts([name])[0].run(Material(lm, made_up_cases(), SETTINGS)).tables

    alone, apart = alone_and_spread(lambda: tiny_model("gpt2"), measured)
    _assert_alike(alone, apart, name)


def test_perplexity():
    texts = ["w5 w6 w7", "w8 w9 w10 w11"]
    for family in ("gpt2", "bert"):
        alone, apart = alone_and_spread(
            lambda family=family: tiny_model(family),
            lambda lm: perplexity(token_log_probs(lm, texts)),
        )
        assert alone == pytest.approx(apart, rel=1e-12)
