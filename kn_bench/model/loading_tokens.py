"""Load a model's tokenizer alone: a controller needs no more, and loads no code of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kn_bench.model.architecture import architecture_of, language_part, positions_of
from kn_bench.model.chat_template import begin_with_template
from kn_bench.model.folder import CONFIG, read_object
from kn_bench.model.hub import from_pretrained_options
from kn_bench.model.source import first_line, not_to_be_had, source_of
from kn_bench.model.tokens import Tokens

SENTENCE = "The capital of Canada is"
"""What a tokenizer is tried on."""
OBJECTS = (CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "added_tokens.json", "generation_config.json")  # fmt: skip
"""Files of a model's folder that hold a JSON object."""
WHOLE = ("a model that can be loaded", "download it again")
"""What is expected of a part of a model, and what is to be done where it is not so."""
SETTINGS = (f"a {CONFIG} that transformers takes", "correct it, or download it again")
TOKENIZER = (
    "tokenizer files that transformers can read, such as tokenizer.json",
    "add those of the published model",
)


def load_tokens(name: str, *, commit: str | None = None, chat_template: bool = False) -> Tokens:
    """Load a model's tokenizer without its weights.

    Arguments and errors are those of :func:`~kn_bench.model.loading.load_model`.
    """
    source, revision = source_of(name)
    options = from_pretrained_options(source, commit or revision)
    config = language_part(config_from(name, source, options))
    row = architecture_of(config)
    tokenizer = tokenizer_from(name, source, options)
    if chat_template:
        begin_with_template(name, tokenizer)
    return Tokens(tokenizer, row.kind, positions_of(config, row))


def config_from(name: str, source: str | Path, options: Mapping[str, Any]) -> Any:
    """Return a model's config, its defaults filled in, or one sentence about it."""
    from transformers import AutoConfig

    with in_one_sentence(name, source, SETTINGS):
        return AutoConfig.from_pretrained(source, **options)


def tokenizer_from(name: str, source: str, options: Mapping[str, Any]) -> Any:
    """Return a model's tokenizer, tried on a sentence, or one sentence about it."""
    from transformers import AutoTokenizer

    with in_one_sentence(name, source, TOKENIZER):
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, **options)
        tokenizer(SENTENCE, add_special_tokens=False)
        return tokenizer


@contextmanager
def in_one_sentence(
    name: str, source: str | Path, wanted: tuple[str, str] = WHOLE
) -> Iterator[None]:
    """Turn any error of transformers into a ValueError of one sentence.

    Args:
        name: of the model, for the message.
        source: its folder, whose files are then looked at one by one, or a hub id.
        wanted: what was expected, and what to do.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(_reason(name, error, wanted)) from error
    except Exception as error:  # damaged files raise many types
        for file in OBJECTS:
            if (Path(source) / file).is_file():
                read_object(Path(source) / file)
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(
            f"{name!r}: expected {wanted[0]} ({kind}{first_line(error).rstrip(',.')}); {wanted[1]}"
        ) from error


def _reason(name: str, error: OSError, wanted: tuple[str, str]) -> str:
    if "safetensors" in str(error):
        return (
            f"{name}: expected safetensors weights, and kn_bench never unpickles; convert it first"
        )
    if Path(name).is_dir():
        return f"{name}: expected {wanted[0]} ({first_line(error)}); {wanted[1]}"
    return f"model {name!r}: {not_to_be_had(error)}"
