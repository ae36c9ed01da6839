"""Load a model's tokenizer alone: a controller needs no more, and loads no code of models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kn_bench.model.architecture import architecture_of, language_part, positions_of
from kn_bench.model.chat_template import begin_with_template
from kn_bench.model.hub import from_pretrained_options
from kn_bench.model.source import first_line, not_to_be_had, source_of
from kn_bench.model.tokens import Tokens


def load_tokens(name: str, *, commit: str | None = None, chat_template: bool = False) -> Tokens:
    """Load a model's tokenizer without its weights.

    Arguments and errors are those of :func:`~kn_bench.model.loading.load_model`.
    """
    from transformers import AutoConfig, AutoTokenizer

    source, revision = source_of(name)
    options = from_pretrained_options(source, commit or revision)
    with in_one_sentence(name):
        config = AutoConfig.from_pretrained(source, **options)
        config = language_part(config)
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, **options)
        if chat_template:
            begin_with_template(name, tokenizer)
        row = architecture_of(config)
        return Tokens(tokenizer, row.kind, positions_of(config, row))


@contextmanager
def in_one_sentence(name: str) -> Iterator[None]:
    """Turn any error in reading the files into a ValueError of one sentence."""
    try:
        yield
    except OSError as error:
        raise ValueError(_reason(name, error)) from error
    except ValueError:
        raise
    except Exception as error:  # truncated files raise many types
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(
            f"{name!r}: expected a model that can be loaded ({reason}); download it again"
        ) from error


def _reason(name: str, error: OSError) -> str:
    if "safetensors" in str(error):
        return (
            f"{name}: expected safetensors weights, and kn_bench never unpickles; convert it first"
        )
    if Path(name).is_dir():
        return (
            f"{name}: expected a model that can be loaded ({first_line(error)}); download it again"
        )
    return f"model {name!r}: {not_to_be_had(error)}"
