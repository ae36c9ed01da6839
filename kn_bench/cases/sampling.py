"""Names and draws that are the same in every process: slugs, hashes, seeded draws.

Python's own ``hash`` of a string differs from process to process, and a draw from a ``set`` with
it; nothing here depends on either, nor on which other cases a run selects.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from math import gcd
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


def stable_hash(*parts: str | int) -> int:
    """Return 64 bits that depend on the parts' values and order alone."""
    mixed = len(parts)
    for part in parts:
        bits = part if isinstance(part, int) else _bits(part)
        # the multiply-and-fold step of common 64-bit mixers: each part stirs all bits
        mixed = (mixed ^ bits) * 0x9E3779B97F4A7C15 & _MASK
        mixed ^= mixed >> 29
    return mixed * 0xBF58476D1CE4E5B9 & _MASK ^ mixed >> 32


@lru_cache(maxsize=4096)
def _bits(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def slug(text: str) -> str:
    """Return ``text`` in the letters, digits, ``_`` and ``.`` of case and test ids; never empty.

    ``rome-no-c`` becomes ``rome_no_c``: in test ids '-' separates.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9.]+", "_", plain).strip("_.")
    return words or f"h{stable_hash(text) & 0xFFFFFF:06x}"


def unique_slugs(names: Sequence[tuple[str, str]]) -> list[str]:
    """Return one slug for each (name, detail), told apart where they collide.

    Names that share a slug get their detail's slug as a suffix, and a hash where that is not
    enough: what an entry is called does not depend on its place in the list.
    """
    plain = [slug(name) for name, _ in names]
    taken = Counter(plain)
    longer = [
        p if taken[p] == 1 else f"{p}.{slug(d)}" for p, (_, d) in zip(plain, names, strict=True)
    ]
    twice = Counter(longer)
    return [
        s if twice[s] == 1 else f"{s}.{stable_hash(*name) & 0xFFFFFFFF:08x}"
        for s, name in zip(longer, names, strict=True)
    ]


def shuffled(items: Sequence[T], *key: str | int) -> Iterator[T]:
    """Yield ``items`` in an order drawn by a hash of ``key``; lazy: a draw of two costs two."""
    n = len(items)
    if n == 0:
        return
    drawn = stable_hash(*key)
    at, step = drawn % n, 1 + (drawn >> 32) % n
    while gcd(step, n) != 1:
        step += 1
    for _ in range(n):
        yield items[at]
        at = (at + step) % n


def draw(
    items: Sequence[T], k: int, *key: str | int, where: Callable[[T], bool] | None = None
) -> list[T]:
    """Return the first ``k`` items with ``where`` in the order drawn by ``key``."""
    if k <= 0:
        return []
    drawn = shuffled(items, *key)
    return list(islice(drawn if where is None else filter(where, drawn), k))


def limited(ids: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Return indices of ``limit`` ids drawn by a hash of each, in order of place; all for None.

    A larger limit contains every smaller one.
    """
    if limit is None or limit >= len(ids):
        return list(range(len(ids)))
    return sorted(sorted(range(len(ids)), key=lambda i: stable_hash(seed, ids[i]))[:limit])
