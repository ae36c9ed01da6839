"""Who computes where: a pool of devices kept by the controller, threads shared among the workers.

A worker that replaces a crashed one has a new number, so a device chosen by number would soon be
used twice while another idles: the controller leases devices and takes them back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kn_bench.testing.options import Options


class DevicePool:
    """Devices on loan to workers; the least used device goes out first."""

    def __init__(self, devices: Sequence[str]) -> None:
        if not devices:
            raise ValueError("a pool of devices needs at least one device")
        self._users: dict[str, set[str]] = {device: set() for device in devices}

    def lease(self, worker: str) -> str:
        """Return the device for ``worker``, the one it has already if it has one."""
        for device, users in self._users.items():
            if worker in users:
                return device
        device = min(self._users, key=lambda device: len(self._users[device]))
        self._users[device].add(worker)
        return device

    def release(self, worker: str) -> None:
        """Take back what ``worker`` had."""
        for users in self._users.values():
            users.discard(worker)


def expand(devices: Sequence[str]) -> list[str]:
    """Return ``cuda`` as all visible GPUs, everything else as it is, each of them known to exist.

    ``auto`` is all of them for every worker: a model too large for one is spread over them.

    Raises:
        ValueError: for a device that torch does not know, or that is not there.
    """
    expanded: list[str] = []
    for device in devices:
        if device in ("cpu", "auto"):
            expanded.append(device)
        else:
            # imports torch, which a controller can do without
            from kn_bench.model.devices import devices_named

            expanded += devices_named(device)
    return list(dict.fromkeys(expanded))


def settle(workers: int, models: Collection[str]) -> None:
    """Share the cores among ``workers`` processes of which this is one.

    To be called before torch is imported: an OpenMP thread that spins while it waits takes the core
    another worker could use, and OpenMP reads that setting once. ``OMP_NUM_THREADS`` is respected
    where it is a number.

    Embedded models (``models`` is empty, or names no other) get one thread: they are too small for
    a second to help, and the order of their sums does not depend on the number of workers.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _allowed():
        return
    from kn_bench.model import embedded

    small = set(models) <= set(embedded.NAMES)
    import torch

    torch.set_num_threads(1 if small else threads(workers))


def useful(workers: int, options: Options) -> int:
    """Return how many of ``workers`` are worth starting: for small models on a CPU one a core.

    Each imports torch and transformers and loads the models, seconds of work for a core, and has
    one thread; where cores have to be shared, what it measures another one waits for.
    """
    from kn_bench.model import embedded

    small = set(options.models) <= set(embedded.NAMES)
    return at_once(workers, options) if small else workers


def at_once(workers: int, options: Options) -> int:
    """Return how many of ``workers`` compute at a time: on a CPU no more than there are cores."""
    here = options.devices == ("cpu",) and options.engine == "pytest"
    return min(workers, cores()) if here else workers


def threads(workers: int) -> int:
    """Return threads for each of ``workers`` processes, at least one."""
    return max(1, cores() // max(1, workers))


def _allowed() -> int | None:
    """Return the threads that ``OMP_NUM_THREADS`` allows; None where OpenMP would ignore it."""
    words = [word.strip() for word in os.environ.get("OMP_NUM_THREADS", "").split(",")]
    counts = [int(word) if word.isdecimal() else 0 for word in words]
    return counts[0] if all(counts) else None


def sharing(workers: int) -> str:
    """State with how many threads each of ``workers`` processes computes, as they settle it.

    For models that are not embedded. More threads than there are cores OpenMP may refuse.
    """
    allowed = _allowed()
    number = threads(workers) if allowed is None else allowed
    each = f"{number} thread{'s' if number > 1 else ''}"
    if allowed is not None:
        each = f"{'at most ' if number > 1 else ''}{each} (OMP_NUM_THREADS)"
    if workers == 1:
        return f"1 process with {each}; -n auto starts as many as cores and memory allow"
    return f"{workers} workers with {each} each"


def cores() -> int:
    """Return the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def workers_for(weights: int, memory: int | None = None) -> int:
    """Return how many workers suit a model: one a core, where memory has room for them.

    Workers with one thread each do more than one worker with all threads: much of an edit is
    small operations. They share the weights, which are memory-mapped.

    Args:
        weights: bytes of the model's weights.
        memory: bytes that are free; found out when None.
    """
    free = _free_memory() if memory is None else memory
    # a process takes OWN for itself, and for its batches as much as the weights or a share of
    # what all workers take together
    each = OWN + max(weights // 4, 256 << 20)
    return max(1, min(cores(), int(0.8 * free - weights) // each))


OWN = 400 << 20
"""Bytes that a worker takes for itself: torch and transformers; measured 330 MB."""


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
