"""The window on a Hugging Face model changes nothing of what it computes."""

import copy
import re
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from kn_bench.model import language_model
from kn_bench.model.given import HALF_A_CHARACTER
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.tokens import Span
from tests.tiny_models import tiny_model, word_tokenizer

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


def of_config(**changed):
    """A model whose weights are the same whatever its config."""
    ends = changed.pop("generation_ends", None)
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SIZES, **LLAMA)
    hf = AutoModelForCausalLM.from_config(config)
    for name, value in changed.items():
        setattr(hf.config, name, value)
    if ends is not None:
        hf.generation_config.eos_token_id = ends
    return LanguageModel("random", hf, word_tokenizer(causal=True))


LLAMA = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"rms_norm_eps": 0.1}, False),
        ({"hidden_act": "relu"}, False),
        ({"num_attention_heads": 4}, False),
        ({"sliding_window": 8}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, False),
        ({"_attn_implementation": "eager"}, False),
        ({"generation_ends": [0]}, False),
        ({"_name_or_path": "elsewhere"}, True),
        ({"transformers_version": "9"}, True),
        ({"dtype": "float16"}, True),
        ({"generation_ends": [1, 9]}, True),  # an ordinary token ends nothing
    ],
)
def test_what_decides_the_answers_beside_the_weights_is_told_apart(changed, same):
    plain, other = of_config(), of_config(**changed)
    assert other.original_hash == plain.original_hash
    assert (other.behaviour_hash == plain.behaviour_hash) is same


@pytest.mark.parametrize(
    ("family", "prompt", "n", "said"),
    [
        ("bert", "[MASK]" + " w5" * 40, 20, r"expected at most \d+ tokens in a prompt for"),
        ("bert", "w5 w6", 20, r"expected one \[MASK\] in a prompt for the masked model"),
        ("gpt2", "w5" + " w5" * 40, 2, "expected 1 to 30 tokens before 2 new ones, got 41"),
        ("gpt2", "w5", 10**6, "^max_new_tokens 1000000: expected at most 31"),
        ("gpt2", "w5 \udfff", 2, r"^'w5 \\udfff': expected whole characters"),
        ("bert", "[MASK] \ud800", 2, "expected whole characters"),
    ],
)
def test_a_prompt_that_no_model_can_go_on_from_is_refused(family, prompt, n, said):
    with pytest.raises(ValueError, match=said):
        tiny_model(family).generate(prompt, max_new_tokens=n)


@pytest.mark.parametrize(
    "encode",
    [
        lambda tokens, text: tokens.encode(text),
        lambda tokens, text: tokens.encode_many(["w5", text]),
        lambda tokens, text: tokens.encode_spans([text], [Span(0, 0, 1)]),
    ],
)
def test_half_a_character_is_told_from_what_is_no_text(encode):
    tokens = tiny_model("gpt2").tokens
    with pytest.raises(ValueError, match=HALF_A_CHARACTER[:30]):
        encode(tokens, "w6 \ud83d")
    with pytest.raises(TypeError):
        encode(tokens, 5)


def test_the_members_that_its_docstring_draws_exist():
    drawn = re.findall(r"[├└]── (\w+)", language_model.__doc__ or "")
    assert len(drawn) >= 5
    lm = LanguageModel("tiny", spelt_out("gpt2"), word_tokenizer(causal=True))
    assert not [name for name in drawn if not hasattr(lm, name)]
