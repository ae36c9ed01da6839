"""What keeps a run going whatever a method does: it hangs, it exits, it closes its streams."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

from kn_bench.editing.faults import UnitTimeoutError

STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
DESCRIPTORS = (0, 1, 2)


class ProcessExitError(Exception):
    """A method called ``os._exit``, which would have taken the run with it."""


@contextmanager
def no_exit() -> Iterator[None]:
    """Make ``os._exit`` raise within the block; a child that the block forks may still call it.

    Without workers, the session would end there with the method's own status and no results.

    Raises:
        ProcessExitError: from wherever the block called it.
    """
    leave, process = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process:
            leave(status)
        raise ProcessExitError(f"it called os._exit({status})")

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = leave


@contextmanager
def open_streams() -> Iterator[None]:
    """Keep the standard streams open within the block, and put back those that it replaces.

    What pytest captures passes through them, and so does all that the session shows at its end.
    """
    streams = {name: getattr(sys, name) for name in STREAMS}
    with ExitStack() as kept:
        for number in DESCRIPTORS:
            with suppress(OSError):  # closed already, as where there is no terminal
                kept.callback(_put_back, number, os.dup(number))
        for stream in streams.values():
            _keep_open(stream, kept)
        try:
            yield
        finally:
            for name, stream in streams.items():
                setattr(sys, name, stream)


def _put_back(number: int, copy: int) -> None:
    with suppress(OSError):
        os.dup2(copy, number)
    with suppress(OSError):
        os.close(copy)


def _keep_open(stream: Any, kept: ExitStack) -> None:
    """Let ``close`` and ``detach`` leave a stream, and what it writes to, open until ``kept`` ends.

    A stream that is kept open already, or whose attributes cannot be set, is left as it is.
    """
    inner = getattr(stream, "buffer", None) or getattr(stream, "raw", None)
    own = getattr(stream, "__dict__", None)
    if own is None or "close" in own:
        return
    own["close"], own["detach"] = (lambda: None), (lambda: inner)
    for name in ("close", "detach"):
        kept.callback(own.pop, name, None)
    _keep_open(inner, kept)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise in the main thread when the block takes longer; no limit for None.

    A signal is delivered between two steps of Python: a single call into C that never returns is
    not ended by it. Where signals cannot be had (Windows, another thread) there is no limit.

    Raises:
        UnitTimeoutError: from wherever the block is at that moment.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if seconds is None or not in_main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise UnitTimeoutError(f"it took longer than --timeout-per-unit {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
