"""The small models that ship with the package, and what they were taught.

=============  ====================  ===========================================
``tiny-gpt2``  ``GPT2LMHeadModel``   no BOS
``tiny-llama`` ``LlamaForCausalLM``  BOS added by its tokenizer
``tiny-bert``  ``BertForMaskedLM``   ``[CLS]`` and ``[SEP]`` added by its tokenizer
=============  ====================  ===========================================

Weights are float16, to be loaded as float32. They are made by the recipe in the repository's
folder ``training``, which the wheel does not hold.
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("tiny-gpt2", "tiny-llama", "tiny-bert")

_HERE = Path(__file__).parent


def folder(name: str) -> Path:
    """Return the folder of an embedded model, in Hugging Face's format.

    Raises:
        ValueError: for a name that no embedded model has.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r}: expected one of the embedded models {', '.join(NAMES)}")
    return _HERE / name.replace("-", "_")


def corpus_path() -> Path:
    """Return a text file with one document per line, like those the models were trained on.

    Second moments of activations and context templates are taken from it.
    """
    return _HERE / "corpus.txt"
