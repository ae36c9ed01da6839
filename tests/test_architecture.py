"""A family from outside is one row: nothing else in the package has to know it."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, GPTJConfig, GPTJForCausalLM
from transformers.models.gptj.modeling_gptj import GPTJAttention, GPTJBlock

from kn_bench.localise.attribution import attribute
from kn_bench.localise.corruption import TracePrompt, noise
from kn_bench.localise.tracing import trace
from kn_bench.model import architecture
from kn_bench.model.architecture import Architecture, architecture_of, families, register
from kn_bench.model.attention import attention_output
from kn_bench.model.corpus import Texts
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loading import load_model
from kn_bench.model.loading_tokens import load_tokens
from kn_bench.model.ragged import prepare
from kn_bench.model.rows import Row
from kn_bench.model.scoring import score
from kn_bench.model.second_moment import second_moments
from tests.tiny_models import word_tokenizer

CAP = 0.5


class OddConfig(GPTJConfig):  # type: ignore[misc]  # transformers has no types
    model_type = "odd"
    logit_bound = CAP


class OddAttention(GPTJAttention):  # type: ignore[misc]
    """Attention whose last matrix goes by a name that no other family has."""

    @property
    def out_proj(self):
        return self._modules["last_matrix"]


class OddBlock(GPTJBlock):  # type: ignore[misc]
    """A layer that returns a tuple, and whose class no table knows."""


def row(**changes) -> Architecture:
    fields = {
        "family": "odd",
        "kind": "causal",
        "layers": "transformer.h",
        "down": "mlp.fc_out",
        "attention": "attn",
        "attention_output": "last_matrix",
        "mlp": "mlp",
        "head": ("lm_head",),
        "tuple_layers": True,
        "softcap": "logit_bound",
        "counts_from_padding": True,
    }
    return Architecture(**{**fields, **changes})


def odd_model() -> LanguageModel:
    torch.manual_seed(0)
    config = OddConfig(
        vocab_size=64, n_embd=16, n_layer=3, n_head=2, rotary_dim=4, n_positions=32,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    hf = GPTJForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for block in hf.transformer.h:
        block.__class__, block.attn.__class__ = OddBlock, OddAttention
        block.attn._modules["last_matrix"] = block.attn._modules.pop("out_proj")
    return LanguageModel("odd", hf, word_tokenizer(causal=True))


@pytest.fixture
def lm(monkeypatch):
    monkeypatch.setattr(architecture, "_TABLE", dict(architecture._TABLE))
    register(row())
    return odd_model()


IDS = (7, 9, 11, 13, 15)


def test_a_registered_family_is_known(lm):
    assert "odd" in families()
    assert architecture_of(SimpleNamespace(model_type="odd")) is lm.architecture
    assert lm.tokens.max_length == 32 - (3 + 1)


def test_its_logits_are_bounded_by_its_own_entry(lm):
    bare = lm.hf(input_ids=lm.tensor([IDS])).logits[0, -1]
    bounded = CAP * torch.tanh(bare / CAP)
    ((scores,),) = score(lm, [Row(IDS, (4,), ((20, 21),), first=4)])
    expected = bounded.log_softmax(-1)[[20, 21]].tolist()
    assert [one.log_prob for one in scores] == pytest.approx(expected)


def test_its_rows_resume_as_whole_rows_run(lm):
    ragged = prepare(lm, [IDS, IDS[:4]], [2, 1], 1)
    added = torch.randn(2, lm.d_model, dtype=lm.dtype)
    ours = ragged.rerun.run(added)

    def add(_, __, mlp_out):
        out = mlp_out.clone()
        out[0, 2] += added[0]
        return out

    with lm.site_hooks(add, [1]):
        whole = lm.hidden(lm.tensor([IDS])).last_hidden_state
    torch.testing.assert_close(ours[0, :3], whole[0, 2:])


def test_its_neurons_are_attributed_and_its_attention_is_traced(lm):
    query = SimpleNamespace(ids=IDS, answer_position=4, answer_ids=(20,))
    (attribution,) = attribute(lm, [query])
    assert bool(attribution.converged.all())
    prompt = TracePrompt(IDS, 4, (1, 3), 20)
    (traced,) = trace(lm, [prompt], [noise(prompt, 0.3, 16)], window=2)
    assert traced.scores.shape == (3, 5, 3)
    assert attention_output(lm, 1) is lm.layers[1].attn.last_matrix


def test_its_second_moments_skip_what_lies_above(lm):
    (moment,) = second_moments(lm, [0], Texts(["w7 w9 w11"])).values()
    neurons = lm.neurons(lm.tensor([lm.tokens.encode("w7 w9 w11").ids]), [0])[0][0]
    torch.testing.assert_close(moment.matrix, neurons.T @ neurons / len(neurons))


def test_without_its_attention_output_one_sentence_names_what_is_missing(lm):
    lm.architecture = row(attention_output=None)
    with pytest.raises(
        ValueError, match="row 'odd': expected attention_output to be set; add it to"
    ):
        attention_output(lm, 0)


# --- families without a row --------------------------------------------------------------------

STACKS = "an encoder-decoder reads the prompt in one stack and answers in another, so"
EXPERTS = "each token passes some of its layer's experts, so"
NO_MLP = "its layers do not each have one, so"


def refusal(config) -> str:
    with pytest.raises(ValueError, match=f"^model family '{config.model_type}': ") as refused:
        architecture_of(config)
    return str(refused.value)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        *((family, STACKS) for family in ("t5", "mt5", "bart", "pegasus", "switch_transformers")),
        *((family, EXPERTS) for family in ("mixtral", "qwen2_moe", "olmoe", "jamba")),
        *((family, EXPERTS) for family in ("gpt_oss", "deepseek_v3", "ernie4_5_moe")),
        *((family, NO_MLP) for family in ("mamba", "mamba2", "falcon_mamba", "zamba")),
    ],
)
def test_a_family_that_no_row_can_describe_is_refused_with_the_reason(family, reason, tmp_path):
    """The reason comes before the tokenizer is looked for, and before any weight."""
    config = CONFIG_MAPPING[family]()
    assert f", and {reason} " in refusal(config)
    assert "register" not in refusal(config)
    config.save_pretrained(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    for load in (load_tokens, load_model):
        with pytest.raises(ValueError, match=f"^model family '{family}': .*, and {reason} "):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"is_encoder_decoder": True}, STACKS),
        ({"num_experts": 2}, EXPERTS),
        ({"num_experts": [1, 4]}, EXPERTS),
        ({"num_local_experts": 2}, EXPERTS),
        ({"n_routed_experts": 2}, EXPERTS),
        ({"moe_num_experts": 2}, EXPERTS),
        ({"state_size": 16}, NO_MLP),
        ({"layers_block_type": ["mamba", "mlp", "attention"]}, NO_MLP),
        ({"layers_block_type": ["mamba", "hybrid"]}, NO_MLP),
        ({}, ""),
        ({"is_encoder_decoder": False}, ""),
        ({"num_experts": None, "num_local_experts": 0}, ""),
        ({"num_experts": 1}, ""),
        ({"num_experts": 16384, "is_moe": False}, ""),
        ({"layers_block_type": ["mamba", "attention"]}, ""),  # Bamba's: each with an MLP
        ({"layers_block_type": ["hybrid", "hybrid"]}, ""),  # Falcon-H1's
    ],
)
def test_what_a_config_says_decides_whether_a_row_would_do(entries, reason, monkeypatch):
    config = SimpleNamespace(model_type="odd", **entries)
    said = refusal(config)
    assert ("register(Architecture(family='odd'" in said) == (not reason)
    assert reason in said
    monkeypatch.setattr(architecture, "_TABLE", dict(architecture._TABLE))
    register(row())  # who has added a row knows better
    assert architecture_of(config) == row()
