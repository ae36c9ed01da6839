"""The knowledge-neuron methods: what they return, and what locating remembers."""

import gc
import weakref
from dataclasses import replace
from typing import TypeVar

import pytest
import torch

from kn_bench.cases.case import Cloze, EditRequest, Query
from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import Edit, LowRankEdit, Method, NeuronEdit, NotApplicable
from kn_bench.edits.kn import (
    EraseKN,
    RandomKN,
    RewriteKN,
    ScaleKN,
    kn_edit,
    kn_enhance,
    kn_erase,
    kn_random,
    kn_suppress,
)
from kn_bench.localise.locating import Bag, Locating, locate
from kn_bench.localise.selection import Neuron
from tests.brute_force import Place, neurons_at, probability
from tests.tiny_models import FAMILIES, tiny_model

METHODS = (kn_suppress, kn_enhance, kn_edit, kn_erase, kn_random)
KINDS = ("gpt2", "llama", "bert")


def query(*words, answer="w40", right=""):
    return Query(Cloze(" ".join(f"w{w}" for w in words), right), answer)


def request(name="a", start=10, background=True):
    queries = tuple(query(start, start + 1, last) for last in (20, 21, 22, 23, 24))
    others = tuple(
        tuple(query(word, word + 1, last, answer="w41") for last in (20, 21))
        for word in (30, 32, 34)
    )
    return EditRequest(
        id=f"test/{name}",
        task="fact",
        relation="P0",
        subject=f"w{start}",
        prompt=f"{{}} w{start + 1} w20",
        suffix="",
        target_true="w40",
        target_new="w50",
        queries=queries,
        background=others if background else (),
    )


E = TypeVar("E", bound=Edit)


def one(method: Method, asked: EditRequest, kind: type[E]) -> E:
    """The edit of one request, of the kind that the method makes."""
    (edit,) = method.edit([asked])
    assert isinstance(edit, kind)
    return edit


def own_queries(lm):
    return locate(lm, [Bag(request().queries)])[0]


def chosen(scales):
    return {(s.layer, unit) for s in scales for unit in s.neurons.tolist()}


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_edits_every_request(method, family):
    lm = tiny_model(family)
    before = lm.parameter_hash()
    edits = method(lm).edit([request("a"), request("b", start=14)])
    assert [type(edit) for edit in edits] in ([NeuronEdit] * 2, [LowRankEdit] * 2)
    for edit in edits:
        assert edit.notes["queries"] == 5
        assert edit.notes["skipped"] == 0
        assert {"kn", "tau", "completeness_error", "unconverged"} <= set(edit.notes)
    assert lm.parameter_hash() == before


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize(("method", "factor"), [(kn_suppress, 0.0), (kn_enhance, 2.0)])
def test_suppress_sets_to_zero_and_enhance_doubles(method, factor, family):
    lm = tiny_model(family)
    edit = one(method(lm), request(), NeuronEdit)
    assert chosen(edit.scales) == own_queries(lm).neurons != set()
    assert {scale.factor for scale in edit.scales} == {factor}


@pytest.mark.parametrize("family", KINDS)
def test_suppressing_takes_from_the_answer_and_enhancing_adds(family):
    """One neuron of the last layer that carries the answer, by whole runs of the model."""
    lm = tiny_model(family)
    ids = lm.tokens.encode("w10 w11 w20" if lm.is_causal else "w10 w11 w20 [MASK]").ids
    position = len(ids) - 1 if lm.is_causal else ids.index(lm.tokens.mask_id)
    place = Place(lm.site(lm.n_layers - 1), position)
    row, token = torch.tensor(ids), 40
    clean = neurons_at(lm.hf, row, place).requires_grad_()
    p = probability(lm.hf, row, token, place, clean)
    carries = clean * torch.autograd.grad(p, clean)[0]
    neurons = frozenset({Neuron(lm.n_layers - 1, int(carries.argmax()))})
    probabilities = {}
    for name, factor in (("suppress", 0.0), ("enhance", 2.0)):
        edit = ScaleKN(lm, factor).scaled(neurons)
        where = torch.arange(len(ids))[None] == position
        with RowEdits(lm, [edit]).on(torch.tensor([0]), where):
            logits = lm.forward(row[None], torch.tensor([[position]]))
        probabilities[name] = float(logits[0, 0].softmax(-1)[token])
    assert probabilities["suppress"] < p.item() < probabilities["enhance"]


NARROW = ("albert", "electra")
"""Families whose embeddings are narrower than their layers."""


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NARROW])
def test_answers_are_rows_of_the_output_embedding(family):
    lm = tiny_model(family)
    assert lm.output_embeddings.shape[0] == lm.input_embeddings.shape[0] == 64
    method = RewriteKN(lm, lambda_1=0.0, lambda_2=1.0)
    edit = one(method, request(background=False), LowRankEdit)
    for up in edit.updates:
        direction = up.v / up.v.norm(dim=1, keepdim=True)
        new = lm.output_embeddings[50] / lm.output_embeddings[50].norm()
        torch.testing.assert_close(direction, new.expand_as(direction))


@pytest.mark.parametrize("family", KINDS)
def test_kn_edit_by_its_formula(family):
    lm = tiny_model(family)
    edit = one(kn_edit(lm), request(background=False), LowRankEdit)
    old, new = lm.output_embeddings[40], lm.output_embeddings[50]
    layers = set()
    for up in edit.updates:
        change = up.u @ up.v
        weight = lm.weight(up.layer)
        for unit in range(lm.d_mlp):
            size = weight[unit].norm()
            expected = -1 * size / old.norm() * old + 8 * size / new.norm() * new
            if bool(change[unit].any()):
                layers.add((up.layer, unit))
                torch.testing.assert_close(change[unit], expected)
    assert layers == own_queries(lm).neurons


@pytest.mark.parametrize("name", ["kn-suppress", "kn-edit", "kn-erase", "kn-random"])
def test_without_a_true_answer_there_is_nothing_to_locate_by(name):
    import kn_bench as kn

    model = kn.load_model("tiny-gpt2")
    request = kn.load_cases("embedded", relation="P36", limit=1)[0].request
    (refused,) = kn.method(name, model).edit([replace(request, true_is_known=False)])
    assert str(refused) == "the data brings no true answer to locate knowledge neurons by"


def test_kn_edit_drops_what_other_facts_share():
    lm = tiny_model("gpt2")
    plain = request()
    neurons = own_queries(lm).neurons
    everything = replace(plain, background=(plain.queries, *plain.background))
    edit = one(kn_edit(lm), everything, LowRankEdit)
    assert edit.updates == ()
    assert edit.notes["shared"] == edit.notes["kn"] == len(neurons)
    # one fact in twenty is not more than a tenth
    rare = replace(plain, background=(plain.queries, *[(query(60, 61),)] * 19))
    edit = one(RewriteKN(lm, shared=0.1), rare, LowRankEdit)
    common = locate(lm, [Bag((query(60, 61),))])[0].neurons
    assert edit.notes["shared"] == len(neurons & common)


@pytest.mark.parametrize("by", ["zero", "mean", "unk", "random"])
def test_erasing_replaces_the_values(by):
    lm = tiny_model("bert")
    edit = one(EraseKN(lm, by=by), request(), LowRankEdit)
    for up in edit.updates:
        edited = lm.weight(up.layer) + up.u @ up.v
        units = up.u.argmax(0)
        expected = {
            "zero": torch.zeros(lm.d_model, dtype=lm.dtype),
            "mean": lm.weight(up.layer).mean(0),
            "unk": lm.output_embeddings[lm.tokens.unk_id],
        }
        if by != "random":
            torch.testing.assert_close(edited[units], expected[by].expand(len(units), -1))
        else:
            rows = (lm.output_embeddings - edited[units[0]]).abs().sum(1)
            assert float(rows.min()) < 1e-9
        untouched = [unit for unit in range(lm.d_mlp) if unit not in units.tolist()]
        assert torch.equal(edited[untouched], lm.weight(up.layer)[untouched])


def test_erasing_by_something_unknown_is_refused():
    with pytest.raises(ValueError, match="erase by 'pad': expected one of zero, mean, unk, random"):
        EraseKN(tiny_model("bert"), by="pad")  # type: ignore[arg-type]


def test_erasing_by_unk_needs_an_unknown_token(monkeypatch):
    lm = tiny_model("gpt2")
    monkeypatch.setattr(lm.tokens, "unk_id", None)
    with pytest.raises(NotApplicable, match="random-gpt2 has no unknown token to erase by"):
        EraseKN(lm, by="unk").edit([request()])


def test_random_neurons_match_the_knowledge_neurons():
    lm = tiny_model("gpt2")
    requests = [request(name) for name in "abcdef"]
    edits = RandomKN(lm).edit(requests)
    neurons = own_queries(lm).neurons
    sets = drawn_sets(edits)
    for drawn in sets:
        assert sorted(layer for layer, _ in drawn) == sorted(n.layer for n in neurons)
        assert not drawn & neurons
    assert len(set(sets)) > 1  # each case draws its own
    again = RandomKN(lm).edit(requests[::-1])[::-1]
    assert drawn_sets(again) == sets
    other = RandomKN(lm, seed=1).edit(requests)
    assert drawn_sets(other) != sets


def drawn_sets(edits):
    return [frozenset(chosen(edit.scales)) for edit in edits]


@pytest.mark.parametrize("method", METHODS)
def test_independent_edits_do_not_depend_on_their_order(method):
    requests = [request("a"), request("b", start=14), request("c", start=16)]

    def made(order):
        lm = tiny_model("gpt2")
        lm.memo.clear()
        edits = method(lm).edit([requests[i] for i in order])
        return dict(zip(order, edits, strict=True))

    together, backwards = made([0, 1, 2]), made([2, 1, 0])
    alone = {i: made([i])[i] for i in range(3)}
    for index in range(3):
        for others in (backwards, alone):
            assert_same(together[index], others[index])


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, NeuronEdit):
        assert chosen(ours.scales) == chosen(theirs.scales)
    else:
        for up, same in zip(ours.updates, theirs.updates, strict=True):
            assert up.layer == same.layer
            assert torch.equal(up.u, same.u)
            torch.testing.assert_close(up.v, same.v)


# -- queries that do not fit ---------------------------------------------------------------


def test_queries_that_do_not_fit_are_skipped_and_counted():
    lm = tiny_model("gpt2")
    plain = request(background=False)
    in_the_middle = query(10, 11, right="w12")
    unknown = query(10, 11, answer="nothing")
    mixed = replace(plain, queries=(*plain.queries, in_the_middle, unknown))
    edit = one(kn_suppress(lm), mixed, NeuronEdit)
    assert (edit.notes["queries"], edit.notes["skipped"]) == (5, 2)
    assert chosen(edit.scales) == own_queries(lm).neurons


@pytest.mark.parametrize("method", METHODS)
def test_a_request_that_fits_nowhere_is_not_applicable(method):
    lm = tiny_model("gpt2")
    unfit = replace(request(), queries=(query(10, 11, right="w12"),))
    none = replace(request(), queries=())
    first, second, third = method(lm).edit([unfit, request(), none])
    assert str(first) == "no query of the request can be put to this model"
    assert isinstance(second, NeuronEdit | LowRankEdit)
    assert str(third) == "the request has no queries to locate knowledge neurons over"


def test_a_pairs_word_may_stand_in_the_middle_for_a_causal_model():
    lm = tiny_model("gpt2")
    pair = replace(request(background=False), task="pair", queries=(query(10, 11, right="w12"),))
    edit = one(kn_suppress(lm), pair, NeuronEdit)
    assert edit.notes["queries"] == 1


# -- what is remembered --------------------------------------------------------------------


def fresh(seed=0, dtype=torch.float64):
    return tiny_model.__wrapped__("gpt2", dtype, seed)


def passes(lm, what):
    """How often the model runs in ``what``."""
    runs = []
    handle = lm.hf.base_model.register_forward_pre_hook(lambda *_: runs.append(1))
    what()
    handle.remove()
    return len(runs)


def test_locating_is_done_once_for_all_methods():
    lm = fresh()
    assert passes(lm, lambda: kn_suppress(lm).edit([request()])) > 0
    for method in (kn_suppress, kn_enhance, kn_erase):
        assert passes(lm, lambda method=method: method(lm).edit([request()])) == 0
    bags = [Bag(request().queries)]
    assert passes(lm, lambda: locate(lm, bags)) == 0
    assert passes(lm, lambda: locate(lm, bags, Locating(t=0.3))) > 0
    assert passes(lm, lambda: locate(lm, bags, Locating(p=0.5, capped=False))) == 0


def test_models_of_one_name_are_located_apart():
    first, second = fresh(0), fresh(1)
    assert first.name == second.name
    bags = [Bag(request().queries)]
    expected = [locate(fresh(seed), bags) for seed in (0, 1)]
    assert [locate(first, bags), locate(second, bags)] == expected
    assert expected[0] != expected[1]


def test_changed_weights_are_located_anew():
    lm = fresh()
    bags = [Bag(request().queries)]
    before = locate(lm, bags)
    weight = lm.weight(0)
    kept = weight.clone()
    with torch.no_grad():
        weight.mul_(-3)
    assert locate(lm, bags) != before
    with torch.no_grad():
        weight.copy_(kept)
    assert locate(lm, bags) == before


def test_memory_goes_with_the_model():
    lm = fresh()
    locate(lm, [Bag(request().queries)])
    gone = weakref.ref(lm)
    del lm
    gc.collect()
    assert gone() is None


def test_memory_is_bounded():
    lm = fresh()
    lm.batcher.memory = 4 * 4000  # a quarter is for the memo
    (located,) = locate(lm, [Bag(request().queries)])
    assert located.queries == 5
    assert 0 < lm.memo.n_bytes <= 4000
    assert 0 < len(lm.memo.keys("coarse set")) < 5


def test_half_precision_models_get_wide_edits():
    lm = fresh(dtype=torch.bfloat16)
    edit = one(kn_edit(lm), request(background=False), LowRankEdit)
    assert {up.v.dtype for up in edit.updates} == {torch.float32}


def test_methods_are_registered():
    import kn_bench.edits.kn
    from kn_bench.editing.registry import marked

    assert {spec.name for spec in marked(kn_bench.edits.kn)} == {
        "kn-suppress",
        "kn-enhance",
        "kn-edit",
        "kn-erase",
        "kn-random",
    }
    assert {spec.models for spec in marked(kn_bench.edits.kn)} == {"any"}


@pytest.mark.parametrize("family", NARROW)
@pytest.mark.parametrize("by", ["edit", "unk", "random"])
def test_embeddings_narrower_than_the_layers_are_no_values(family, by):
    lm = tiny_model(family)
    neurons = frozenset({Neuron(0, 1)})

    def change():
        if by == "edit":
            return RewriteKN(lm)._embedding(request(), "w40")
        return EraseKN(lm, by=by).updates(neurons, "a")

    said = "output embeddings of width 12 and layers of width 16"
    with pytest.raises(NotApplicable, match=said):
        change()
    zero = EraseKN(lm).updates(frozenset({Neuron(0, 1)}), "a")
    assert [update.layer for update in zero] == [0]
