"""The control of an edit: as large as the edit, of the same place, and drawn by the request."""

from dataclasses import replace

import pytest
import torch

from kn_bench.cases.case import Cloze, EditRequest, Query
from kn_bench.editing import equal_size
from kn_bench.editing.composition import summed
from kn_bench.editing.edit import (
    DenseEdit,
    LookupEdit,
    LowRank,
    LowRankDeltas,
    LowRankEdit,
    MemoryEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    PromptEdit,
    RankFactors,
    WrapperEdit,
    norm,
)
from kn_bench.editing.memories import Codebook, SideWeights
from kn_bench.measure.engine import Engine
from tests.test_engine import toy_case
from tests.tiny_models import tiny_model

D_MLP, D_MODEL = 32, 8


def control_of(edit, request, d_mlp):
    return equal_size.control_of(edit, request, d_mlp)


def request(id: str = "mine/P36/Canada", *, background=()) -> EditRequest:
    return EditRequest(
        id, "fact", "P36", "Canada", "The capital of {} is", "Ottawa", "Paris",
        background=background,
    )  # fmt: skip


def low_rank(rank: int = 2) -> LowRankEdit:
    generator = torch.Generator().manual_seed(0)
    return LowRankEdit(
        updates=tuple(
            LowRank(
                layer,
                torch.randn(D_MLP, rank, generator=generator),
                torch.randn(rank, D_MODEL, generator=generator),
            )
            for layer in (1, 3)
        )
    )


def test_a_weight_edit_of_the_same_rank_layers_and_norms():
    edit = low_rank()
    control = control_of(edit, request(), D_MLP)
    for ours, theirs in zip(control.updates, edit.updates, strict=True):
        assert ours.layer == theirs.layer
        full, other = ours.u @ ours.v, theirs.u @ theirs.v
        assert torch.linalg.matrix_rank(full) == torch.linalg.matrix_rank(other) == 2
        torch.testing.assert_close(full.norm(), other.norm())
        cosine = (full * other).sum() / full.norm() / other.norm()
        assert abs(cosine) < 0.3
    assert abs(norm(control) - norm(edit)) < 1e-5


def test_the_draw_depends_on_the_request_and_on_nothing_else():
    edit = low_rank()
    first, again = (control_of(edit, request(), D_MLP) for _ in range(2))
    other = control_of(edit, request("mine/P36/France"), D_MLP)
    assert torch.equal(first.updates[0].u, again.updates[0].u)
    assert not torch.equal(first.updates[0].u, other.updates[0].u)
    assert not torch.allclose(first.updates[0].v, first.updates[1].v)


def test_other_neurons_of_the_same_layers_with_the_same_change():
    rows = torch.tensor([3, 7, 20])
    u = torch.nn.functional.one_hot(rows, D_MLP).T.float()
    v = torch.randn(3, D_MODEL)
    (update,) = control_of(LowRankEdit(updates=(LowRank(2, u, v),)), request(), D_MLP).updates
    assert update.layer == 2
    assert torch.equal(update.v, v)
    drawn = update.u.argmax(0)
    assert len(set(drawn.tolist())) == 3
    assert not set(drawn.tolist()) & set(rows.tolist())
    (scale,) = control_of(NeuronEdit((NeuronScale(2, rows, 0.0),)), request(), D_MLP).scales
    assert (scale.layer, scale.factor, scale.neurons.numel()) == (2, 0.0, 3)
    assert not set(scale.neurons.tolist()) & set(rows.tolist())


def test_where_most_neurons_are_chosen_the_rest_is_taken_first():
    rows = torch.arange(30)
    (scale,) = control_of(NeuronEdit((NeuronScale(0, rows, 2.0),)), request(), D_MLP).scales
    assert scale.neurons.numel() == 30
    assert {30, 31} <= set(scale.neurons.tolist())


@pytest.mark.parametrize(
    "groups",
    [
        ((2, [3, 7], 2.0), (2, [20], 4.0)),
        ((2, [3, 7], 2.0), (1, [3, 9], 2.0), (2, [20, 1, 5], 8.0), (1, [4], 4.0)),
        ((2, range(10), 0.0), (2, range(10, 15), 2.0)),
        ((2, range(20), 0.0), (2, range(20, 30), 2.0)),  # more than there are others
        ((2, range(D_MLP), 2.0), (2, [], 4.0)),
    ],
)
def test_the_groups_of_one_layer_share_no_random_neuron(groups):
    scales = tuple(NeuronScale(at, torch.tensor([*n]).long(), factor) for at, n, factor in groups)
    drawn = control_of(NeuronEdit(scales), request(), D_MLP).scales

    def shape(of):
        return [(scale.layer, scale.factor, scale.neurons.numel()) for scale in of]

    def places(of):
        return [(scale.layer, neuron) for scale in of for neuron in scale.neurons.tolist()]

    assert shape(drawn) == shape(scales)
    assert len(set(places(drawn))) == len(places(scales))
    most = max(sum(len(n) for at, n, _ in groups if at == layer) for layer in (1, 2))
    if 2 * most <= D_MLP:
        assert not set(places(drawn)) & set(places(scales))


def test_the_draw_of_one_group_is_that_of_earlier_releases():
    rows = torch.tensor([20, 3, 7])
    (scale,) = control_of(NeuronEdit((NeuronScale(2, rows, 0.0),)), request(), D_MLP).scales
    u = torch.nn.functional.one_hot(rows, D_MLP).T.float()
    edit = LowRankEdit((LowRank(2, u, torch.randn(3, D_MODEL)),))
    (update,) = control_of(edit, request(), D_MLP).updates
    assert scale.neurons.tolist() == update.u.argmax(0).tolist() == [0, 4, 19]


@pytest.mark.parametrize("form", ["one update", "an update each"])
@pytest.mark.parametrize("neurons", [([3, 7], [7, 20]), ([3, 7], [3, 7]), ([5], [6])])
def test_what_a_batch_changes_twice_is_changed_twice_in_the_control(neurons, form):
    generator = torch.Generator().manual_seed(0)
    updates = [
        LowRank(
            2,
            torch.nn.functional.one_hot(torch.tensor(of_one), D_MLP).T.float(),
            torch.randn(len(of_one), D_MODEL, generator=generator),
        )
        for of_one in neurons
    ]
    edit = LowRankEdit(tuple(updates))
    batch = edit if form == "an update each" else summed([LowRankEdit((up,)) for up in updates])
    control = control_of(batch, request(), D_MLP)
    ours, theirs = (torch.stack([up.u @ up.v for up in e.updates]).sum(0) for e in (control, edit))
    norms = ours.norm(dim=1).sort().values
    torch.testing.assert_close(norms, theirs.norm(dim=1).sort().values)


def test_two_updates_of_one_layer_are_drawn_as_one():
    first, second = low_rank(), low_rank()
    halves = [replace(up, v=-0.9 * up.v) for up in second.updates]
    control = control_of(LowRankEdit((*first.updates, *halves)), request(), D_MLP)
    for ours, theirs in zip(control.updates, first.updates, strict=True):
        torch.testing.assert_close((ours.u @ ours.v).norm(), 0.1 * (theirs.u @ theirs.v).norm())


def test_a_dense_edit_parameter_by_parameter():
    deltas = {"a.weight": torch.randn(6, 4), "b.weight": torch.zeros(3, 2)}
    control = control_of(DenseEdit(deltas), request(), D_MLP)
    torch.testing.assert_close(control.deltas["a.weight"].norm(), deltas["a.weight"].norm())
    assert not torch.allclose(control.deltas["a.weight"], deltas["a.weight"])
    assert not control.deltas["b.weight"].any()


def test_deltas_held_as_factors_have_the_control_of_their_products():
    deltas = LowRankDeltas({"a.weight": RankFactors(torch.randn(6, 2), torch.randn(2, 4))})
    control = control_of(DenseEdit(deltas), request(), D_MLP)
    assert control == control_of(DenseEdit(dict(deltas)), request(), D_MLP)
    assert torch.linalg.matrix_rank(control.deltas["a.weight"]) == 4


def test_dense_controls_of_many_edits_are_drawn_when_they_are_put_in_place(monkeypatch):
    edits = [DenseEdit({"a.weight": torch.randn(6, 4)}) for _ in range(2)]
    requests = [request("mine/P36/Canada"), request("mine/P36/Peru")]
    eager = [control_of(*pair, D_MLP) for pair in zip(edits, requests, strict=True)]
    drawn = []
    randn = torch.randn

    def counted(*args, **kwargs):
        drawn.append(args)
        return randn(*args, **kwargs)

    monkeypatch.setattr(torch, "randn", counted)
    controls = equal_size.controls_of(edits, requests, D_MLP)
    assert drawn == []
    assert controls == eager


def test_a_prompt_about_another_fact_and_no_edit_for_a_table_of_answers():
    other = (Query(Cloze("The capital of Spain is", "."), "Madrid"),)
    control = control_of(PromptEdit(prefix="x"), request(background=((), other)), D_MLP)
    assert control.prefix == "The capital of Spain is Madrid."
    assert control_of(PromptEdit(prefix="x"), request(), D_MLP) is None
    assert control_of(LookupEdit({}), request(), D_MLP) == NoEdit()
    assert control_of(NoEdit(), request(), D_MLP) == NoEdit()
    assert control_of(WrapperEdit(apply=lambda model: model), request(), D_MLP) is None


def test_a_memory_answers_at_random_where_the_methods_does():
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(2, D_MLP, D_MODEL, generator=generator, dtype=torch.float64)
    side = MemoryEdit("site", SideWeights(deltas, torch.tensor([8.0, 9.0]).double()))
    turned = control_of(side, request(), D_MLP)
    inputs = torch.randn(5, D_MLP, generator=generator, dtype=torch.float64)
    ours, theirs = inputs @ deltas, inputs @ turned.memory.deltas
    torch.testing.assert_close(theirs.norm(dim=-1), ours.norm(dim=-1))
    assert not torch.allclose(theirs, ours)
    assert torch.equal(turned.memory.epsilons, side.memory.epsilons)
    keys, values = torch.randn(3, D_MLP), torch.randn(3, D_MODEL)
    book = MemoryEdit("site", Codebook(keys, values, torch.ones(3), torch.zeros(3, 1).long()))
    other = control_of(book, request(), D_MLP)
    assert torch.equal(other.memory.keys, keys)
    torch.testing.assert_close(other.memory.values.norm(dim=1), values.norm(dim=1))
    assert not torch.allclose(other.memory.values, values)


ONE_HOT = torch.nn.functional.one_hot(torch.tensor([3, 7]), D_MLP).T.float()
OF_EVERY_KIND = [
    low_rank(),
    LowRankEdit((LowRank(2, ONE_HOT, torch.ones(2, D_MODEL)),)),
    NeuronEdit((NeuronScale(2, torch.tensor([3, 7]), 0.0),)),
    DenseEdit({"a.weight": torch.ones(6, 4)}),
    DenseEdit(LowRankDeltas({"a.weight": RankFactors(torch.ones(6, 1), torch.ones(1, 4))})),
    MemoryEdit("site", SideWeights(torch.ones(2, D_MLP, D_MODEL), torch.ones(2))),
    MemoryEdit(
        "site",
        Codebook(torch.ones(1, 4), torch.ones(1, 4), torch.ones(1), torch.zeros(1, 1).long()),
    ),
]


@pytest.mark.parametrize("edit", OF_EVERY_KIND, ids=lambda edit: type(edit).__name__)
def test_an_edit_of_no_request_has_one_control_whatever_is_measured(edit):
    requests = [request(f"mine/P36/{name}") for name in ("Canada", "France", "Peru")]

    def controls(edit, requests):
        return equal_size.controls_of([edit] * len(requests), requests, D_MLP)

    whole = replace(edit, for_all=True)
    first, *others = controls(whole, requests)
    assert all(other is first for other in others)  # put in place once
    for part in (requests[1:], requests[::-1]):
        assert controls(whole, part)[0] == first
    ours = controls(edit, requests)  # drawn by a request, as in earlier releases
    assert ours[0] == control_of(edit, requests[0], D_MLP) != first
    assert controls(edit, requests[1:])[0] == control_of(edit, requests[1], D_MLP) != ours[0]


def test_the_control_of_a_prompt_for_all_is_still_about_each_requests_relation():
    facts = [((Query(Cloze("The capital of Spain is", "."), "Madrid"),),),
             ((Query(Cloze("Spain uses the", "."), "euro"),),)]  # fmt: skip
    requests = [request(f"mine/{i}", background=fact) for i, fact in enumerate(facts)]
    whole = PromptEdit("x", for_all=True)
    assert equal_size.controls_of([whole, whole], requests, D_MLP) == [
        PromptEdit("The capital of Spain is Madrid."),
        PromptEdit("Spain uses the euro."),
    ]


def test_the_engine_puts_the_same_probes_under_edit_and_control():
    lm = tiny_model("gpt2")

    class Shifts:
        def edit(self, requests):
            weight = lm.weight(0)
            u = torch.ones(weight.shape[0], 1)
            return [LowRankEdit(updates=(LowRank(0, u, torch.ones(1, weight.shape[1])),))] * len(
                requests
            )

    before = lm.parameter_hash()
    (result,) = Engine(lm).measure("shifts", Shifts(), [toy_case(0)], control=True).results.values()
    assert result.control is not None
    assert result.control.edit is None
    ours, theirs = result.measurements, result.control.measurements
    assert [m.probe for m in ours] == [m.probe for m in theirs]
    assert {m.method for m in theirs} == {"control:shifts"}
    assert [m.before for m in ours] == [m.before for m in theirs]
    assert [m.after for m in ours] != [m.after for m in theirs]
    assert lm.parameter_hash() == before
    (without,) = Engine(lm).measure("shifts", Shifts(), [toy_case(0)]).results.values()
    assert without.control is None
