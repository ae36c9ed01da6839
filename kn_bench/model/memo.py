"""Remember results of a loaded model between passes, within a bound; dropped with the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from kn_bench.model.batching import Batcher
from kn_bench.model.weights import Weights

V = TypeVar("V")

ROOM = 0.9
"""Results are forgotten down to this share of the bound, so that the next one does not pass it."""


@dataclass(slots=True)
class _Entry:
    """A result with its size; ``stated`` is the size it states itself, 0 if it states none."""

    result: Any
    n_bytes: int
    stated: int
    worth: float


class Memo:
    """Results by key, within a bound in bytes.

    The least recently used are forgotten first, and of those large ones before small ones (Cao and
    Irani 1997, GreedyDual-Size): one matrix takes the room of a thousand optimised vectors, each
    of which takes as long to make again.

    A key begins with the name of the result and holds all that it depends on besides the weights.
    Results belong to the weights that they were computed with: an edit in place, or a load, hides
    them, and undoing the edit shows them again. While hooks change the model without changing a
    weight, nothing is returned and nothing is kept.

    Args:
        batcher: knows the bound in bytes; the latest result is kept even where it alone is larger.
        weights: names the weights as they are now.
    """

    def __init__(self, batcher: Batcher, weights: Weights) -> None:
        self._batcher = batcher
        self._weights = weights
        self._kept: dict[tuple[str, Any], _Entry] = {}
        self._floor = 0.0  # the worth of what was forgotten last
        self._suspended = 0
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], V], *, original: bool = False) -> V:
        """Return the result for ``key``, computed if it is not remembered.

        Args:
            original: whether the result is that of the model as it was loaded, whatever its weights
                hold now; ``make`` then puts these back while it computes.
        """
        result: V = self.get_many([key], lambda _: [make()], original=original)[key]
        return result

    def get_many(
        self,
        keys: Iterable[Hashable],
        make: Callable[[list[Any]], Sequence[Any]],
        *,
        original: bool = False,
    ) -> dict[Any, Any]:
        """Return the results for all ``keys``; those not remembered are computed in one call.

        Args:
            make: computes one result for each of the keys that it is given.
            original: see :meth:`get`.
        """
        wanted = dict.fromkeys(keys)
        if self._suspended:
            missing = list(wanted)
            return dict(zip(missing, make(missing) if missing else (), strict=True))
        weights = "" if original else self._weights.now()
        results = {}
        missing = []
        for key in wanted:
            pair = weights, key
            if pair in self._kept:
                results[key] = self._used(pair)
            else:
                missing.append(key)
        if missing:
            for key, result in zip(missing, make(missing), strict=True):
                results[key] = result
                self._keep((weights, key), result)
        return results

    def keys(self, name: str) -> list[Any]:
        """Return the keys under ``name`` of what is remembered for the weights as they are."""
        weights = self._weights.now()
        return [key for made_from, key in self._kept if made_from == weights and key[0] == name]

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._floor = 0.0
        self.n_bytes = 0

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Return nothing remembered and keep nothing while open: hooks change the model."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def _used(self, pair: tuple[str, Any]) -> Any:
        """Return a result that is remembered; it may have grown since it was last used."""
        entry = self._kept[pair] = self._kept.pop(pair)  # last: of equals the oldest goes first
        if entry.stated:
            grown = _stated(entry.result) - entry.stated
            entry.stated += grown
            entry.n_bytes += grown
            self.n_bytes += grown
        self._rate(pair)
        return entry.result

    def _keep(self, pair: tuple[str, Any], result: Any) -> None:
        if pair in self._kept:
            self.n_bytes -= self._kept.pop(pair).n_bytes
        size = n_bytes(pair) + n_bytes(result)
        self._kept[pair] = _Entry(result, size, _stated(result), 0.0)
        self.n_bytes += size
        self._rate(pair)

    def _rate(self, latest: tuple[str, Any]) -> None:
        """Forget what is worth least where the bound is passed, and rate what was used last."""
        most = self._batcher.memo_bytes
        if self.n_bytes > most:
            others = [pair for pair in self._kept if pair != latest]
            for pair in sorted(others, key=lambda pair: self._kept[pair].worth):
                forgotten = self._kept.pop(pair)
                self.n_bytes -= forgotten.n_bytes
                self._floor = forgotten.worth
                if self.n_bytes <= ROOM * most:
                    break
        entry = self._kept[latest]
        entry.worth = self._floor + 1 / max(1, entry.n_bytes)


def _stated(result: Any) -> int:
    """Return the size that a result itself states, 0 where it states none."""
    stated = getattr(result, "n_bytes", None)
    return stated if isinstance(stated, int) else 0


def n_bytes(value: Any) -> int:
    """Return about how many bytes ``value`` takes, all that it holds included.

    A class that comes to hold more than its fields states its size in an attribute ``n_bytes``.
    """
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if stated := _stated(value):
        return stated
    if is_dataclass(value) and not isinstance(value, type):
        names = getattr(value, "__dict__", None) or [field.name for field in fields(value)]
        return 64 + sum(n_bytes(getattr(value, name)) for name in names)  # with what it has cached
    if isinstance(value, tuple | list | set | frozenset):
        if len(value) > 8 and all(isinstance(part, int) for part in value):
            return 36 * len(value)
        return 64 + sum(map(n_bytes, value))
    if isinstance(value, Mapping):
        return 64 + sum(n_bytes(key) + n_bytes(part) for key, part in value.items())
    return sys.getsizeof(value)
