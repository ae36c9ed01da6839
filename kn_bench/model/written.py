"""Tell files by where they are and when they were written: a path alone may hold another file."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Written(NamedTuple):
    """A file as it was last written; another one, or the same written again, differs."""

    path: str
    size: int
    modified: int
    changed: int


def as_written(path: Path) -> Written:
    """Return what tells a file from others and from later ones; its content is not read."""
    facts = path.stat()
    return Written(str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once until it is written again."""
    return _sha256(as_written(path))


@lru_cache(maxsize=32)
def _sha256(file: Written) -> str:
    with Path(file.path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
