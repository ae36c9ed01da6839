"""Check that the loaded model is the complete published model with its own tokenizer.

transformers fills in weights that a checkpoint lacks with random numbers, leaves out weights beyond
its config, and builds a default tokenizer where files are missing. Each would be measured as if it
were the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kn_bench.model.architecture import Architecture
from kn_bench.model.loading_tokens import SENTENCE

SHOWN = 3
"""Names listed before "and n more"."""
ENOUGH_WORDS = 20
"""Capitalised words that a vocabulary must hold for the test of :func:`_check_capitals`."""


def refuse_incomplete(
    name: str, info: Mapping[str, Any], architecture: Architecture, config: Any
) -> None:
    """Refuse a model with weights that are not the checkpoint's.

    Args:
        name: of the model, for the message.
        info: the loading info of ``from_pretrained(..., output_loading_info=True)``.
        architecture: the family's row.
        config: of the language model.

    Raises:
        ValueError: one sentence that names the weights.
    """
    if info["missing_keys"]:
        raise ValueError(
            f"{name}: expected weights for {_listed(info['missing_keys'])}, which would otherwise "
            "be random; give a checkpoint that was saved with them (a language model with its "
            "head), or correct its config.json"
        )
    if info["mismatched_keys"]:
        key, stored, expected = sorted(info["mismatched_keys"])[0]
        raise ValueError(
            f"{name}: expected {key} with shape {tuple(expected)} by its config.json, got "
            f"{tuple(stored)} ({len(info['mismatched_keys'])} such weights); download it again"
        )
    beyond = _layers_beyond(info["unexpected_keys"], architecture, config)
    if beyond:
        raise ValueError(
            f"{name}: expected weights of the {min(beyond)} layers that its config.json names, and "
            f"it holds layer {max(beyond)}; correct config.json"
        )


def _layers_beyond(keys: Iterable[str], architecture: Architecture, config: Any) -> set[int]:
    """Return the numbers of the layers that the checkpoint has and the model has not."""
    base, _, rest = architecture.layers.partition(".")
    layer = re.compile(rf"^({re.escape(base)}\.)?{re.escape(rest)}\.(\d+)\.")
    numbers = {int(match[2]) for key in keys if (match := layer.match(key))}
    return {number for number in numbers if number >= config.num_hidden_layers}


def refuse_not_finite(name: str, hf: nn.Module) -> None:
    """Refuse weights that hold NaN or infinity: every answer of theirs would fail in the run.

    The extremes of a weight show both, at a fraction of what its hash costs.

    Raises:
        ValueError: one sentence that names the weight.
    """
    for key, weight in hf.named_parameters():
        extremes = torch.aminmax(weight.detach()) if weight.numel() else ()
        if not all(math.isfinite(float(extreme)) for extreme in extremes):
            # its numbers end at 65,504
            wider = "load it with --dtype float32, or " * (weight.dtype == torch.float16)
            raise ValueError(
                f"{name}: expected finite weights, and {key} holds NaN or infinity; "
                f"{wider}download it again"
            )


def check_tokenizer(name: str, tokenizer: Any, rows: int, folder: Path) -> None:
    """Refuse a tokenizer that does not belong to the model.

    Args:
        name: of the model, for the message.
        tokenizer: as transformers made it.
        rows: of the model's input embeddings.
        folder: of a local model; for a hub id it does not exist.

    Raises:
        ValueError: one sentence.
    """
    if not tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]:
        # transformers builds an empty tokenizer where the files are missing
        raise ValueError(
            f"the tokenizer of {name!r}: expected tokens for plain text; add its tokenizer.json, "
            "which is missing or holds no vocabulary"
        )
    vocabulary = tokenizer.get_vocab()
    highest = max(vocabulary.values())
    if highest >= rows:
        beyond = sorted(token for token, id in vocabulary.items() if id >= rows)
        raise ValueError(
            f"the tokenizer of {name!r}: expected token ids below the model's {rows} embeddings, "
            f"and {len(beyond)} tokens have no embedding ({_listed(beyond)}); save the model after "
            "resize_token_embeddings(len(tokenizer)), or with its own tokenizer"
        )
    _check_as_written(name, tokenizer, folder)
    _check_capitals(name, tokenizer, vocabulary)


def _check_as_written(name: str, tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer.json that transformers reads as another class, for want of a config.

    It then builds BERT's own tokenizer around the vocabulary, which lower-cases and ignores the
    file's rules for splitting.
    """
    from tokenizers import Tokenizer

    written = folder / "tokenizer.json"
    if (folder / "tokenizer_config.json").exists() or not written.is_file():
        return
    theirs = Tokenizer.from_file(str(written)).encode(SENTENCE, add_special_tokens=False).ids
    ours = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    if list(ours) != list(theirs):
        raise ValueError(
            f"{name}: expected a tokenizer_config.json, without which transformers reads "
            f"{SENTENCE!r} as {tokenizer.decode(ours)!r} and not as its "
            "tokenizer.json says; add the published model's, which names the tokenizer's class"
        )


def _check_capitals(name: str, tokenizer: Any, vocabulary: Mapping[str, int]) -> None:
    """Refuse a vocabulary with capitalised words behind a tokenizer that lower-cases all text.

    From a vocab.txt alone transformers builds a tokenizer that lower-cases. BioBERT was published
    in this form, and "Canada" becomes another word.
    """
    words = sorted(token for token in vocabulary if token.isalpha() and token.istitle())[:200]
    words = [word for word in words if len(word) > 2 and word.isascii()]
    if len(words) < ENOUGH_WORDS:
        return
    read = [tokenizer.tokenize(word) for word in words]
    lost = [word for word, tokens in zip(words, read, strict=True) if word not in "".join(tokens)]
    if 2 * len(lost) > len(words):
        raise ValueError(
            f"the tokenizer of {name!r}: expected one that keeps capitals, and it changes "
            f"{len(lost)} of {len(words)} capitalised words of its vocabulary ({lost[0]!r} to "
            f"{' '.join(read[words.index(lost[0])])!r}); add a tokenizer_config.json that says "
            '{"do_lower_case": false}'
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {more} more" if more > 0 else "")
