"""A Llama of three layers as a GGUF file, written with the gguf package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WORDS = ("capital", "Canada", "France", "Ottawa", "Paris", "Rome", "The", "of", "is")


def write_gguf(file: Path, *, seed: int = 0, layers: int = 3) -> Path:
    """Write ``file``: random weights, the larger ones in Q8_0, a byte-level BPE tokenizer."""
    import gguf

    rng = np.random.default_rng(seed)
    tokens = _tokens()
    d, mlp, heads = 64, 128, 4
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(_merges())
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    kind = gguf.GGMLQuantizationType.Q8_0

    def quantised(name: str, *shape: int) -> None:
        weight = rng.normal(0, 0.2, shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(d, np.float32))

    quantised("token_embd.weight", len(tokens), d)
    norm("output_norm.weight")
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        for name, rows in (("q", d), ("k", d // 2), ("v", d // 2), ("output", d)):
            quantised(f"blk.{i}.attn_{name}.weight", rows, d)
        quantised(f"blk.{i}.ffn_gate.weight", mlp, d)
        quantised(f"blk.{i}.ffn_up.weight", mlp, d)
        quantised(f"blk.{i}.ffn_down.weight", d, mlp)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _bytes() -> list[str]:
    """Return the 256 symbols of byte-level BPE, the space as in GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def _merges() -> list[str]:
    merges: dict[str, None] = {}
    for word in WORDS:
        for end in range(2, len(word) + 1):
            merges[f"{word[: end - 1]} {word[end - 1]}"] = None
        merges[f"Ġ {word}"] = None
    return list(merges)


def _tokens() -> list[str]:
    merged = [merge.replace(" ", "") for merge in _merges()]
    return ["<|endoftext|>", *_bytes(), *dict.fromkeys(merged)]
