"""Which exceptions are a method's own failure, and how one is told in a sentence.

A method is somebody else's code, and what it raises is the error of its own cases: also what is no
``Exception``, such as SystemExit or asyncio's CancelledError. What is to end the run passes.
"""

from __future__ import annotations

import sys

NO_REASON = "no reason given"


class PassesMethods(BaseException):
    """What the benchmark itself raises through a method's code; no method's failure."""


class UnitTimeoutError(Exception):
    """A unit took longer than ``--timeout-per-unit`` allows: nothing of it is asked again."""


def is_fault(error: BaseException) -> bool:
    """Return whether ``error`` is a failure of the code that raised it, not the end of the run."""
    if isinstance(error, KeyboardInterrupt | GeneratorExit | PassesMethods):
        return False
    return not isinstance(error, _outcomes())


def _outcomes() -> tuple[type[BaseException], ...]:
    """Return the exceptions by which code skips, fails or ends a test of pytest, where it runs."""
    pytest = sys.modules.get("pytest")
    if pytest is None:
        return ()
    return pytest.skip.Exception, pytest.fail.Exception, pytest.exit.Exception


def told(error: BaseException) -> str:
    """Return the type and the text of ``error``."""
    return f"{type(error).__name__}: {text_of(error)}"


def text_of(error: BaseException) -> str:
    """Return the text of ``error`` as UTF-8 can hold it, also where reading it raises."""
    try:
        return well_formed(str(error))
    except Exception:  # an exception of a method's own
        return "its text cannot be read"


def reason_of(refusal: BaseException) -> str:
    """Return why something is refused: the text of ``refusal``, which may be empty."""
    return text_of(refusal).strip() or NO_REASON


def well_formed(text: str) -> str:
    """Return ``text`` with a question mark in place of each half character (lone surrogate)."""
    return text.encode("utf-8", "replace").decode()
