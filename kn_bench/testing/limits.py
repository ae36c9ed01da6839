"""A limit on the time that a unit may take, for a method that hangs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class UnitTimeoutError(Exception):
    """A unit took longer than ``--timeout-per-unit`` allows."""


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
