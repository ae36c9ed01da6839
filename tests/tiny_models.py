"""Seeded random models of every family, small enough to build in a test. float64 unless asked."""

from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)

from kn_bench.model.architecture import architecture_of
from kn_bench.model.language_model import LanguageModel

VOCABULARY = 64
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROUNDED = {"gpt_neo", "gptj", "gemma2", "gemma2-window", "bloom"}
"""Families that compute attention in float32 whatever the weights: Adam enlarges the rounding."""
_KEY_VALUE = {"num_key_value_heads": 1, "head_dim": 8}
_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32},
    "gpt_neo": {
        "num_layers": 3,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 4,
    },
    "gptj": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "rotary_dim": 4},
    "bloom": {"n_layer": 3, "n_head": 2},
    "falcon": {"alibi": False, "new_decoder_architecture": False},
    "gpt_neox": {},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "phi": {},
    "llama": _KEY_VALUE,
    "mistral": _KEY_VALUE,
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": _KEY_VALUE,
    "gemma": _KEY_VALUE,
    "gemma2": {**_KEY_VALUE, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_KEY_VALUE, "query_pre_attn_scalar": 8},
    "olmo2": {"num_key_value_heads": 1},
    "bert": {},
    "roberta": {"max_position_embeddings": 40},
    "electra": {"embedding_size": 12},
    "albert": {"embedding_size": 12, "inner_group_num": 1},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2},
    "modernbert": {"global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
}
FAMILIES = tuple(_CONFIGS)
_WINDOWS: dict[str, dict[str, Any]] = {
    "mistral-window": {"sliding_window": 4},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma2-window": {"sliding_window": 4},
    "gemma3_text-window": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "modernbert-window": {"local_attention": 8},
}
WINDOWED = tuple(_WINDOWS)
"""Families whose attention reaches less far than the rows of most tests."""


@lru_cache(maxsize=4)
def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> LanguageModel:
    """A random model with every parameter perturbed, so that biases and norms matter."""
    torch.manual_seed(seed)
    model_type = family.removesuffix("-window")
    settings = {**_SMALL, **_CONFIGS[model_type], **_WINDOWS.get(family, {})}
    config = AutoConfig.for_model(model_type, **settings)
    for name in ("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    row = architecture_of(config)
    auto = AutoModelForCausalLM if row.kind == "causal" else AutoModelForMaskedLM
    hf = auto.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            # drawn in half precision, the numbers would depend on the processor
            drawn = torch.float32 if dtype.itemsize < 4 else dtype
            parameter.add_(0.1 * torch.randn_like(parameter, dtype=drawn).to(dtype))
    saved = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    tokenizer = word_tokenizer(row.kind == "causal")
    return LanguageModel(f"random-{family}", hf, tokenizer, weights=lambda: saved)


def word_tokenizer(causal: bool, bos: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over w5 ... w63; [CLS]/[SEP] for masked models, BOS on request."""
    special = ["[PAD]", "[BOS]", "[EOS]", "[MASK]", "[UNK]"]
    words = special + [f"w{i}" for i in range(len(special), VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not causal or bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[BOS] $A" if causal else "[BOS] $A [EOS]",
            special_tokens=[("[BOS]", 1), ("[EOS]", 2)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        **({} if causal else {"cls_token": "[BOS]", "sep_token": "[EOS]", "mask_token": "[MASK]"}),
        model_max_length=32,
    )
