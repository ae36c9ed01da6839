"""The values of the options, read from their texts; argparse reports what is wrong with one."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Literal

from kn_bench.measure.protocols import Protocol, parse_protocol

if TYPE_CHECKING:
    from kn_bench.testing.shards import Shard

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)


def limit(text: str) -> int | Literal["all"]:
    """Read ``--limit``."""
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise _invalid(f"{text!r}: expected a positive integer or 'all'")
    return int(text)


def protocol(text: str) -> Protocol:
    """Read ``--protocol``."""
    try:
        return parse_protocol(text)
    except ValueError as error:
        raise _invalid(str(error)) from None


def count(text: str) -> int:
    """Read a number of things, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise _invalid(f"{text!r}: expected a positive integer")
    return int(text)


def number(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise _invalid(f"{text!r} is no whole number") from None


def whole(text: str) -> int:
    """Read a number of things, maybe none."""
    if not text.isdecimal():
        raise _invalid(f"'{text}': expected 0 or a positive integer")
    return int(text)


def seconds(text: str) -> float:
    """Read a duration."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10**9:
        raise _invalid(f"{text!r}: expected a number of seconds above 0")
    return seconds


def size(text: str) -> int:
    """Read an amount of memory."""
    match = _SIZE.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise _invalid(f"{text!r}: expected a number with K, M, G or T, such as 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index((match[2] or " ").upper()))


def engine(text: str) -> str:
    """Read ``--engine``."""
    if text.partition(":")[0] not in ("pytest", "ray") or text.startswith("pytest:"):
        raise _invalid(f"{text!r}: expected pytest, ray or ray:ADDRESS")
    return text


def shard(text: str) -> Shard:
    """Read ``--shard``."""
    from kn_bench.testing.shards import parse_shard

    try:
        return parse_shard(text)
    except ValueError as error:
        raise _invalid(str(error)) from None


def _invalid(message: str) -> Exception:
    return ArgumentTypeError(message)
