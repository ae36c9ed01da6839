"""The window on a Hugging Face model changes nothing of what it computes."""

import copy
import re
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from kn_bench.model import language_model
from kn_bench.model.language_model import LanguageModel
from tests.tiny_models import word_tokenizer

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2},
    "gptj": {"n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
}


def spelt_out(family):
    """A random model as transformers builds it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_fused_gelu_is_the_same_function(family):
    hf = spelt_out(family)
    fused = LanguageModel("random", copy.deepcopy(hf), word_tokenizer(causal=True)).hf
    assert any(isinstance(module, NewGELUActivation) for module in hf.modules())
    assert not any(isinstance(module, NewGELUActivation) for module in fused.modules())
    assert hf.state_dict().keys() == fused.state_dict().keys()
    ids = torch.randint(5, 64, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, fused_logits = hf(input_ids=ids).logits, fused(input_ids=ids).logits
    assert not torch.equal(expected, expected.roll(1, 0))
    torch.testing.assert_close(fused_logits, expected, rtol=0, atol=1e-14)


def test_the_members_that_its_docstring_draws_exist():
    drawn = re.findall(r"[├└]── (\w+)", language_model.__doc__ or "")
    assert len(drawn) >= 5
    lm = LanguageModel("tiny", spelt_out("gpt2"), word_tokenizer(causal=True))
    assert not [name for name in drawn if not hasattr(lm, name)]
