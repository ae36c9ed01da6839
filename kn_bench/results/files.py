"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from kn_bench.model.rights import with_usual_rights

_WAITING: ContextVar[dict[Path, Path] | None] = ContextVar("waiting", default=None)
"""Files that are written together: path -> where its content waits."""


class StoreError(Exception):
    """A run's folder cannot be used as asked; one sentence says why and what to do."""


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that takes the place of ``path`` at the end, or leaves no trace.

    Within :func:`together` it takes its place when all of them are written.

    Raises:
        StoreError: when the folder cannot be written, or the file was written together already.
    """
    waiting = _WAITING.get()
    if waiting is not None and path.resolve() in waiting:
        raise StoreError(
            f"{path} would be written twice, with two contents: name one output for each, or "
            "give the runs' models and methods other names"
        )
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise unwritable(path, error) from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with_usual_rights(temporary)
        if waiting is None:
            temporary.replace(path)
        else:
            waiting[path.resolve()] = temporary
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def together() -> Iterator[None]:
    """Let all files that are written inside take their places at the end, or none of them.

    One ``together`` within another is part of it.

    Raises:
        StoreError: when a file cannot take its place.
    """
    if _WAITING.get() is not None:
        yield
        return
    waiting: dict[Path, Path] = {}
    token = _WAITING.set(waiting)
    try:
        yield
        for path, temporary in waiting.items():
            try:
                temporary.replace(path)
            except OSError as error:
                raise unwritable(path, error) from None
    finally:
        _WAITING.reset(token)
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as the whole of ``path``, atomically.

    Raises:
        StoreError: when it cannot be written.
    """
    with atomically(path) as file:
        file.write(text.encode())


def check_writable(folder: Path) -> None:
    """Make ``folder`` where it is missing, and find out before long work that it can be written.

    Raises:
        StoreError: when it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: OSError) -> StoreError:
    """Return the sentence for a file that cannot be written."""
    return StoreError(
        f"{path} cannot be written ({error.strerror or error}): make room or give the right to "
        "write there, or name another folder"
    )
