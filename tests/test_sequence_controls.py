"""The control of a batch or sequence: chance damage of each step's size, kept as long."""

from contextlib import nullcontext

import pytest
import torch

from kn_bench.cases import sources
from kn_bench.editing.edit import LowRank, LowRankEdit, WrapperEdit, norm
from kn_bench.edits.controls import InContext, Nothing
from kn_bench.edits.rome import Rome
from kn_bench.measure import ability
from kn_bench.measure.engine import Engine
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.sequence_controls import ControlMethod, StepEdits
from kn_bench.measure.sequences import Plan, measure_sequence
from kn_bench.model.loading import load_model
from tests.test_sequences import _thinned


@pytest.fixture(scope="module")
def lm():
    return load_model("tiny-gpt2")


@pytest.fixture(scope="module")
def engine(lm):
    return Engine(lm)


@pytest.fixture(scope="module")
def cases():
    """Facts with few probes each: one a criterion."""
    drawn = sources.load("embedded", limit=3, relations=("P36", "P37")).cases
    return [_thinned(case) for case in drawn if case.task == "fact"]


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    """The curves of a test need not be precise."""
    monkeypatch.setattr(ability, "A_RELATION", 1)
    monkeypatch.setattr(ability, "TEXT_LINES", 8)
    monkeypatch.setattr(ability, "NEUTRAL", 4)


def plan(text, cases):
    protocol = parse_protocol(text)
    return Plan(protocol, tuple(cases[: protocol.edits]))


def own(results):
    return [m for case in results.values() for m in case.measurements]


def controls(results):
    return [m for case in results.values() for m in case.control.measurements]


class MadeElsewhere:
    """One edit of no request, as of a checkpoint."""

    def __init__(self, lm):
        update = LowRank(0, torch.ones(lm.d_mlp, 1), torch.ones(1, lm.d_model))
        self._edit = LowRankEdit((update,), for_all=True)

    def edit(self, requests):
        return [self._edit] * len(requests)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("none", lambda lm: Nothing()),
        ("in-context", lambda lm: InContext()),
        ("rome", Rome),
        ("elsewhere", MadeElsewhere),
    ],
)
def test_a_sequence_of_one_has_the_control_of_single(name, method, lm, engine, cases, tmp_path):
    edits, asked = method(lm), plan("sequence:1", cases)
    single = controls(engine.measure(name, edits, cases[:1], control=True).results)
    kept = measure_sequence(engine, name, edits, asked, control=True)
    stored = measure_sequence(engine, name, edits, asked, control=True, folder=tmp_path)
    for results in (kept.results, kept.retained, stored.results, stored.retained):
        theirs = controls(results)
        assert [(m.probe, m.after.generated) for m in theirs] == [
            (m.probe, m.after.generated) for m in single
        ]
        for m, other in zip(theirs, single, strict=True):
            assert m.kl == pytest.approx(other.kl, abs=1e-4)
            assert m.method == f"control:{name}"
    assert {m.occasion.asked for m in controls(kept.retained)} == {"retained"}


@pytest.mark.parametrize("protocol", ["batch:3", "sequence:4/2"])
def test_several_edits_have_a_control_and_the_same_rows_as_without(protocol, lm, engine, cases):
    asked = plan(protocol, cases)
    before = lm.parameter_hash()
    result = measure_sequence(engine, "rome", Rome(lm), asked, control=True)
    alone = measure_sequence(engine, "rome", Rome(lm), asked)
    assert lm.parameter_hash() == before
    assert own(result.results) == own(alone.results)
    assert own(result.retained) == own(alone.retained)
    assert result.checkpoints == alone.checkpoints
    for results in (result.results, result.retained):
        assert [(m.case, m.probe) for m in controls(results)] == [
            (m.case, m.probe) for m in own(results)
        ]
        assert [m.before for m in controls(results)] == [m.before for m in own(results)]
    if result.retained:
        first = asked.cases[0].id  # under its own step, and under the next one too
        early, late = (controls({first: r[first]}) for r in (result.results, result.retained))
        assert all(a.kl != b.kl for a, b in zip(early, late, strict=True))


def test_a_batch_has_a_control_of_the_size_of_its_sum_whatever_the_order(lm, cases):
    edits = StepEdits(lm, None)
    u, v = torch.randn(lm.d_mlp, 2), torch.randn(2, lm.d_model)
    edits.add(1, [case.id for case in cases[:2]], LowRankEdit(updates=(LowRank(0, u, v),)))
    requests = [case.request for case in cases[:2]]
    drawn, again = (ControlMethod(lm, edits).edit_together(r) for r in (requests, requests[::-1]))
    assert norm(drawn) == pytest.approx(float((u @ v).norm()), rel=1e-4)
    assert isinstance(drawn, LowRankEdit)
    assert isinstance(again, LowRankEdit)
    assert drawn.updates[0].u.shape == u.shape
    assert torch.equal(drawn.updates[0].u, again.updates[0].u)


def test_what_has_no_edit_of_equal_size_has_no_control(engine, cases, tmp_path):
    class Wrapping:
        def edit(self, requests):
            return [WrapperEdit(apply=lambda model: nullcontext()) for _ in requests]

    for folder in (None, tmp_path):
        asked = plan("sequence:2", cases)
        result = measure_sequence(engine, "w", Wrapping(), asked, control=True, folder=folder)
        assert own(result.results)
        assert all(case.control is None for case in result.results.values())


def test_a_control_keeps_none_of_its_own_edits(lm, engine, cases, monkeypatch):
    """Of a LoRA edit they are dense, and a sequence may have thousands."""
    kept = []
    add = StepEdits.add

    def counted(self, step, *rest):
        kept.append(step)
        add(self, step, *rest)

    monkeypatch.setattr(StepEdits, "add", counted)
    measure_sequence(engine, "rome", Rome(lm), plan("sequence:2", cases), control=True)
    assert kept == [1, 2]
