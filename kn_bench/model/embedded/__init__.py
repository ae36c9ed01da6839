"""The small models that ship with the package, and the recipe that makes them.

=============  ====================  ===========================================
``tiny-gpt2``  ``GPT2LMHeadModel``   no BOS
``tiny-llama`` ``LlamaForCausalLM``  BOS added by its tokenizer
``tiny-bert``  ``BertForMaskedLM``   ``[CLS]`` and ``[SEP]`` added by its tokenizer
=============  ====================  ===========================================

Weights are float16, to be loaded as float32. ``python -m kn_bench.model.embedded.train NAME``
makes them anew.
"""

from __future__ import annotations

from pathlib import Path

NAMES: tuple[str, ...] = ("tiny-gpt2", "tiny-llama", "tiny-bert")

_HERE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder of an embedded model, in Hugging Face's format.

    Raises ValueError where there is no embedded model of that name.
    """
    if name not in NAMES:
        raise ValueError(f"there is no embedded model {name!r}; known are {', '.join(NAMES)}")
    return _HERE / name.replace("-", "_")


def corpus_path() -> Path:
    """A text file with one document a line, such as the models were trained on.

    For second moments of activations and for contexts.
    """
    return _HERE / "corpus.txt"
