"""Check what a caller handed over, and say in one sentence what was expected in its place."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

HALF_A_CHARACTER = "the text holds half a character (a lone surrogate)"
"""Why a text is left out or refused that JSON can hold and no model can be asked."""

PATH = (str, os.PathLike)
"""What a path may be given as."""


def check_type(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Check that an argument is of one of ``kinds``.

    Raises:
        TypeError: if it is not, naming its type.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name}: expected {expected}, and got {type(value).__name__}")


def whole(name: str, value: object, *, least: int | None = None, of: str = "") -> int:
    """Return a whole number, a NumPy one as Python's own.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that is accepted.
        of: what is counted, and what may be given in place of a number, for the sentence.

    Raises:
        TypeError: for anything else, ``True`` and ``1.0`` among them.
        ValueError: for a smaller one.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} {value!r}: expected a whole number{of}")
    if least is not None and value < least:
        raise ValueError(f"{name} {value}: expected at least {least}")
    return int(value)


def finite(name: str, value: object, *, least: float) -> float:
    """Return a number that is finite and not below ``least``.

    Raises:
        TypeError: for anything but a number.
        ValueError: for another number.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} {value!r}: expected a number")
    number = float(value)
    if not (math.isfinite(number) and number >= least):
        raise ValueError(f"{name} {value}: expected a finite number of at least {least:g}")
    return number


def listed(name: str, values: Iterable[Any], expected: str) -> list[Any]:
    """Return the items of any kind of iterable as a list; a generator can be read but once.

    Raises:
        TypeError: for what has no items, naming its type.
    """
    check_type(name, values, Iterable, expected)
    return list(values)
