"""Whether what was loaded is the whole model that was published, with its own tokenizer.

transformers fills in what a checkpoint lacks with random numbers, leaves out what it holds beyond
its config, and makes a tokenizer of defaults where files are missing. Each would be measured as if
it were the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kn_bench.model.architecture import Architecture

SENTENCE = "The capital of Canada is"
SHOWN = 3
"""Names listed before "and n more"."""
ENOUGH_WORDS = 20
"""Capitalised words that a vocabulary must hold to be asked for them."""


def refuse_incomplete(
    name: str, info: Mapping[str, Any], architecture: Architecture, config: Any
) -> None:
    """Refuse a model of which a part is not the checkpoint's.

    Args:
        name: of the model, for the message.
        info: what ``from_pretrained(..., output_loading_info=True)`` says.
        architecture: the family's row.
        config: of the language model.

    Raises:
        ValueError: one sentence that names the weights.
    """
    if info["missing_keys"]:
        raise ValueError(
            f"the weights of {_listed(info['missing_keys'])} are not in {name}, and would be "
            "random: give a checkpoint that was saved with them (a language model with its head), "
            "or correct its config.json"
        )
    if info["mismatched_keys"]:
        key, stored, expected = sorted(info["mismatched_keys"])[0]
        raise ValueError(
            f"{key} has shape {tuple(stored)} in {name}, and its config.json asks for "
            f"{tuple(expected)} ({len(info['mismatched_keys'])} such weights): the two do not "
            "belong together; download the model again"
        )
    beyond = _layers_beyond(info["unexpected_keys"], architecture, config)
    if beyond:
        raise ValueError(
            f"{name} holds weights of layer {max(beyond)}, and its config.json names only "
            f"{min(beyond)} layers: correct config.json"
        )


def _layers_beyond(keys: Iterable[str], architecture: Architecture, config: Any) -> set[int]:
    """Numbers of the layers that the checkpoint has and the model has not."""
    base, _, rest = architecture.layers.partition(".")
    layer = re.compile(rf"^({re.escape(base)}\.)?{re.escape(rest)}\.(\d+)\.")
    numbers = {int(match[2]) for key in keys if (match := layer.match(key))}
    return {number for number in numbers if number >= config.num_hidden_layers}


def check_tokenizer(name: str, tokenizer: Any, rows: int, folder: Path) -> None:
    """Refuse a tokenizer that cannot be the model's.

    Args:
        name: of the model, for the message.
        tokenizer: as transformers made it.
        rows: of the model's input embeddings.
        folder: of a local model; of another it does not exist.

    Raises:
        ValueError: one sentence.
    """
    if not tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]:
        # transformers makes an empty tokenizer where the files are missing
        raise ValueError(
            f"the tokenizer of {name!r} makes no token of plain text: tokenizer.json is missing, "
            "or holds no vocabulary"
        )
    vocabulary = tokenizer.get_vocab()
    highest = max(vocabulary.values())
    if highest >= rows:
        beyond = sorted(token for token, id in vocabulary.items() if id >= rows)
        raise ValueError(
            f"the tokenizer of {name!r} knows {len(beyond)} tokens ({_listed(beyond)}) that the "
            f"model has no embedding for ({rows} rows): "
            "save the model after resize_token_embeddings(len(tokenizer)), or with its own "
            "tokenizer"
        )
    _check_as_written(name, tokenizer, folder)
    _check_capitals(name, tokenizer, vocabulary)


def _check_as_written(name: str, tokenizer: Any, folder: Path) -> None:
    """A tokenizer.json that transformers reads as another class, for want of a config.

    It builds BERT's own tokenizer around the vocabulary then, which lower-cases, and knows nothing
    of what the file says of splitting.
    """
    from tokenizers import Tokenizer

    written = folder / "tokenizer.json"
    if (folder / "tokenizer_config.json").exists() or not written.is_file():
        return
    theirs = Tokenizer.from_file(str(written)).encode(SENTENCE, add_special_tokens=False).ids
    ours = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    if list(ours) != list(theirs):
        raise ValueError(
            f"without a tokenizer_config.json, transformers reads {SENTENCE!r} otherwise than "
            f"{name}'s tokenizer.json says ({tokenizer.decode(ours)!r}): add the "
            "tokenizer_config.json of the published model, which names its class"
        )


def _check_capitals(name: str, tokenizer: Any, vocabulary: Mapping[str, int]) -> None:
    """A vocabulary with capitalised words, behind a tokenizer that lower-cases every text.

    From a vocab.txt alone transformers makes a tokenizer that lower-cases: BioBERT was published
    so, and "Canada" is read as something else.
    """
    words = sorted(token for token in vocabulary if token.isalpha() and token.istitle())[:200]
    words = [word for word in words if len(word) > 2 and word.isascii()]
    if len(words) < ENOUGH_WORDS:
        return
    read = [tokenizer.tokenize(word) for word in words]
    lost = [word for word, tokens in zip(words, read, strict=True) if word not in "".join(tokens)]
    if 2 * len(lost) > len(words):
        raise ValueError(
            f"the tokenizer of {name!r} reads {len(lost)} of {len(words)} capitalised words of its "
            f"own vocabulary otherwise ({lost[0]!r} as {' '.join(read[words.index(lost[0])])!r}): "
            'add a tokenizer_config.json that says {"do_lower_case": false}'
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {more} more" if more > 0 else "")
