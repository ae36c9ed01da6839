"""Processes that end with the one that started them, and messages over a pair of pipes."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import BinaryIO

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_LENGTH = struct.Struct("<Q")


def ending_with_parent() -> Callable[[], None] | None:
    """Return what a new process calls to be killed with its parent; None where none can be."""
    return end_with_parent if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Have this process killed when its parent ends; on Linux only, elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def ending_signals() -> list[int]:
    """Return the signals, besides Ctrl-C's, that would end this process and can be handled here.

    Under nohup SIGHUP is not among them, and in another than the main thread none is.
    """
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    return [
        number
        for number in (getattr(signal, name, None) for name in names)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL
    ]


@contextmanager
def ending_children() -> Iterator[None]:
    """Have this process's children killed first, should a signal end it within the block.

    A worker that has just been started, and finds nobody to report to, prints a traceback.
    """

    def end(number: int, frame: FrameType | None) -> None:
        _kill_children()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ours = ending_signals()
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt:
        _kill_children()
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _kill_children() -> None:
    import psutil

    for child in psutil.Process().children():
        try:
            child.kill()
        except psutil.Error:
            continue  # it has ended by itself


def send(file: BinaryIO, message: bytes) -> None:
    """Write one message.

    Raises:
        OSError: when the other side is gone.
    """
    file.write(_LENGTH.pack(len(message)))
    file.write(message)
    file.flush()


def receive(file: BinaryIO) -> bytes | None:
    """Read one message; None when the other side is gone."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message = file.read(length)
    return message if len(message) == length else None


def last_words(text: str) -> str:
    """Return the last line of pytest's output that says anything, without the word ERROR."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else ""


def raised_within(error: BaseException, package: str) -> bool:
    """Tell whether the code that raised ``error`` is of ``package``."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    name = frames[-1].f_globals.get("__name__", "") if frames else ""
    return name.partition(".")[0] == package
