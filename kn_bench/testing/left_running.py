"""Threads and processes that a method starts and leaves running: the session ends all the same."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TypeVar

import pytest

from kn_bench.editing.registry import MethodSpec

Started = threading.Thread | BaseProcess
_Kind = TypeVar("_Kind", threading.Thread, BaseProcess)

POOLS = ("concurrent.futures.", "joblib.externals.loky.", "loky.")
"""Modules that end what they have started, as Python ends."""
LIBRARIES = ("torch.", "tqdm.")
"""Modules whose own threads change no weights."""
PATIENCE = 1.0
"""Seconds that all of it is given to end by itself."""


class LeftRunning:
    """What the methods of this process have started, and what of it Python would wait for."""

    def __init__(self) -> None:
        self._started: dict[Started, MethodSpec] = {}
        self._threads: dict[threading.Thread, MethodSpec] = {}

    def threads_of_others(self, method: MethodSpec) -> tuple[str, ...]:
        """Return the names of other methods that a thread is left of, also daemons and pools."""
        names = (each.name for each in self._threads.values())
        return tuple(dict.fromkeys(name for name in names if name != method.name))

    @contextmanager
    def noted(self, method: MethodSpec) -> Iterator[None]:
        """Note what is started within the block.

        A thread becomes a daemon, which Python does not wait for; a pool ends its threads itself.
        """
        process = os.getpid()

        def note(started: Started) -> None:
            if os.getpid() != process:
                return  # of a child, whose threads are its own
            by = sys._getframe(2).f_globals.get("__name__", "")
            if not started.daemon and not by.startswith(POOLS):
                self._started[started] = method
            if isinstance(started, threading.Thread):
                started.daemon = True
                if not by.startswith(LIBRARIES):
                    self._threads[started] = method

        with _before_start(threading.Thread, note), _before_start(BaseProcess, note):
            try:
                yield
            finally:
                self._started = {s: m for s, m in self._started.items() if s.is_alive()}
                self._threads = {t: m for t, m in self._threads.items() if t.is_alive()}

    def end(self, item: pytest.Item) -> None:
        """End the processes that are left, and warn of them and of the threads.

        The warning goes to the report as it is: a filter would make it an error of ``item``.
        """
        ends = time.monotonic() + PATIENCE
        for started, method in self._started.items():
            started.join(max(0.0, ends - time.monotonic()))
            if started.is_alive():
                file, _, line = method.origin.rpartition(":")
                warning = pytest.PytestWarning(_ended(started, method.name))
                message = warnings.WarningMessage(warning, type(warning), file, int(line))
                item.ihook.pytest_warning_recorded.call_historic(
                    kwargs={
                        "warning_message": message,
                        "nodeid": "",
                        "when": "runtest",
                        "location": None,
                    }
                )
        self._started = {}


def _ended(started: Started, method: str) -> str:
    if isinstance(started, threading.Thread):
        return (
            f"{method} left the thread {started.name} running: the session ends without it; have "
            "the method wait for it, or make it a daemon"
        )
    started.kill()
    return (
        f"{method} left the process {started.name} running, and it was killed; have the method "
        "wait for it, or make it a daemon"
    )


@contextmanager
def _before_start(kind: type[_Kind], do: Callable[[_Kind], None]) -> Iterator[None]:
    """Let ``do`` see every thread or process that is started within the block."""
    start = kind.start

    def noting(started: _Kind) -> None:
        do(started)
        start(started)

    kind.start = noting  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        kind.start = start  # type: ignore[method-assign]
