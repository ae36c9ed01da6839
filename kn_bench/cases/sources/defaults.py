"""Cases for a model when nobody named any."""

from __future__ import annotations

from collections.abc import Sequence

from kn_bench.cases.sources import SOURCES
from kn_bench.model import embedded, hub

REAL = ("pararel", "blimp")
FROM_HUB = ("blimp",)


def default_specs(models: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the sources for ``models``, and a sentence where they are not the usual ones.

    The embedded cases belong to the embedded models: many are about invented people. A model of
    the user's own is asked PARAREL and BLiMP, from the cache or the hub; where neither can be had,
    the part of the embedded cases that is about the real world.
    """
    if set(models) <= set(embedded.NAMES):
        return ("embedded",), ""
    available = tuple(name for name in REAL if _available(name))
    if available == REAL:
        return REAL, ""
    missing = " and ".join(name for name in REAL if name not in available)
    used = " and ".join(available) or "the real-world part of the embedded facts and pairs"
    folders = " ".join(f"--cases {name}=FOLDER" for name in REAL if name not in available)
    return (
        available or ("real-world",),
        f"cases: {used}, since {missing} can be had from neither cache nor hub: give {folders}",
    )


def _available(name: str) -> bool:
    source = SOURCES[name]
    if source.in_cache():
        return True
    if hub.is_offline() or (name in FROM_HUB and not hub.is_reachable()):
        return False
    try:
        source.load(limit=1)  # fetches what is missing
    except ValueError:
        return False
    return True
