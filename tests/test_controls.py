"""The reference editors: what they are by themselves; the board of criteria is tested elsewhere."""

import math
from dataclasses import replace

import pytest
import torch

from kn_bench.cases.case import Case, Cloze, EditRequest, Probe
from kn_bench.editing.edit import LowRank, LowRankEdit, NoEdit, NotApplicable, norm
from kn_bench.edits import controls
from kn_bench.edits.controls import InContext, Nothing, Oracle, RandomRankOne
from kn_bench.edits.rome import Rome, RomeSettings
from tests.tiny_models import tiny_model

REQUESTS = tuple(
    EditRequest(
        id=f"toy/{index}",
        task="fact",
        relation="any",
        subject=f"w{20 + index}",
        prompt="w12 {} w13",
        target_true="w16",
        target_new="w15",
    )
    for index in range(3)
)
SETTINGS_OF_ROME = RomeSettings(
    layer=2, v_num_grad_steps=3, context_template_length_params=((2, 1),), mom2_adjustment=False
)


@pytest.fixture
def small_rome(monkeypatch):
    """ROME that needs no text for C."""
    monkeypatch.setattr(controls, "Rome", lambda lm: Rome(lm, SETTINGS_OF_ROME))


def edits_of(method, requests=REQUESTS) -> list[LowRankEdit]:
    edits = method.edit(requests)
    assert all(isinstance(edit, LowRankEdit) for edit in edits)
    return list(edits)


def probe(criterion, text, expected="w15", rejected="w16", kind=""):
    return Probe(f"{criterion}/{text}", criterion, Cloze(text), expected, rejected, kind)


@pytest.mark.parametrize(("u", "v"), [(1e300, 1e-303), (1e-303, 1e300), (0.0, 1e300)])
def test_the_norm_of_factors_that_cannot_be_squared(u, v):
    """It was NaN, which no row can hold."""
    wide = torch.float64
    factors = torch.full((2, 1), u, dtype=wide), torch.full((1, 3), v, dtype=wide)
    edit = LowRankEdit((LowRank(0, *factors), LowRank(1, *factors)))
    assert norm(edit) == pytest.approx(u * v * math.sqrt(12), rel=1e-12)


def test_nothing_is_one_no_edit_a_request():
    assert Nothing().edit(REQUESTS) == [NoEdit()] * 3


def test_the_oracle_answers_every_probe_as_its_criterion_asks():
    probes = (
        probe("reliability", "w12 w20 w13"),
        probe("generality", "w30 w20"),
        probe("locality", "w12 w21 w13", "w17", "w15"),
        probe("symmetry", "w15 w31", "w20", "w40", "new_inverse"),
        probe("symmetry", "w16 w31", "w20", "w40", "old_inverse"),
        probe("synonym", "w32 w20"),
    )
    (edit,) = Oracle().edit_cases([Case(REQUESTS[0], probes, "w20", "toy")])
    assert edit.answers == {
        Cloze("w12 w20 w13"): ("w15",),
        Cloze("w30 w20"): ("w15",),
        Cloze("w15 w31"): ("w20",),
        Cloze("w16 w31"): ("w40",),  # not the subject: the displaced one
        Cloze("w32 w20"): ("w15",),
    }


def test_an_oracle_without_cases_knows_the_edited_prompt():
    edits = Oracle().edit(REQUESTS)
    assert edits[1].answers == {REQUESTS[1].cloze: "w15"}


@pytest.mark.parametrize(
    ("changes", "stated"),
    [
        ({}, "w12 w20 w13 w15."),
        ({"suffix": ""}, "w12 w20 w13 w15."),
        ({"suffix": "w14."}, "w12 w20 w13 w15 w14."),
        ({"prompt": "w12", "suffix": "w13 {}."}, "w12 w15 w13 w20."),
    ],
)
def test_in_context_states_the_new_fact_as_a_sentence(changes, stated):
    (edit,) = InContext().edit([replace(REQUESTS[0], **changes)])
    assert edit.prefix == stated


@pytest.mark.usefixtures("small_rome")
def test_a_random_update_is_as_large_as_romes_and_lies_at_its_layer():
    lm = tiny_model("gpt2")
    random, rome = edits_of(RandomRankOne(lm)), edits_of(Rome(lm, SETTINGS_OF_ROME))
    for ours, theirs in zip(random, rome, strict=True):
        assert norm(ours) == pytest.approx(norm(theirs), rel=1e-6)
        assert ours.updates[0].layer == 2
        direction = theirs.updates[0].u[:, 0] / theirs.updates[0].u.norm()
        assert abs(float(direction @ ours.updates[0].u[:, 0])) < 0.9


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.usefixtures("small_rome")
def test_a_random_update_depends_on_the_requests_id_alone(family):
    lm = tiny_model(family)
    forward = edits_of(RandomRankOne(lm))
    torch.manual_seed(99)
    backward = edits_of(RandomRankOne(lm), REQUESTS[::-1])[::-1]
    for left, right in zip(forward, backward, strict=True):
        assert torch.equal(left.updates[0].u, right.updates[0].u)
        torch.testing.assert_close(left.updates[0].v, right.updates[0].v)
    assert not torch.allclose(forward[0].updates[0].u, forward[1].updates[0].u)


def test_on_a_masked_model_it_is_as_large_as_kn_edits_change_of_one_neuron():
    lm = tiny_model("bert")
    (edit,) = edits_of(RandomRankOne(lm), REQUESTS[:1])
    layer = edit.updates[0].layer
    assert layer == 1
    assert norm(edit) == pytest.approx(9 * float(lm.weight(layer).norm(dim=1).mean()), rel=1e-6)


@pytest.mark.usefixtures("small_rome")
def test_where_rome_does_not_apply_the_random_update_does_not_either():
    after = replace(REQUESTS[0], prompt="w12", suffix="w13 {}.")
    edits = RandomRankOne(tiny_model("gpt2")).edit([after, REQUESTS[1]])
    assert isinstance(edits[0], NotApplicable)
    assert isinstance(edits[1], LowRankEdit)
