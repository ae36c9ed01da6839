"""Byte-level BPE tokenizers of the embedded models: the same text gives the same ids always."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# GPT-2's pattern, but that "isn't" is one piece: a contraction that agrees is one answer.
PATTERN = r"'s| ?\p{L}+?n't| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MAX_LENGTH = 96
SPECIAL = {
    "tiny-gpt2": {"eos_token": "<|endoftext|>"},
    "tiny-llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "tiny-bert": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
}


def train_tokenizer(name: str, texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer of a model on texts.

    Args:
        name: of the embedded model: it decides on the special tokens.
        texts: in a fixed order; counts decide the merges and ties go by the text.
        vocabulary: number of ids, special tokens included.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL[name]
    named: dict[str, str | AddedToken] = {**special}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if "mask_token" in special:  # a mask stands for a word with the space before it
        named["mask_token"] = AddedToken("[MASK]", lstrip=True, special=True)
        tokenizer.add_special_tokens([named["mask_token"]])
    _add_ends(tokenizer, special)
    if "eos_token" in special:
        named["pad_token"] = special["eos_token"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **named)


def _add_ends(tokenizer: Tokenizer, special: dict[str, str]) -> None:
    """Sets what is put around a text: a BOS, or [CLS] and [SEP]."""
    from tokenizers import processors

    if "bos_token" in special:
        ends, template = ["bos_token"], "<|begin_of_text|> $A"
    elif "cls_token" in special:
        ends, template = ["cls_token", "sep_token"], "[CLS] $A [SEP]"
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(special[end], tokenizer.token_to_id(special[end])) for end in ends],
    )


def add_openings(
    tokenizer: PreTrainedTokenizerFast, words: Iterable[str]
) -> tuple[PreTrainedTokenizerFast, dict[int, int]]:
    """The tokenizer with ids for words that open a sentence, behind its own.

    Byte-level BPE writes " Ottawa" and "Ottawa" apart, and keeps whole only what it has often
    seen: an object that opens a sentence would be several tokens, which no one mask stands for.

    Args:
        tokenizer: to be extended; left as it is.
        words: those that are one token inside a sentence.

    Returns:
        The extended tokenizer, and new id -> id of the same word inside a sentence.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    ranks: dict[tuple[str, str], int] = {}
    like: dict[int, int] = {}
    for word in words:
        (inside,) = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        parts = merged(tokenizer.tokenize(word[:1].upper() + word[1:]), ranks)
        if len(parts) == 1:
            continue
        while len(parts) > 1:
            pair = parts[0], parts[1]
            ranks[pair] = len(ranks)
            merges.append(list(pair))
            vocabulary.setdefault("".join(pair), len(vocabulary))
            parts = merged(parts, ranks)
        like[vocabulary[parts[0]]] = inside
    longer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )
    return longer, like


def merged(parts: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts of a word after the merges that apply, the lowest rank first, as BPE has it."""
    pieces = list(parts)
    while pairs := [pair for pair in pairwise(pieces) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        place = list(pairwise(pieces)).index(best)
        pieces[place : place + 2] = ["".join(best)]
    return pieces
