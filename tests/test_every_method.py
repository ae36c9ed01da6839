"""Every built-in method alone, together and in a sequence; its edits and state on disk."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from kn_bench.cases import sources
from kn_bench.editing import builtin
from kn_bench.editing.composition import Composition
from kn_bench.editing.edit import Edit, NotApplicable, WrapperEdit, content_of
from kn_bench.editing.method import begin, edit_each, edit_step
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.registry import bind, marked
from kn_bench.editing.saving import load_edit, save_edit
from kn_bench.editing.settings import Assignment, Choices, parameters
from kn_bench.measure.steps import EditedStep, StepRecord, StepStore
from kn_bench.model.loading import load_model

METHODS = [spec for module in builtin.modules() for spec in marked(module) if not spec.takes]
FEW_STEPS = {"v_num_grad_steps": 3, "num_steps": 3, "n_iter": 3}


@lru_cache(maxsize=1)
def model():
    return load_model("tiny-gpt2")


@lru_cache(maxsize=1)
def requests():
    return tuple(
        case.request for case in sources.load("embedded", relations=["P36"], limit=4).cases
    )


def bound(spec):
    known = parameters(spec.settings) if spec.settings else {}
    few = [Assignment(spec.name, n, v, n) for n, v in FEW_STEPS.items() if n in known]
    return bind(spec, model(), Choices(tuple(few)))


def alike(left: Edit, right: Edit) -> bool:
    return type(left) is type(right) and content_of(left) == content_of(right)


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.name)
def test_edits_and_state_survive_the_disk(spec, tmp_path):
    if spec.models == "masked":
        pytest.skip("for masked models")
    method, asked = bound(spec), requests()
    source = Provenance(model="tiny-gpt2", model_hash=model().content_hash, method=spec.name)
    (alone,) = edit_each(method, asked[:1])
    if isinstance(alone, NotApplicable) and "pip install" in str(alone):
        pytest.skip(str(alone))
    assert isinstance(alone, Edit), alone
    assert not isinstance(alone, WrapperEdit), "code cannot be saved"
    save_edit(alone, tmp_path / "edit", provenance=source)
    loaded = load_edit(tmp_path / "edit", model=model())
    assert alike(loaded, alone)
    assert loaded.notes == alone.notes

    store = StepStore(tmp_path / "steps")
    together = edit_step(method, asked[:2], begin(method))
    record = StepRecord(1, ("a", "b"), len(together.edits), 0.0)
    assert store.save(EditedStep(record, together.edits, together.state), source)
    read = store.load(1, device="cpu")
    assert read is not None
    assert all(map(alike, read.edits, together.edits))
    assert read.state.keys() == together.state.keys()
    before = model().parameter_hash()
    with Composition(model()) as sequence:
        sequence.add(together.edits)
        next_step = edit_step(method, asked[2:3], together.state)
        sequence.add(next_step.edits)
    again = bound(spec)
    with Composition(model()) as sequence:
        sequence.add(read.edits)
        resumed = edit_step(again, asked[2:3], read.state)
    assert all(map(alike, resumed.edits, next_step.edits))
    for name, tensor in next_step.state.items():
        assert torch.equal(resumed.state[name], tensor), name
    assert model().parameter_hash() == before
