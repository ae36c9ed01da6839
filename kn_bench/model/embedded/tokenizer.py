"""Byte-level BPE tokenizers of the embedded models: the same text gives the same ids always."""

from __future__ import annotations

from collections.abc import Iterable
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
