"""Remember results of a loaded model between passes, within a bound; dropped with the model."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from kn_bench.model.batching import Batcher
from kn_bench.model.weights import Weights

V = TypeVar("V")


class Memo:
    """Results by key, within a bound in bytes; the least recently used are forgotten first.

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
        self._kept: OrderedDict[tuple[str, Any], tuple[Any, int]] = OrderedDict()
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
            if (kept := self._kept.get(pair)) is None:
                missing.append(key)
            else:
                self._kept.move_to_end(pair)
                results[key] = kept[0]
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
        self.n_bytes = 0

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Return nothing remembered and keep nothing while open: hooks change the model."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def _keep(self, key: tuple[str, Any], result: Any) -> None:
        if key in self._kept:
            self.n_bytes -= self._kept.pop(key)[1]
        size = n_bytes(key) + n_bytes(result)
        self._kept[key] = result, size
        self.n_bytes += size
        most = self._batcher.memo_bytes
        while self.n_bytes > most and len(self._kept) > 1:
            self.n_bytes -= self._kept.popitem(last=False)[1][1]


def n_bytes(value: Any) -> int:
    """Return about how many bytes ``value`` takes, all that it holds included.

    A class that will hold more than its fields states its size in an attribute ``n_bytes``.
    """
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    stated = getattr(value, "n_bytes", None)
    if isinstance(stated, int):
        return stated
    if is_dataclass(value) and not isinstance(value, type):
        return 64 + sum(n_bytes(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple | list | set | frozenset):
        if len(value) > 8 and all(isinstance(part, int) for part in value):
            return 36 * len(value)
        return 64 + sum(map(n_bytes, value))
    if isinstance(value, Mapping):
        return 64 + sum(n_bytes(key) + n_bytes(part) for key, part in value.items())
    return sys.getsizeof(value)
