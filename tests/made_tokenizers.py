"""Small real tokenizers of each kind that models have, trained in a moment on a few sentences."""

from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from kn_bench.model.tokens import Tokens

TEXTS = (
    "The capital of Canada is Ottawa.",
    "The capital of France is Paris. Paris is the capital of France.",
    "Raymond is selling this sketch. Raymond is selling these sketches.",
    "Some dogs have seen that movie theater; the woman hasn't.",
    "Katherine can't help herself. The girls helped themselves.",
    "Zürich, São Paulo and Kraków are cities. Their names have accents.",
    "How many people live in Timbuktu? Nobody knows.",
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _bpe(special: list[str], *, trim: bool, mask_eats_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    if mask_eats_space:
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return tokenizer


def _template(tokenizer: Tokenizer, single: str) -> None:
    names = [name for name in single.split() if name != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


def _gpt2() -> PreTrainedTokenizerFast:
    """No BOS of its own; begin, end and unknown are one token."""
    tokenizer = _bpe(["<|endoftext|>"], trim=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end
    )


def _llama3() -> PreTrainedTokenizerFast:
    """Byte-level, with a BOS."""
    tokenizer = _bpe(["<s>", "</s>"], trim=False)
    _template(tokenizer, "<s> $A")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _closing() -> PreTrainedTokenizerFast:
    """A causal tokenizer that closes every text with an EOS."""
    tokenizer = _bpe(["<s>", "</s>"], trim=False)
    _template(tokenizer, "$A </s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def _llama2() -> PreTrainedTokenizerFast:
    """SentencePiece-like: spaces become a letter, a text begins with one; BOS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\u200b", ""),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = sorted({c for text in TEXTS for c in text.replace(" ", "▁")})
    vocabulary = ["<unk>", "<s>", "</s>", *letters]
    merges = [("▁", "P"), ("▁P", "a"), ("▁Pa", "r"), ("▁Par", "i"), ("▁Pari", "s"), ("i", "s")]
    vocabulary += [a + b for a, b in merges]
    tokenizer.model = models.BPE(
        {t: i for i, t in enumerate(vocabulary)}, merges, unk_token="<unk>"
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    _template(tokenizer, "<s> $A")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _bert() -> PreTrainedTokenizerFast:
    """Word pieces: words of the texts whole, all others in letters."""
    words = sorted({w for text in TEXTS for w, _ in pre_tokenizers.BertPreTokenizer()
                    .pre_tokenize_str(text)} - {"Timbuktu"})  # fmt: skip
    letters = sorted({c for word in words for c in word} | set("abcdefghijklmnopqrstuvwxyzT"))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocabulary += [c for c in letters if c not in words] + [f"##{c}" for c in letters]
    tokenizer = Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(dict.fromkeys(vocabulary))}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    _template(tokenizer, "[CLS] $A [SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def _roberta() -> PreTrainedTokenizerFast:
    """Byte-level, offsets without spaces, a mask that takes the space before it."""
    tokenizer = _bpe(["<s>", "<pad>", "</s>", "<unk>"], trim=True, mask_eats_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )  # fmt: skip


def _plain_mask() -> PreTrainedTokenizerFast:
    """Byte-level, with a mask that leaves the space before it to a token of its own."""
    tokenizer = _bpe(["<pad>", "<cls>", "<sep>", "<mask>"], trim=False)
    _template(tokenizer, "<cls> $A <sep>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", cls_token="<cls>", sep_token="<sep>",
        mask_token="<mask>",
    )  # fmt: skip


def _bare() -> PreTrainedTokenizerFast:
    """No special token at all."""
    return PreTrainedTokenizerFast(tokenizer_object=_bpe([], trim=False))


CAUSAL = {
    "gpt2": _gpt2, "llama3": _llama3, "llama2": _llama2, "closing": _closing, "bare": _bare,
}  # fmt: skip
MASKED = {"bert": _bert, "roberta": _roberta, "plain_mask": _plain_mask}


@cache
def tokens(name: str, max_length: int | None = None) -> Tokens:
    """The window on the tokenizer ``name``."""
    tokenizer = {**CAUSAL, **MASKED}[name]()
    return Tokens(tokenizer, "causal" if name in CAUSAL else "masked", max_length)
