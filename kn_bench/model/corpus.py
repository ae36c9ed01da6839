"""Text that statistics of a model are taken over: files, data sets of the hub, texts in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.written import file_hash

HUB_TEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
"""Data set and configuration, the default where the hub can be reached: two million tokens of
Wikipedia, the source of the published second moments."""
JSON_SUFFIXES = (".json", ".jsonl")
SELF = "self"
"""Name of the text that a model writes itself; see :mod:`kn_bench.model.own_text`."""


class Corpus(Protocol):
    """Documents, and a hash of all of them."""

    @property
    def content_hash(self) -> str: ...

    def documents(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class _OfFile:
    """A corpus that stands in one file, whose bytes are hashed once."""

    path: Path

    @property
    def content_hash(self) -> str:
        return file_hash(self.path)


@dataclass(frozen=True)
class TextFile(_OfFile):
    """A text file with one document per line; empty lines are skipped."""

    def documents(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as file:
            yield from (line.strip() for line in file if line.strip())


@dataclass(frozen=True)
class JsonTexts(_OfFile):
    """A JSON list or JSON lines of objects with a field ``text``, such as ME-PPL's files."""

    def documents(self) -> Iterator[str]:
        """Yield the texts, each on one line; all are read before the first is given.

        Raises:
            ValueError: for a file of another form.
        """
        content = self.path.read_text(encoding="utf-8-sig")
        lines = [content] if content.lstrip().startswith("[") else content.split("\n")
        try:
            values = [json.loads(line) for line in lines if line.strip()]
            records = values[0] if lines == [content] and values else values
            texts = [_text_of(record) for record in records]
        except (json.JSONDecodeError, RecursionError, LookupError, AttributeError) as error:
            raise ValueError(
                f"--corpus '{self.path}': expected JSON objects with a field 'text' "
                f"({type(error).__name__}); write such a list, or plain text in a file called .txt"
            ) from None
        yield from filter(None, texts)


def _text_of(record: Mapping[str, str]) -> str:
    """Return the text of a record in one line, whatever the case of the field's name."""
    return " ".join({name.lower(): value for name, value in record.items()}["text"].split())


@dataclass(frozen=True)
class Texts:
    """Texts in memory, or a column of a data set: anything with a length and an order."""

    texts: Sequence[str]

    @property
    def content_hash(self) -> str:
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        yield from self.texts


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus as it was chosen.

    Attributes:
        name: its name in edits, manifest and board: a file's name, a hub id, or ``self``.
        corpus: its documents.
        max_tokens: how many of its tokens are read where a method does not say; None for all.
    """

    name: str
    corpus: Corpus
    max_tokens: int | None = None


def check_corpus(spec: str) -> None:
    """Refuse an invalid ``--corpus`` before any model is loaded.

    Raises:
        ValueError: one sentence, for a file that is missing or is not text, or a data set that
            cannot be fetched.
    """
    if spec != SELF:
        file_named(spec)


def file_named(spec: str) -> NamedCorpus:
    """Return the text that ``spec`` names: a file, or a data set of the hub, fetched once.

    Args:
        spec: a path, or ``ID`` or ``ID:CONFIGURATION`` of a data set with a column ``text``.

    Raises:
        ValueError: one sentence, when it cannot be read or fetched.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        file = JsonTexts(path) if path.suffix in JSON_SUFFIXES else TextFile(path)
        _check_text(file)
        return NamedCorpus(path.name, file)
    if spec.count("/") != 1 or spec.startswith((".", "/", "~")) or path.suffix:
        raise ValueError(
            f"--corpus '{spec}': expected a text file with one document per line, a data set of "
            f"the hub such as {HUB_TEXT}, or 'self' for text that the model writes"
        )
    return NamedCorpus(spec, TextFile(_fetched(spec)))


def _check_text(file: TextFile | JsonTexts) -> None:
    path = file.path
    try:
        if next(file.documents(), None) is None:
            raise ValueError(f"--corpus '{path}': expected text, and the file is empty")
    except UnicodeDecodeError as error:
        raise ValueError(f"--corpus '{path}': expected UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ValueError(
            f"--corpus '{path}': expected a readable file ({error.strerror})"
        ) from None


def _fetched(spec: str) -> Path:
    """Return the text of a data set of the hub, one document per line; fetched once."""
    kept = cache_folder() / "corpora" / (spec.replace("/", "--").replace(":", "--") + ".txt")
    if kept.is_file():
        return kept
    import datasets  # slow to import, and needed only here

    id, _, configuration = spec.partition(":")
    try:
        rows = datasets.load_dataset(id, configuration or None, split="train")
        texts = rows["text"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"--corpus '{spec}': expected a text file or a data set that the hub can provide "
            f"({type(error).__name__}); name a text file with one document per line, or 'self'"
        ) from None
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}.part")
    lines = (" ".join(text.split()) for text in texts)
    part.write_text("".join(line + "\n" for line in lines if line), encoding="utf-8")
    part.replace(kept)
    return kept
