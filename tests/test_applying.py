"""Edits applied row by row equal edits applied in the weights; nothing outlives its `with`."""

from contextlib import contextmanager

import pytest
import torch

from kn_bench.editing.applying import RowEdits, deltas_of, in_place
from kn_bench.editing.composition import Composition
from kn_bench.editing.edit import (
    DenseEdit,
    LowRank,
    LowRankDeltas,
    LowRankEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    RankFactors,
    WrapperEdit,
    describe,
    norm,
)
from kn_bench.editing.validation import checked
from kn_bench.model.held import EditOutlivedError
from tests.tiny_models import FAMILIES, tiny_model


def rank_one(lm, layer, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(lm.d_mlp, 1, generator=generator, dtype=lm.dtype)
    v = scale * torch.randn(1, lm.d_model, generator=generator, dtype=lm.dtype)
    return LowRankEdit((LowRank(layer, u, v),))


def logits(lm, ids):
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    with torch.no_grad():
        return lm.forward(ids, positions)


def some_ids(rows=4, length=6):
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_one_edit_gives_equal_logits_both_ways(family):
    lm = tiny_model(family)
    ids, layer = some_ids(), lm.n_layers // 2
    edits = [rank_one(lm, layer, 1), NoEdit(), rank_one(lm, layer, 2), rank_one(lm, 0, 3)]
    everywhere = torch.ones(ids.shape, dtype=torch.bool)
    with RowEdits(lm, edits).on(torch.tensor([2, 1, 0, 3]), everywhere):
        together = logits(lm, ids)
    for row, edit in enumerate((edits[2], edits[1], edits[0], edits[3])):
        with in_place(lm, edit):
            alone = logits(lm, ids[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together[0], logits(lm, ids)[0]), "the edit did something"


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_suppress_and_enhance_scale_the_activation_at_the_answer(family):
    """Sign test: x0 takes the neuron's value away, x2 adds it once more, elsewhere nothing."""
    lm = tiny_model(family)
    ids, layer, neuron, position = some_ids(), 1, 5, 4
    seen = {}

    def values(factor):
        where = torch.zeros(ids.shape, dtype=torch.bool)
        where[:, position] = True
        edit = NeuronEdit((NeuronScale(layer, torch.tensor([neuron]), factor),))

        def look(_, keys, out):
            seen[factor] = (keys.clone(), out.clone())
            return out

        with (
            RowEdits(lm, [edit]).on(torch.zeros(len(ids), dtype=torch.long), where),
            lm.site_hooks(look, [layer]),
        ):
            logits(lm, ids)
        return seen[factor][1]

    unchanged, suppressed, enhanced = values(1.0), values(0.0), values(2.0)
    key = seen[1.0][0][:, position, neuron]
    contribution = key[:, None] * lm.weight(layer)[neuron]
    torch.testing.assert_close(suppressed[:, position], unchanged[:, position] - contribution)
    torch.testing.assert_close(enhanced[:, position], unchanged[:, position] + contribution)
    torch.testing.assert_close(suppressed[:, :position], unchanged[:, :position])


def test_the_updated_weight_maps_the_key_to_the_value_exactly():
    lm = tiny_model("gpt2")
    weight, key = lm.weight(1), torch.randn(lm.d_mlp, dtype=lm.dtype)
    value = torch.randn(lm.d_model, dtype=lm.dtype)
    u = key / key.norm()
    edit = LowRankEdit((LowRank(1, u[:, None], ((value - key @ weight) / (key @ u))[None]),))
    with in_place(lm, edit):
        torch.testing.assert_close(key @ lm.weight(1), value, rtol=1e-10, atol=1e-10)


def test_a_thousand_edits_leave_every_bit():
    lm = tiny_model("gpt2", torch.float32)
    before = lm.parameter_hash()
    for seed in range(1000):
        with in_place(lm, rank_one(lm, seed % lm.n_layers, seed, scale=1e-3)):
            pass
    assert lm.parameter_hash() == before


def test_the_update_is_applied_once():
    lm = tiny_model("llama")
    edit = rank_one(lm, 2, 7)
    before = lm.weight(2).clone()
    with in_place(lm, edit):
        change = lm.weight(2) - before
    assert float(change.norm()) == pytest.approx(norm(edit), rel=1e-9)
    up = edit.updates[0]
    torch.testing.assert_close(change, up.u @ up.v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["dense", "factored", "low rank"])
def test_a_change_of_16_bit_weights_is_rounded_once(dtype, kind):
    lm, generator = tiny_model("gpt2", dtype), torch.Generator().manual_seed(0)
    u = torch.randn(lm.d_mlp, 2, generator=generator)
    v = torch.randn(2, lm.d_model, generator=generator)
    low = LowRankEdit((LowRank(1, u, v),))
    edit = low if kind == "low rank" else DenseEdit(dict(deltas_of(lm, low)))
    if kind == "factored":
        edit = DenseEdit(LowRankDeltas({lm.weight_name(1): RankFactors(u, v)}))
    expected = (lm.weight(1).float() + u @ v).to(dtype)
    twice = lm.weight(1) + (u @ v).to(dtype)
    assert not torch.equal(expected, twice)  # so that equal ones say something
    with in_place(lm, edit):
        assert torch.equal(lm.weight(1), expected)
    with Composition(lm) as composition:
        composition.add([edit])
        assert torch.equal(lm.weight(1), expected)


def test_the_model_is_restored_when_the_body_raises():
    lm = tiny_model("bert")
    with pytest.raises(KeyError), in_place(lm, rank_one(lm, 0)):
        raise KeyError
    assert lm.parameter_hash() == lm.verified_hash


def test_an_edit_that_changes_what_it_does_not_declare_is_found_out():
    lm = tiny_model("gpt2", seed=3)
    _, parameter = next(iter(lm.hf.named_parameters()))
    saved = parameter.detach().clone()

    @contextmanager
    def careless(hf):
        with torch.no_grad():
            parameter.add_(1)
        yield

    with (
        pytest.raises(EditOutlivedError, match="does not declare"),
        in_place(lm, WrapperEdit(careless)),
    ):
        pass
    with torch.no_grad():
        parameter.copy_(saved)
    assert lm.parameter_hash() == lm.verified_hash


def test_a_delta_of_the_wrong_name_or_shape_is_one_sentence():
    lm = tiny_model("gpt2")
    with (
        pytest.raises(ValueError, match=r"'nowhere': expected a parameter of random-gpt2"),
        in_place(lm, DenseEdit({"nowhere": torch.zeros(1)})),
    ):
        pass
    name = lm.weight_name(0)
    with (
        pytest.raises(ValueError, match=r"of shape \(2, 2\): expected the parameter's"),
        in_place(lm, DenseEdit({name: torch.zeros(2, 2)})),
    ):
        pass


def test_what_needs_the_weights_is_refused_row_by_row():
    with pytest.raises(ValueError, match="a DenseEdit cannot be applied row by row"):
        RowEdits(tiny_model("gpt2"), [DenseEdit({})])


def test_norm_is_frobenius_and_descriptions_name_the_site():
    lm = tiny_model("gpt2")
    u, v = torch.randn(lm.d_mlp, 3).double(), torch.randn(3, lm.d_model).double()
    edit = LowRankEdit((LowRank(1, u, v),))
    assert norm(edit) == pytest.approx(float((u @ v).norm()))
    assert describe(edit) == "low rank: layer 1 rank 3"
    factored = DenseEdit(LowRankDeltas({"a": RankFactors(u, v), "b": RankFactors(v.T, u.T)}))
    assert norm(factored) == pytest.approx(2**0.5 * float((u @ v).norm()))
    assert describe(factored) == "low rank: a rank 3, b rank 3"
    assert norm(NoEdit()) == 0
    assert norm(DenseEdit({"a": torch.full((4,), 2.0)})) == pytest.approx(4.0)


def test_updates_of_one_layer_are_one_update_whose_norm_is_that_of_their_sum():
    lm = tiny_model("gpt2")
    first, second = rank_one(lm, 1, seed=1).updates + rank_one(lm, 1, seed=2).updates
    undone = LowRank(0, first.u, first.v), LowRank(0, first.u, -first.v)
    (edit,) = checked([LowRankEdit((first, *undone, second))], 1, lm, "mine")
    assert isinstance(edit, LowRankEdit)
    assert [update.layer for update in edit.updates] == [0, 1]
    whole = first.u.double() @ first.v.double() + second.u.double() @ second.v.double()
    assert norm(edit) == pytest.approx(float(whole.norm()), rel=1e-6)
    with in_place(lm, edit):
        joined = lm.weight(1).clone()
    with in_place(lm, LowRankEdit((first, second))):
        torch.testing.assert_close(joined, lm.weight(1))
