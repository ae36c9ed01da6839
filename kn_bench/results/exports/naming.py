"""What models and methods are called in the paths of an export: each by a name of its own."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from kn_bench.cases.sampling import slug, stable_hash
from kn_bench.model.source import is_gguf

ON_HUB = re.compile(r"((?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(?:@(.*))?", re.ASCII | re.DOTALL)
"""The hub's ids, with a revision or without; a path is one where it looks the same."""


def revision_of(model: str) -> str:
    """Return the revision that a model of the hub is named with, else ""."""
    return _parts(model)[1]


def identity(model: str) -> str:
    """Return ``developer/model``: the hub's id, or the package for a model of no developer.

    Revisions of a model share its id.
    """
    name, _ = _parts(model)
    if "/" in name:
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return f"kn_bench/{re.sub(r'[^A-Za-z0-9._-]+', '_', plain).strip('._-') or slug(name)}"


def identities(models: Iterable[str]) -> dict[str, str]:
    """Return model -> ``developer/model``; only revisions of one model share theirs."""
    names = list(models)
    without = {name: name.removesuffix(f"@{revision_of(name)}") for name in names}
    called = distinct(without.values(), identity)
    return {name: called[without[name]] for name in names}


def _parts(model: str) -> tuple[str, str]:
    """Return the hub's id and its revision, or the last part of a path."""
    on_hub = None if is_gguf(model) else ON_HUB.fullmatch(model)
    return (on_hub[1], on_hub[2] or "") if on_hub else (Path(model).name, "")


def distinct(names: Iterable[str], short: Callable[[str], str] = slug) -> dict[str, str]:
    """Return name -> what it is called; names that would be called the same get a hash as well.

    What a name is called does not depend on the order of names. Letters that differ only in their
    case count as the same: on some systems they name one file.
    """
    called = {name: short(name) for name in names}
    taken = Counter(text.lower() for text in called.values())
    return {
        name: text if taken[text.lower()] == 1 else f"{text}.{stable_hash(name) & 0xFFFFFFFF:08x}"
        for name, text in called.items()
    }
