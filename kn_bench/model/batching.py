"""Work in batches that fit into memory: the one place that decides how much is run at once.

    memory ─┬─ half       one pass: activations, logits, autograd's graph, copies of weights
            ├─ a quarter  answers' log-probabilities, kept until before and after are compared
            └─ a quarter  what a model remembers between passes (``lm.memo``)

Callers say how many bytes one item takes; only this module divides a budget by that. Where a
device runs out of memory all the same, the batch is halved, and so are all later ones.
"""

from __future__ import annotations

import gc
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch

from kn_bench.model.progress import Progress, Silent

T = TypeVar("T")
R = TypeVar("R")

MEMORY = 2 << 30
"""Bytes by default, for a model whose weights take less than that; see :func:`default_memory`."""


class Batcher:
    """Cut the work of one model into batches.

    Args:
        memory: bytes that the model's work may take beside its weights.

    Attributes:
        memory: the same, halved each time that a device ran out of memory.
        progress: where finished batches are reported; nowhere, unless it is set.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self.progress: Progress = Silent()

    @property
    def pass_bytes(self) -> int:
        """Bytes that one pass may take."""
        return self.memory // 2

    @property
    def answer_bytes(self) -> int:
        """Bytes that the log-probabilities of answers may take."""
        return self.memory // 4

    @property
    def memo_bytes(self) -> int:
        """Bytes that may be remembered between passes."""
        return self.memory // 4

    def most(self, item_bytes: float) -> int:
        """Return how many items of ``item_bytes`` each one pass takes; at least one."""
        return max(1, int(self.pass_bytes / item_bytes))

    def batches(
        self,
        items: Sequence[T],
        *,
        item_bytes: Callable[[T], float],
        shape: Callable[[T], Any] = lambda _: 0,
    ) -> Iterator[list[int]]:
        """Yield the indices of items that are run together.

        Args:
            items: in any order.
            item_bytes: what an item takes. Items of one batch are padded to the largest, so that
                the batch takes their number times the most that any of them does.
            shape: items of different shapes never share a batch; shapes can be sorted.
        """
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            groups[shape(item)].append(index)
        for _, group in sorted(groups.items()):
            sizes = {index: item_bytes(items[index]) for index in group}
            batch: list[int] = []
            for index in sorted(group, key=sizes.__getitem__):
                # ascending, so that this item is the batch's largest; the budget may have shrunk
                if batch and len(batch) >= self.most(sizes[index]):
                    yield batch
                    batch = []
                batch.append(index)
            yield batch

    def run(
        self,
        compute: Callable[[list[T]], Sequence[R]],
        items: Sequence[T],
        *,
        item_bytes: Callable[[T], float],
        shape: Callable[[T], Hashable] = lambda _: 0,
        what: str = "",
    ) -> list[R]:
        """Return what ``compute`` gives for every item, in the items' order.

        Args:
            compute: one result for each item of a batch.
            items, item_bytes, shape: see :meth:`batches`.
            what: is being done, for the progress; "" where it is part of something larger.

        Raises:
            torch.OutOfMemoryError: where a single item is too much.
        """
        results: dict[int, R] = {}
        progress = self.progress if what and items else Silent()
        with progress.task(what, len(items)) as advance:
            for batch in self.batches(items, item_bytes=item_bytes, shape=shape):
                parts = self._halving(compute, [items[index] for index in batch])
                results.update(zip(batch, chain.from_iterable(parts), strict=True))
                advance(len(batch))
        return [results[index] for index in range(len(items))]

    def parts(self, compute: Callable[[range], R], n: int, item_bytes: float) -> list[R]:
        """Return what ``compute`` gives for consecutive parts of ``n`` items of one size.

        For arrays: the caller concatenates the results, and nothing is handled item by item.

        Raises:
            torch.OutOfMemoryError: where a single item is too much.
        """
        results: list[R] = []
        start = 0
        while start < n:
            stop = min(n, start + self.most(item_bytes))
            results += self._halving(compute, range(start, stop))
            start = stop
        return results

    def _halving(self, compute: Callable[[Any], R], batch: Any) -> list[R]:
        try:
            return [compute(batch)]
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not out_of_memory(error):
                raise
        # outside of the handler: the traceback holds the tensors of the pass that failed
        self.shrink()
        middle = len(batch) // 2
        return self._halving(compute, batch[:middle]) + self._halving(compute, batch[middle:])

    def shrink(self) -> None:
        """Halve the memory for good, and release what the failed pass has left allocated."""
        self.memory = max(1, self.memory // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that a device, or the host, has no memory left.

    torch has an error of its own for accelerators; its CPU allocator raises a bare RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return bool(re.search(r"CPUAllocator|not enough memory", str(error)))


def default_memory(weight_bytes: int, device: torch.device) -> int:
    """Return the bytes that a model's work takes unless the user says otherwise.

    As much as its weights, since whoever loaded them has that much to spare, and at least 2 GiB; on
    a GPU at least a quarter of its memory. Only speed depends on it.
    """
    least = MEMORY
    if device.type == "cuda":
        least = max(least, torch.cuda.get_device_properties(device).total_memory // 4)
    return max(least, weight_bytes)
