"""``kn_bench.edited``: blocks in one another, and what may be done within one."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

import kn_bench as kn
from tests.test_door import low_rank, neurons
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
