"""The loops ask the device nothing but by ``to_host``: a GPU never waits for a hidden question.

They run on torch's ``meta`` device, whose tensors have no values: whatever would make a GPU wait
(``.item()``, ``.tolist()``, a mask's indices, a copy to the host) raises there, and so does
a tensor that was left on the CPU.
"""

import numpy as np
import pytest
import torch
import transformers.masking_utils

from kn_bench.editing.applying import RowEdits
from kn_bench.editing.edit import NeuronEdit, NeuronScale
from kn_bench.editing.rome import value
from kn_bench.editing.rome.loss import Batch
from kn_bench.localise import attribution
from kn_bench.localise.corruption import corrupt
from kn_bench.localise.integration import Rule
from kn_bench.localise.patching import PatchedRun, restore
from kn_bench.localise.queries import TokenQuestion
from kn_bench.localise.scaling import ask
from kn_bench.localise.tracing import KINDS, windowed
from kn_bench.measure import making
from kn_bench.model.continuing import Going, continue_greedily
from kn_bench.model.ragged import prepare
from kn_bench.model.second_moment import _add_batch, _Sums
from kn_bench.model.weights import Weights
from tests.test_applying import rank_one
from tests.test_rome import SETTINGS, problems
from tests.test_tracing import noise_of, prompt_of
from tests.tiny_models import tiny_model

CAUSAL = ["gpt2", "llama"]


@pytest.fixture
def on_meta(monkeypatch):
    """``on_meta(lm)`` moves a model away; it is made anew for other tests."""
    monkeypatch.setattr(Weights, "now", lambda _: "")  # no bytes there that could have changed
    yield lambda lm: lm.hf.to("meta") and lm
    tiny_model.cache_clear()


class Host:
    """Answers for the device, and counts how often it is asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    def __call__(self, *tensors):
        self.asked += 1
        assert all(tensor.device.type == "meta" for tensor in tensors)
        return tuple(self.answer(tuple(tensor.shape)) for tensor in tensors)


def test_what_would_wait_raises_here():
    away = torch.ones(3, device="meta")
    for question in (
        lambda: away.sum().item(),
        away.tolist,
        lambda: away[away > 0],
        away.cpu,
        lambda: bool(away.any()),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            question()


@pytest.mark.parametrize("rule", [Rule("riemann"), Rule(most=80)], ids=["riemann", "adaptive"])
@pytest.mark.parametrize("family", [*CAUSAL, "bert"])
def test_attribution_asks_once_a_round(family, rule, on_meta, monkeypatch):
    lm = tiny_model(family, torch.float32)
    questions = [TokenQuestion((5 + i, 6, 7, 8), 3 if lm.is_causal else 2, 9) for i in range(3)]
    ask(lm, questions)  # finds out, once a model, how its layers go on
    rng = np.random.default_rng(0)
    host = Host(rng.random)
    monkeypatch.setattr(attribution, "to_host", host)
    asked = ask(on_meta(lm), questions)
    attributions = attribution._attribute(asked, rule, lambda _: None)
    assert attributions[0].scores.shape == (lm.n_layers, lm.d_mlp)
    # 5 nodes at first, then up to 15, 35 and 75; and once at the end
    assert host.asked <= {"riemann": 1, "adaptive": 4}[rule.name] + 1


@pytest.mark.parametrize("family", [*CAUSAL, "bert"])
def test_tracing_asks_nothing_before_its_end(family, on_meta):
    lm = on_meta(tiny_model(family, torch.float32))
    prompt = prompt_of(lm)
    states = corrupt(lm, [prompt], [noise_of(lm, prompt)])
    runs = [
        PatchedRun(0, windowed(kind, layer, token, lm.n_layers, 2))
        for kind in KINDS
        for layer in range(lm.n_layers)
        for token in range(len(prompt.ids))
    ]
    assert restore(states, runs).shape == (len(runs), 2)


@pytest.mark.parametrize("family", CAUSAL)
def test_rome_asks_once_a_step(family, on_meta, monkeypatch):
    lm = tiny_model(family, torch.float32)
    tasks = problems(lm)
    rows = [row for task in tasks for row in task.rows]
    ragged = prepare(lm, [row.ids for row in rows], [row.subject for row in rows], 1)
    host = Host(lambda shape: np.full(shape, 9.0))  # no request is done before the last step
    monkeypatch.setattr(value, "to_host", host)
    on_meta(lm)
    away = _moved(ragged)
    batch = Batch.of(lm, tasks, away)
    deltas, history = value._descend(batch, away.values[batch.first_rows], SETTINGS, lambda _: None)
    assert host.asked == SETTINGS.v_num_grad_steps == len(history[0])
    assert all(delta.device.type == "meta" for delta in deltas)


def _moved(measured):
    """A value with its tensors, and those of what it holds, on the meta device."""
    if isinstance(measured, torch.Tensor):
        return measured.to("meta")
    if isinstance(measured, tuple) and not hasattr(measured, "_fields"):
        return tuple(map(_moved, measured))
    for name, held in vars(measured).items() if hasattr(measured, "__dataclass_fields__") else ():
        object.__setattr__(measured, name, _moved(held))
    return measured


@pytest.mark.parametrize("family", CAUSAL)
def test_generation_asks_nothing(family, on_meta):
    lm = tiny_model(family, torch.float32)
    scaled = NeuronEdit((NeuronScale(0, torch.tensor([3], device="meta"), 0.0),))
    edits = RowEdits(on_meta(lm), [_moved(rank_one(lm, 1)), scaled])
    with torch.no_grad():
        output = lm.hidden(lm.tensor([[5, 6, 7]] * 2), use_cache=True)
        first = lm.logits(output.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
        answers = continue_greedily(
            lm, Going(output.past_key_values, torch.arange(2, device="meta")), first, edits, 6
        )
    assert answers.shape == (2, 6)


@pytest.mark.parametrize("family", [*CAUSAL, "bert"])
def test_second_moments_ask_nothing(family, on_meta, monkeypatch):
    # but for what transformers itself asks once a pass: whether a row is padded
    monkeypatch.setattr(transformers.masking_utils, "is_tracing", lambda *_: True)
    lm = on_meta(tiny_model(family, torch.float32))
    state = _Sums({layer: torch.zeros(lm.d_mlp, lm.d_mlp, device="meta") for layer in (0, 1)})
    _add_batch(lm, state, [(5, 6, 7, 8), (9, 10)])
    assert state.n_tokens == 6


def test_whether_a_method_changed_the_weights_is_asked_once_a_step(on_meta, monkeypatch):
    host = Host(lambda shape: np.zeros(shape, np.int64))
    monkeypatch.setattr(making, "to_host", host)
    lm = on_meta(tiny_model("llama", torch.float32))
    assert len(making._checksum(lm)) == len(list(lm.hf.parameters()))
    assert host.asked == 1
