"""What keeps a run going whatever a method does: it hangs, or it ends the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class UnitTimeoutError(Exception):
    """A unit took longer than ``--timeout-per-unit`` allows."""


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
