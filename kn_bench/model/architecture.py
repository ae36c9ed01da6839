"""The table of model families: where the layers, down-projections, attention and head are.

A *site* is a layer's down-projection, the second matrix of its MLP. Its inputs are the layer's
neurons (the keys of ROME), its outputs their values. One row here is all that a family needs;
:func:`register` adds a row from outside the package.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["causal", "masked"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where one family of Hugging Face models keeps its parts, as dotted paths.

    Attributes:
        family: ``config.model_type``.
        kind: ``causal`` or ``masked``.
        layers: path from the model to the list of layers.
        down: path from a layer to its down-projection, the site.
        attention: path from a layer to its attention block.
        attention_output: path from the attention block to its last matrix, whose output is what
            attention adds to the residual stream; needed for tracing attention alone.
        mlp: path from a layer to its MLP block (for families without one, its last matrix).
        head: modules from the base model's last hidden state to the logits, applied in turn.
        tuple_layers: whether a layer returns ``(hidden_states, ...)`` under transformers 5, where
            others return a tensor.
        softcap: name of the config's entry that bounds the logits, ``cap * tanh(logits / cap)``;
            such an entry may be None.
        scale, divisor: names of the config's entries that the logits are multiplied by (Cohere) or
            divided by (Granite), before they are bounded.
        counts_from_padding: whether positions are counted from the padding token's id on, so that
            fewer tokens fit than the config says, by that id plus 1 (RoBERTa).
        unrolled: whether ``layers`` lists groups that are each run several times in a row, an equal
            share of ``config.num_hidden_layers`` (ALBERT): the layers share their weights.
        resumable: whether rows may join at any layer and position. Families whose layers read
            position through the mask's shape (ALiBi) or share one module are run whole, and so are
            rows that reach past a window of attention.
    """

    family: str
    kind: Kind
    layers: str
    down: str
    attention: str
    mlp: str
    head: tuple[str, ...]
    attention_output: str | None = None
    tuple_layers: bool = False
    softcap: str | None = None
    scale: str | None = None
    divisor: str | None = None
    counts_from_padding: bool = False
    unrolled: bool = False
    resumable: bool = True

    def factor(self, config: Any) -> float:
        """Return what the head's outputs are multiplied by."""
        scale = getattr(config, self.scale) if self.scale else 1.0
        return float(scale / (getattr(config, self.divisor) if self.divisor else 1.0))


def _llama_like(family: str, softcap: str | None = None) -> Architecture:
    return Architecture(
        family=family,
        kind="causal",
        layers="model.layers",
        down="mlp.down_proj",
        attention="self_attn",
        attention_output="o_proj",
        mlp="mlp",
        head=("lm_head",),
        softcap=softcap,
    )


def _bert_like(family: str, head: tuple[str, ...], **fields: Any) -> Architecture:
    return Architecture(
        family=family,
        kind="masked",
        layers=f"{family}.encoder.layer",
        down="output.dense",
        attention="attention",
        attention_output="output.dense",
        mlp="output",
        head=head,
        **fields,
    )


def _gpt(family: str, down: str, attention: str, output: str, **fields: Any) -> Architecture:
    return Architecture(
        family=family,
        kind="causal",
        layers="transformer.h",
        down=down,
        attention=attention,
        attention_output=output,
        mlp="mlp",
        head=("lm_head",),
        **fields,
    )


_TABLE: dict[str, Architecture] = {
    row.family: row
    for row in (
        _gpt("gpt2", "mlp.c_proj", "attn", "c_proj"),
        _gpt("gptj", "mlp.fc_out", "attn", "out_proj", tuple_layers=True),
        _gpt(
            "gpt_neo",
            "mlp.c_proj",
            "attn",
            "attention.out_proj",
            tuple_layers=True,
            resumable=False,
        ),
        *(
            _gpt(
                family,
                "mlp.dense_4h_to_h",
                "self_attention",
                "dense",
                tuple_layers=True,
                resumable=False,
            )
            for family in ("bloom", "falcon")
        ),
        Architecture(
            family="gpt_neox",
            kind="causal",
            layers="gpt_neox.layers",
            down="mlp.dense_4h_to_h",
            attention="attention",
            attention_output="dense",
            mlp="mlp",
            head=("lm_head",),
        ),
        Architecture(
            family="opt",
            kind="causal",
            layers="model.decoder.layers",
            down="fc2",
            attention="self_attn",
            attention_output="out_proj",
            mlp="fc2",
            head=("lm_head",),
            resumable=False,
        ),
        Architecture(
            family="phi",
            kind="causal",
            layers="model.layers",
            down="mlp.fc2",
            attention="self_attn",
            attention_output="dense",
            mlp="mlp",
            head=("lm_head",),
        ),
        *map(_llama_like, ("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo2")),
        _llama_like("gemma2", softcap="final_logit_softcapping"),
        _llama_like("gemma3_text", softcap="final_logit_softcapping"),
        _bert_like("bert", ("cls",)),
        _bert_like("roberta", ("lm_head",), counts_from_padding=True),
        _bert_like("electra", ("generator_predictions", "generator_lm_head")),
        Architecture(
            family="albert",
            kind="masked",
            layers="albert.encoder.albert_layer_groups",
            down="albert_layers.0.ffn_output",
            attention="albert_layers.0.attention",
            attention_output="dense",
            mlp="albert_layers.0.ffn_output",
            head=("predictions",),
            unrolled=True,
            resumable=False,
        ),
        Architecture(
            family="distilbert",
            kind="masked",
            layers="distilbert.transformer.layer",
            down="ffn.lin2",
            attention="attention",
            attention_output="out_lin",
            mlp="ffn",
            head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        ),
        Architecture(
            family="modernbert",
            kind="masked",
            layers="model.layers",
            down="mlp.Wo",
            attention="attn",
            attention_output="Wo",
            mlp="mlp",
            head=("head", "decoder"),
        ),
    )
}


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configs call the number of a layer's experts."""


_BUILT_IN = frozenset(_TABLE.values())


def register(row: Architecture) -> None:
    """Add a family, or replace its row; call it before loading the model."""
    _TABLE[row.family] = row


def registered() -> tuple[Architecture, ...]:
    """Return the rows that :func:`register` has added or replaced."""
    return tuple(row for row in _TABLE.values() if row not in _BUILT_IN)


def language_part(config: Any) -> Any:
    """Return the part of a Hugging Face config that describes what kn_bench measures.

    A multimodal class (Gemma 3 from 4B on, Mistral 3) holds its text model's config as
    ``text_config``. It is returned unless the table has a row for the multimodal class itself.
    """
    inner = getattr(config, "text_config", None)
    return config if inner is None or str(config.model_type) in _TABLE else inner


def families() -> tuple[str, ...]:
    """Return the known families, sorted."""
    return tuple(sorted(_TABLE))


def _known() -> str:
    return ", ".join(families())


def architecture_of(config: Any) -> Architecture:
    """Return the row for a Hugging Face config.

    Raises:
        ValueError: for a family without a row; says which row to add, or why none would do.
    """
    family = str(config.model_type)
    if family in _TABLE:
        return _TABLE[family]
    reason = _why_no_row_would_do(config)
    if reason:
        raise ValueError(
            f"model family {family!r}: expected one stack of layers with one MLP each, and "
            f"{reason}; name another model"
        )
    raise ValueError(
        f"model family {family!r}: expected one of {_known()}; before loading the model, add a "
        f"row with kn_bench.model.architecture.register(Architecture(family={family!r}, "
        "layers=..., down=..., ...))"
    )


def _why_no_row_would_do(config: Any) -> str:
    """Return what in a config rules out every row; "" where nothing does."""
    if getattr(config, "is_encoder_decoder", False):
        return (
            "an encoder-decoder reads the prompt in one stack and answers in another, so no single "
            "layer lies between the subject and the answer"
        )
    if getattr(config, "is_moe", True) and any(_number(config, name) > 1 for name in _EXPERTS):
        return (
            "each token passes some of its layer's experts, so a layer has no single "
            "down-projection and 'neuron i of layer l' is not defined"
        )
    # Mamba's layers are state spaces; Nemotron-H's are each one thing, and Zamba's MLP is shared
    kinds = set(getattr(config, "layers_block_type", None) or ())
    mixed = len(kinds) > 1 and not kinds.isdisjoint({"mlp", "moe", "hybrid"})
    if hasattr(config, "state_size") or mixed:
        return "its layers do not each have one, so 'neuron i of layer l' is not defined"
    return ""


def _number(config: Any, name: str) -> int:
    """Return the number in a config's entry, the largest where it has one of each layer."""
    value = getattr(config, name, None) or 0
    return max(value) if isinstance(value, list | tuple) else int(value)


def submodule(module: nn.Module, path: str) -> nn.Module:
    """Return ``module`` at a dotted path; ``AttributeError`` names a path that is missing."""
    return module.get_submodule(path) if path else module


_ASIDE = ("_name_or_path", "transformers_version", "dtype")
"""Entries of a config that say nothing of what its model computes from its weights."""


def parameter_bytes(hf: nn.Module) -> int:
    """Return the bytes that a module's parameters take."""
    return sum(p.numel() * p.element_size() for p in hf.parameters())


def config_hash(config: Any, architecture: Architecture) -> str:
    """Return SHA-256 of what a config and a row, beside the weights, decide about the answers."""
    entries = {name: value for name, value in config.to_dict().items() if name not in _ASIDE}
    entries["attention"] = getattr(config, "_attn_implementation", None)
    entries["row"] = repr(architecture)
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()


def window_of(config: Any) -> int | None:
    """Return how far attention reaches in a model's local layers; None where it reaches all."""
    stated = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((int(width) for width in stated if width), default=None)


def positions_of(config: Any, architecture: Architecture) -> int | None:
    """Return how many positions a model has for tokens; None where its config does not say."""
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        return None
    offset = config.pad_token_id + 1 if architecture.counts_from_padding else 0
    return int(stated) - offset
