"""``kn_bench.edited``: blocks in one another, and what may be done within one."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

import kn_bench as kn
from kn_bench.model.held import EditOutlivedError
from tests.test_door import FACT, low_rank, neurons
from tests.tiny_models import tiny_model


def opposite(model):
    (update,) = low_rank(model).updates
    return kn.LowRankEdit((kn.LowRank(update.layer, update.u, -update.v),))


def dense(model):
    shape = dict(model.hf.named_parameters())[model.weight_name(0)].shape
    return kn.DenseEdit({model.weight_name(0): torch.ones(shape)})


def wrapper(model):
    @contextmanager
    def louder(hf):
        handle = hf.transformer.h[0].mlp.register_forward_hook(lambda _, __, out: 9 * out)
        yield
        handle.remove()

    return kn.WrapperEdit(louder)


@pytest.mark.parametrize("make", [opposite, dense, neurons, lambda _: kn.PromptEdit("a"), wrapper])
def test_edits_stack_and_each_block_gives_back_what_it_found(make):
    """The inner block ended in an EditOutlivedError: it compared with the model as loaded."""
    model = tiny_model("gpt2")
    ids, at = model.tensor([[5, 6, 7]]), model.tensor([[2]])

    def seen():
        return model.forward(ids, at).tolist(), model.prompt_prefix, model.content_hash

    plain = seen()
    with kn.edited(model, low_rank(model)):
        once = seen()
        assert (once[0] != plain[0], once[2] != plain[2]) == (True, True)
        with kn.edited(model, make(model)):
            assert seen()[:2] != once[:2]
        assert seen() == once
    assert seen() == plain


def test_two_edits_in_one_another_are_their_sum():
    model = tiny_model("gpt2")
    edit = low_rank(model)
    (update,) = edit.updates
    twice = kn.LowRankEdit((kn.LowRank(1, update.u, 2 * update.v),))
    ids, at = model.tensor([[5, 6, 7]]), model.tensor([[2]])
    with kn.edited(model, edit), kn.edited(model, edit):
        nested = model.forward(ids, at)
    with kn.edited(model, twice):
        assert torch.allclose(nested, model.forward(ids, at), atol=1e-5)


def test_what_is_read_of_the_unedited_model_is_read_without_the_open_edit():
    model = tiny_model("gpt2")
    name = model.weight_name(1)
    loaded = dict(model.hf.named_parameters())[name].detach().clone()
    for inner in (kn.NoEdit(), low_rank(model), dense(model)):
        with kn.edited(model, low_rank(model)), kn.edited(model, inner):
            assert not torch.equal(dict(model.hf.named_parameters())[name], loaded)
            with model.unedited():
                assert torch.equal(dict(model.hf.named_parameters())[name], loaded)
                assert model.content_hash == model.original_hash
    for elsewhere in (neurons(model), wrapper(model)):
        with (
            kn.edited(model, elsewhere),
            pytest.raises(ValueError, match="do this outside of that edit"),
            model.unedited(),
        ):
            pass


@pytest.mark.parametrize("edit", [low_rank, neurons, lambda _: kn.PromptEdit("w9")])
def test_an_evaluation_within_an_edit_is_refused_and_leaves_the_edit(edit):
    """The edit was gone for the rest of its block, and every score was NaN."""
    model = kn.load_model("tiny-gpt2")
    cases = kn.load_cases("embedded", relation="P36", limit=1)
    with kn.edited(model, edit(model)):
        now = model.parameter_hash()
        with pytest.raises(ValueError, match="without an edit, and one is in force"):
            kn.evaluate(model, "none", cases)
        assert model.parameter_hash() == now


def whole(model):
    return (
        model.parameter_hash() == model.verified_hash
        and (model.held_edits, model.prompt_prefix) == ("", "")
        and model.content_hash == model.original_hash
    )


KINDS = [opposite, dense, neurons, lambda _: kn.PromptEdit("a"), wrapper]


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_blocks_that_are_left_in_another_order_leave_the_model_as_it_was(first, second):
    """It stayed edited for good, and nothing said so."""
    model = tiny_model("gpt2")
    ids, at = model.tensor([[5, 6, 7]]), model.tensor([[2]])
    plain = model.forward(ids, at)
    with kn.edited(model, low_rank(model)):
        outer = model.forward(ids, at)
        one, two = kn.edited(model, first(model)), kn.edited(model, second(model))
        one.__enter__()
        two.__enter__()
        with pytest.raises(EditOutlivedError, match=r"before 1 made after it.*opposite order"):
            one.__exit__(None, None, None)
        assert torch.equal(model.forward(ids, at), outer)
        two.__exit__(None, None, None)
        assert torch.equal(model.forward(ids, at), outer)
    assert torch.equal(model.forward(ids, at), plain)
    assert whole(model)


def test_an_error_in_a_block_is_not_hidden_by_the_order_of_blocks():
    model = tiny_model("gpt2")
    inner = kn.edited(model, dense(model))

    def broken():
        with kn.edited(model, low_rank(model)):
            inner.__enter__()
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert whole(model)


@pytest.mark.parametrize("make", KINDS)
def test_a_restored_model_is_as_it_was_loaded_whatever_blocks_are_open(make):
    model = kn.load_model("tiny-gpt2")
    with kn.edited(model, make(model)), kn.edited(model, make(model)):
        model.restore()
        assert whole(model)
    assert whole(model)
    with kn.edited(model, low_rank(model)):
        copied = copy.deepcopy(model)
        assert copied.held_edits
        copied.restore()
        assert whole(copied)
        assert not whole(model)


def elsewhere(call):
    """What a call raises in another thread; None for nothing."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).exception(timeout=60)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: kn.edited(model, kn.NoEdit()).__enter__(),
        lambda model: kn.edited(model, low_rank(model)).__enter__(),
        lambda model: kn.method("none", model).edit(FACT),
        lambda model: kn.evaluate(model, "none", kn.load_cases("embedded", limit=1)[:1]),
    ],
)
def test_a_model_is_used_by_one_thread_at_a_time(use):
    model = tiny_model("gpt2")
    with kn.edited(model, kn.NoEdit()):
        refused = elsewhere(lambda: use(model))
        assert isinstance(refused, ValueError)
        assert "expected one thread to use it at a time" in str(refused)
        kn.edited(model, low_rank(model)).__enter__()
    assert elsewhere(lambda: use(model)) is None


def test_an_evaluation_keeps_its_model_to_its_thread():
    model, seen = kn.load_model("tiny-gpt2"), []

    class Meddler:
        def edit(self, requests):
            seen.append(elsewhere(lambda: kn.edited(model, low_rank(model)).__enter__()))
            return [kn.NoEdit() for _ in requests]

    @kn.edit_method("meddler")
    def meddler(language_model):
        return Meddler()

    kn.evaluate(model, meddler, kn.load_cases("embedded", limit=1)[:1])
    assert [str(error).partition(": ")[2][:19] for error in seen] == ["expected one thread"]
