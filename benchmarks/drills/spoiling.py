"""Files spoilt at random with their structure in mind: values, keys, lines and bytes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 5.0, -0.5, 1e300, 10**400, math.nan, math.inf, "", "zj",
    "\ud800", "\x1b[31m", "<b>", "|", "../..", [], ["zj"], [None], {}, {"zj": 1}, [[[]]], "P36",
    "1e999",
)  # fmt: skip
TOKENS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"null", b"NaN", b"-", b"1e999",
    b"\x00", b"\xff", b"\\ud800", b"\xef\xbb\xbf", b"[" * 3000, b"0",
)  # fmt: skip


def spoilt(good: bytes, dice: random.Random) -> bytes:
    """Return ``good`` with one to three things wrong with it."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        ways = (_value, _value, _value, _line, _stretch) if good[:1] in b"{[" else (_stretch,)
        good = dice.choice(ways)(good, dice)
    return good


def _value(good: bytes, dice: random.Random) -> bytes:
    """Return one value of one line replaced, removed, swapped, doubled or given a neighbour."""
    lines = good.split(b"\n")
    at = dice.randrange(len(lines))
    try:
        whole = json.loads(lines[at])
        places = list(_places(whole))
    except (ValueError, RecursionError):
        return _stretch(good, dice)
    if not places:
        return _stretch(good, dice)
    *path, last = dice.choice(places)
    parent = whole
    for name in path:
        parent = parent[name]
    how = dice.choice(("replace", "replace", "remove", "swap", "add", "double"))
    if how == "replace":
        parent[last] = dice.choice(VALUES)
    elif how == "remove":
        del parent[last]
    elif how == "swap":
        other = dice.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[last], parent[other] = parent[other], parent[last]
    elif isinstance(parent, list):
        parent.insert(last, dice.choice(VALUES) if how == "add" else parent[last])
    elif how == "add":
        parent[dice.choice(("zj", "", "score", "id"))] = dice.choice(VALUES)
    text = json.dumps(whole, separators=(",", ":"))
    if how == "double" and isinstance(parent, dict):
        member = f"{json.dumps(last)}:{json.dumps(parent[last], separators=(',', ':'))}"
        text = text.replace(member, f"{member},{member}", 1)
    lines[at] = text.encode("utf-8", "replace")
    return b"\n".join(lines)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return all places within a JSON value, as the names and indices that lead there."""
    if isinstance(value, dict | list):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for name, member in members:
            yield (*path, name)
            yield from _places(member, (*path, name))


def _line(good: bytes, dice: random.Random) -> bytes:
    """Return a line removed, doubled, moved, or cut."""
    lines = good.split(b"\n")
    at, to = dice.randrange(len(lines)), dice.randrange(len(lines))
    how = dice.choice(("remove", "double", "move", "cut"))
    if how == "double":
        lines.insert(to, lines[at])
    elif how == "cut":
        lines[at] = lines[at][: dice.randrange(len(lines[at]) + 1)]
    else:
        line = lines.pop(at)
        if how == "move":
            lines.insert(to, line)
    return b"\n".join(lines)


def _stretch(good: bytes, dice: random.Random) -> bytes:
    """Return some bytes removed, doubled, or replaced."""
    start = dice.randrange(len(good) + 1)
    end = min(len(good), start + dice.choice((0, 1, 1, 9, 200, 10**6)))
    middle = dice.choice((b"", good[start:end] * 2, dice.choice(TOKENS), dice.randbytes(3)))
    return good[:start] + middle + good[end:]
