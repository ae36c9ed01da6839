"""What models and methods are called in the paths of an export: each by a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from kn_bench.cases.sampling import slug, stable_hash


def identity(model: str) -> str:
    """Return ``developer/model``: the hub's id, or the package for a model of no developer."""
    parts = [slug(part) for part in model.strip("/").split("/")[-2:]]
    return (
        "/".join(parts)
        if len(parts) == 2 and not Path(model).is_absolute()
        else f"kn_bench/{parts[-1]}"
    )


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
