"""Each unit is computed once in a run, by whichever process comes first.

The latest units stay in memory; all of them stay in the run's folder until it ends, so that another
worker (``--dist load``, or one that takes over from a crashed worker) reads what was computed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kn_bench.measure.measurement import UnitResult
from kn_bench.results import codec

if TYPE_CHECKING:
    from kn_bench.testing.node_ids import UnitKey

FOLDER = "units"
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
        self, unit: UnitKey, cases: Iterable[str], compute: Callable[[], UnitResult]
    ) -> UnitResult:
        """The result of ``unit``, computed if no process has.

        Args:
            unit: the unit.
            cases: ids of its cases: a resumed run cuts what is left into other units.
            compute: makes the result; while it runs, other processes wait for this unit.
        """
        if unit not in self._latest:
            self._latest[unit] = self._shared(unit, cases, compute)
            if self.folder is not None and len(self._latest) > IN_MEMORY:
                self._latest.popitem(last=False)
        return self._latest[unit]

    def _shared(
        self, unit: UnitKey, cases: Iterable[str], compute: Callable[[], UnitResult]
    ) -> UnitResult:
        if self.folder is None:
            return compute()
        content = "|".join([unit.model, unit.method, *cases])
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        path = self.folder / f"{name}.json"
        with _locked(path.with_suffix(".lock")) as shared:
            found = _read(path) if shared else None
            if found is None:
                found = compute()
                if shared:
                    _write(path, found)
            return found


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
    except (OSError, ValueError):  # no room, or a NaN: it is judged where it was measured
        path.unlink(missing_ok=True)
