"""The forward-only attribution against its definition read aloud, and as a setting of kn-*."""

from types import SimpleNamespace

import pytest
import torch

from kn_bench.edits.kn import KnSettings
from kn_bench.localise.alternatives import log_prob_increase
from tests.tiny_models import tiny_model


def query(lm):
    return SimpleNamespace(ids=(5, 6, 7, 8), answer_position=3, answer_ids=(9,))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_neuron_adds_its_value_to_the_stream(family):
    lm = tiny_model(family)
    asked = query(lm)
    (scores,) = log_prob_increase(lm, [asked])
    keys, values = {}, {}

    def keep(layer, inputs, outputs):
        keys[layer] = inputs.reshape(4, -1)[-1]
        values[layer] = outputs.reshape(4, -1)[-1]
        return outputs

    base = lm.hf.base_model
    norm = base.ln_f if family == "gpt2" else base.norm
    last = []
    handle = norm.register_forward_pre_hook(lambda _, args: last.append(args[0][0, -1]))
    with torch.no_grad(), lm.site_hooks(keep, range(lm.n_layers)):
        states = base(lm.tensor([asked.ids]), output_hidden_states=True).hidden_states
    handle.remove()
    outputs = [state[0, -1] for state in states[1:-1]] + [last[0]]
    for layer in range(lm.n_layers):
        h = outputs[layer] - values[layer]
        for neuron in (0, 7):
            v = keys[layer][neuron] * lm.weight(layer)[neuron]
            with torch.no_grad():
                log_p = lm.hf.lm_head(norm(torch.stack([h + v, h]))).log_softmax(1)[:, 9]
            torch.testing.assert_close(
                scores[layer, neuron], log_p[0] - log_p[1], rtol=1e-4, atol=1e-6
            )


def test_masked_models_are_refused():
    with pytest.raises(ValueError, match="expected a causal model, whose final norm reads the"):
        log_prob_increase(tiny_model("bert"), [query(None)])


def test_it_is_a_setting():
    chosen = KnSettings(attribution="log-probability-increase", t=0.3)
    assert chosen.locating.attribution == "log-probability-increase"
    assert chosen.locating.t == 0.3
