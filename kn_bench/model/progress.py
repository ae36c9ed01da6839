"""Report how far long work has come: a callback for lower layers, and what draws it.

A :class:`~kn_bench.model.language_model.LanguageModel` carries the callback as ``progress``; code
that runs the model reports there and does not depend on a terminal::

    with lm.progress.task("writing text", total=15_360) as advance:
        ...
        advance(64)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
Advance = Callable[[float], object]
LINE_EVERY = 60.0
"""Seconds between two lines where there is no terminal."""
STEP = "step"
"""The task whose parts are the steps of a sequence of edits."""


class Progress(Protocol):
    """Receives the progress of long work."""

    def task(self, what: str, total: float | None = None) -> AbstractContextManager[Advance]:
        """Open a piece of work; call what it yields with the size of each finished part.

        Args:
            what: the work in a few words, such as ``locating``.
            total: sum of all parts, where it is known.
        """


class Silent:
    """Reports nothing."""

    def task(self, what: str, total: float | None = None) -> AbstractContextManager[Advance]:
        return nullcontext(_ignore)


def stepwise(progress: Progress, what: str, items: Sequence[T]) -> Iterator[T]:
    """Yield ``items``, and report each as one part of the work when the next is asked for."""
    with progress.task(what, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


def _ignore(part: float) -> None:
    pass


class Bars:
    """A bar for each task on a terminal; elsewhere a line per minute.

    Args:
        file: where to draw; standard error when None.
        position: line of the bars below the cursor; None lets them follow one another.
    """

    def __init__(self, file: TextIO | None = None, position: int | None = None) -> None:
        self._file, self._position = file, position

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Advance]:
        file = self._file or sys.stderr
        if file.isatty():
            with tqdm(
                desc=what,
                total=total,
                file=file,
                leave=False,
                mininterval=0.5,
                position=self._position,
            ) as bar:
                yield bar.update
            return
        yield _Lines(what, total, file).advance


class _Lines:
    """One task in a log: how far it is, once a minute."""

    def __init__(self, what: str, total: float | None, file: TextIO) -> None:
        self._what, self._total, self._file = what, total, file
        self._done = 0.0
        self._started = self._written = time.monotonic()

    def advance(self, part: float) -> None:
        self._done += part
        now = time.monotonic()
        if now - self._written >= LINE_EVERY:
            self._written = now
            self._file.write(meter(self._what, self._done, self._total, now - self._started) + "\n")
            self._file.flush()


def meter(what: str, done: float, total: float | None, seconds: float, width: int = 79) -> str:
    """Return tqdm's line for a piece of work: bar, share, time spent and time left."""
    # tqdm's own word for an unknown total is 0
    full = 0 if total is None else round(max(total, done))
    return tqdm.format_meter(round(done), full, seconds, ncols=width, prefix=what)
