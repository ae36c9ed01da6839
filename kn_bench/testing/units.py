"""Each unit is computed once in a run, by whichever process comes first.

The latest units stay in memory; all of them stay in the run's folder until it ends, so that another
worker (``--dist load``, or one that takes over from a crashed worker) reads what was computed.

A unit that was begun and never ended has lost its worker. It is begun once more, for the cause may
lie outside (no memory, a kill); a method that has lost two workers on a model is not run again on
it in this session.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kn_bench.measure.measurement import UnitResult
from kn_bench.results import codec

if TYPE_CHECKING:
    from kn_bench.testing.node_ids import UnitKey

FOLDER = "units"
ATTEMPTS = 2
"""Workers that a method may lose on one model before it is no longer run."""
_BEGUN = ".begun"
IN_MEMORY = 4
"""Units kept: the one whose tests run, and the others of its cases for runs in another order."""


class UnitResults:
    """Results by unit.

    Args:
        folder: where processes leave their results for one another; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._latest: OrderedDict[UnitKey, UnitResult] = OrderedDict()

    def get(
        self,
        unit: UnitKey,
        cases: Iterable[str],
        compute: Callable[[], UnitResult],
        lethal: Callable[[], UnitResult],
    ) -> UnitResult:
        """Return the result of ``unit``, computed if no process has.

        Args:
            unit: the unit.
            cases: ids of its cases: a resumed run cuts what is left into other units.
            compute: makes the result; while it runs, other processes wait for this unit.
            lethal: the result where the method has ended the workers that computed it.
        """
        if unit not in self._latest:
            self.put(unit, self._shared(unit, cases, compute, lethal))
        return self._latest[unit]

    def put(self, unit: UnitKey, result: UnitResult) -> None:
        """Keep the result of ``unit`` in memory, as one of the latest."""
        self._latest[unit] = result
        if self.folder is not None and len(self._latest) > IN_MEMORY:
            self._latest.popitem(last=False)

    def _shared(
        self,
        unit: UnitKey,
        cases: Iterable[str],
        compute: Callable[[], UnitResult],
        lethal: Callable[[], UnitResult],
    ) -> UnitResult:
        if self.folder is None:
            return compute()
        name, method = _digest(unit.model, unit.method, *cases), _digest(unit.model, unit.method)
        path = self.folder / f"{name}.json"
        with _locked(path.with_suffix(".lock")) as shared:
            if not shared:
                return compute()
            result = _read(path)
            if result is None:
                if _lost(self.folder, method, name) >= ATTEMPTS:
                    return lethal()
                with _begun(self.folder / f"{method}-{name}{_BEGUN}"):
                    result = compute()
                _write(path, result)
            return result


def _digest(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def _lost(folder: Path, method: str, own: str) -> int:
    """Count the workers that a method has lost: what they began is locked by nobody.

    Args:
        own: the unit whose lock this process holds.
    """
    lost = 0
    for begun in folder.glob(f"{method}-*{_BEGUN}"):
        unit = begun.stem.partition("-")[2]
        if unit == own or _is_free(folder / f"{unit}.lock"):
            with suppress(OSError):  # it has just ended
                lost += begun.stat().st_size
    return lost


def _is_free(path: Path) -> bool:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True


@contextmanager
def _begun(mark: Path) -> Iterator[None]:
    """Leave a mark, a byte for each time, unless the block ends and the process with it lives."""
    with suppress(OSError), mark.open("ab") as file:  # no room for a mark: it is not counted
        file.write(b"1")
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def forget_attempts(folder: Path) -> None:
    """Begin to count afresh, in a new session: the last may have been killed from outside."""
    for mark in folder.glob(f"*{_BEGUN}"):
        mark.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Forget what processes left for one another."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock at ``path``, which a dying process gives back; yields whether it can be had."""
    from filelock import FileLock

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:  # a full disk or a read-only folder: compute without sharing
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _read(path: Path) -> UnitResult | None:
    try:
        return codec.decode(UnitResult, path.read_text("utf-8"), source=str(path))
    except (OSError, codec.FormatError):  # not there yet, or its writer died
        return None


def _write(path: Path, result: UnitResult) -> None:
    try:
        path.write_text(codec.encode(result), encoding="utf-8")
    except (OSError, ValueError, TypeError, RecursionError):
        # no room, or what JSON has no form for: it is judged where it was measured
        path.unlink(missing_ok=True)
