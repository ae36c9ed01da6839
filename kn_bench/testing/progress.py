"""A long run shows itself: what every worker is doing, how far the run is, and the time left.

    worker       FileProgress   ── a small file in the run's folder, twice a second at most
    controller   Display        ── reads the files, draws a line on a terminal every second;
                                   without a terminal it writes a line a minute

pytest writes its own letters on the same terminal: the line is drawn to the right of them, and
wiped before pytest goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TextIO

import pytest

from kn_bench.measure.protocols import occasion_of
from kn_bench.model.progress import STEP, Advance
from kn_bench.testing.node_ids import CASES_PER_UNIT, units
from kn_bench.testing.outcomes import SECONDS

if TYPE_CHECKING:
    from kn_bench.testing.node_ids import NodeId

WRITE_EVERY = 0.5
DRAW_EVERY = 1.0
LINE_EVERY = 60.0
QUIET = 0.3
"""Seconds after pytest was told of a test in which nothing is drawn: it writes then."""
NARROWEST = 30
"""Columns that must be free to the right of pytest's letters; else nothing is drawn."""


SETTLED = 10.0
"""Seconds after which a task's share done says how long the rest of it takes."""


class State(NamedTuple):
    """What one process is doing: the innermost task that is open, and how far it is.

    Attributes:
        least: seconds that the outermost task still takes, by its share done; 0 if it cannot be
            told. More may follow it.
        edits: those of its unit that are made, where its steps are told.
    """

    what: str
    done: float
    total: float | None
    least: float = 0.0
    edits: float = 0.0


class FileProgress:
    """A worker's progress, left in a file for the controller.

    Args:
        file: where; None reports to nobody.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._open: list[State] = []
        self._unit = ""
        self._cases, self._edits = 0, 0.0
        self._began = self._written = 0.0

    @contextmanager
    def unit(self, name: str, cases: int = 0) -> Iterator[None]:
        """Name what is computed while open, told at once, and say how many cases it has."""
        self._unit, self._cases, self._edits = name, cases, 0.0
        self._write(now=True)
        try:
            yield
        finally:
            self._unit = ""
            self._write(now=True)

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Advance]:
        if not self._open:
            self._began = time.monotonic()
        self._open.append(State(what, 0.0, total))
        depth = len(self._open) - 1
        self._write()

        def advance(part: float) -> None:
            state = self._open[depth]
            done = state.done + part
            self._open[depth] = state._replace(done=done)
            if what == STEP and total:  # of the edits of equal size again: they make no others
                self._edits = max(self._edits, self._cases * done / total)
            self._write()

        try:
            yield advance
        finally:
            del self._open[depth:]

    def _write(self, *, now: bool = False) -> None:
        if self._file is None or (not now and time.monotonic() - self._written < WRITE_EVERY):
            return
        self._written = time.monotonic()
        inner = self._open[-1] if self._open else State("", 0.0, None)
        around = [f"{s.what} {s.done:.0f}/{s.total:.0f}" for s in self._open[:-1] if s.total]
        what = ": ".join(part for part in (self._unit, *around, inner.what) if part)
        part = self._file.with_suffix(".part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            least = self._least(self._written)
            told = inner._replace(what=what, least=least, edits=self._edits)
            part.write_text(json.dumps(told), encoding="utf-8")
            part.replace(self._file)
        except OSError:  # a full disk: the run goes on unseen
            self._file = None

    def _least(self, now: float) -> float:
        spent = now - self._began
        if not self._open or not self._open[0].total or spent < SETTLED:
            return 0.0
        share = min(1.0, self._open[0].done / self._open[0].total)
        return spent * (1 - share) / share if share else 0.0


def progress_file(folder: Path | None, worker: str) -> Path | None:
    """Return where ``worker`` leaves its progress."""
    return None if folder is None else folder / f"progress-{worker}.json"


def states(folder: Path) -> list[State]:
    """Return what the workers of a run are doing, those that do nothing left out."""
    at_work = []
    for file in sorted(folder.glob("progress-*.json")):
        try:
            state = State(*json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # its writer is at it
        if state.what:
            at_work.append(state)
    return at_work


class Forecast:
    """How long the rest of a run takes, from what its finished units took.

    Args:
        meanings: all tests, by node id.
        workers: processes that compute.
        known: seconds of a case by (method, model), as estimated before the run.
        cases_of: how many cases a test is about: a relation's, a sequence's, else one.
        labels_per_unit: how many labels one worker computes at once.
        shares: what methods have in common with others, by slug: these stay on one worker.

    Attributes:
        counts: cases by (method, model).
        total: of them.
    """

    def __init__(
        self,
        meanings: Mapping[str, NodeId],
        workers: int,
        known: Mapping[tuple[str, str], float] | None = None,
        cases_of: Callable[[NodeId], int] = lambda _: 1,
        labels_per_unit: int = CASES_PER_UNIT,
        shares: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._meanings, self._per_unit, self._cases_of = meanings, labels_per_unit, cases_of
        self.shares = shares
        self._unheard: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.counts: Counter[tuple[str, str]] = Counter()
        for node_id in meanings.values():
            key, subject = (node_id.method, node_id.model), _subject(node_id)
            if subject not in self._unheard[key]:
                self._unheard[key].add(subject)
                self.counts[key] += cases_of(node_id)
        self.total = sum(self.counts.values())
        self._workers = workers
        self._known = dict(known or {})
        self._cases: Counter[tuple[str, str]] = Counter()
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)

    @cached_property
    def units(self) -> Counter[tuple[str, str]]:
        """The number of units by (method, model): one worker computes a unit alone."""
        keys = set(units(self._meanings.values(), labels_per_unit=self._per_unit))
        return Counter((key.method, key.model) for key in keys if key is not None)

    def assume(self, seconds: Mapping[tuple[str, str], float]) -> None:
        """Take the estimated seconds of a case until a method's own are measured."""
        self._known = dict(seconds)

    def heard(self, node_id: NodeId, seconds: float | None) -> None:
        """Take in a finished test; ``seconds`` of its unit come with the unit's first test."""
        key, subject = (node_id.method, node_id.model), _subject(node_id)
        if subject in self._unheard[key]:
            self._unheard[key].remove(subject)
            self._cases[key] += self._cases_of(node_id)
        self._seconds[key] += seconds or 0.0

    @property
    def done(self) -> int:
        """Pairs of a method and a case that are measured."""
        return sum(self._cases.values())

    @property
    def measured(self) -> dict[tuple[str, str], tuple[float, int]]:
        """Seconds spent and cases measured in this run, by (method, model)."""
        return {key: (self._seconds[key], n) for key, n in self._cases.items() if n}

    @property
    def per_case(self) -> dict[tuple[str, str], float]:
        """Seconds a case takes: as measured in this run, else in earlier ones."""
        return self._known | {key: spent / n for key, (spent, n) in self.measured.items()}

    def left(self) -> float | None:
        """Return the seconds that are left; None while a method was never measured."""
        rates = self.per_case
        left = self.counts - self._cases
        if not left.keys() <= rates.keys():
            return None
        work = {key: cases * rates[key] for key, cases in left.items()}
        units = {key: max(1, n * self.units[key] / self.counts[key]) for key, n in left.items()}
        return shared_out(work, units, self._workers, self.shares)


def shared_out(
    work: Mapping[tuple[str, str], float],
    units: Mapping[tuple[str, str], float],
    workers: int,
    shares: Mapping[str, str] = MappingProxyType({}),
) -> float:
    """Return the wall time of ``work`` by so many workers, where one computes a unit alone.

    Args:
        work: seconds by (method, model).
        units: how many units they are made of; work that has none here may be divided at will.
        shares: what methods have in common with others: one worker computes theirs together.
    """
    together: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (method, model), n in units.items():
        together[shares.get(method, method), model] += work.get((method, model), 0.0) / n
    return max(sum(work.values()) / workers, *together.values(), 0.0)


def _subject(node_id: NodeId) -> str:
    """Return what all tests of one label, or of one label in one sequence, have in common."""
    if not node_id.occasion:
        return node_id.label
    return f"{node_id.label}.{occasion_of(node_id.occasion).sequence}"


class Display:
    """Draws where a run is, beside what pytest writes.

    Args:
        folder: where the workers leave their progress.
        forecast: how long the rest takes.
        meanings: all tests, by node id.
        file: a terminal or a log.
    """

    def __init__(
        self, folder: Path, forecast: Forecast, meanings: Mapping[str, NodeId], file: TextIO
    ) -> None:
        self._folder, self._forecast, self._meanings, self._file = folder, forecast, meanings, file
        self._terminal: pytest.TerminalReporter | None = None
        self._drawn = self._made = 0
        self._quiet_until = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._started = time.monotonic()
        self._left: tuple[float | None, float] = None, 0.0
        self._thread = threading.Thread(target=self._run, name="kn_bench progress", daemon=True)

    def start(self, terminal: pytest.TerminalReporter | None) -> None:
        """Begin to draw."""
        self._terminal = terminal
        self._thread.start()

    def line(self, width: int) -> str:
        """Return the line that is drawn: what is done, how far, and how long it still takes."""
        forecast, now = self._forecast, time.monotonic() - self._started
        doing = states(self._folder)
        left = self._ticking(forecast.left(), now)
        if left is not None:  # no estimate is believed against a task's own pace
            left = max([left, *(state.least for state in doing)])
        edits = forecast.done + int(sum(state.edits for state in doing))
        # a unit's tests are heard after it
        self._made = max(self._made, min(edits, forecast.total))
        parts = [f"{self._made}/{forecast.total} edits"]
        parts.append(f"{clock(left)} left" if left is not None else f"{clock(now)} so far")
        for state in doing:
            share = f" {state.done:.0f}/{state.total:.0f}" if state.total else ""
            parts.append(state.what + share)
        return " | ".join(parts)[:width]

    def _ticking(self, left: float | None, now: float) -> float | None:
        """Return ``left`` less the seconds since the forecast last changed.

        It changes when a unit is finished, which may take minutes.
        """
        if left != self._left[0]:
            self._left = left, now
        return None if left is None else max(0.0, left - (now - self._left[1]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self._wipe()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Make room for pytest's letter, and note what is finished."""
        self._wipe()
        node_id = self._meanings.get(report.nodeid)
        if node_id is None:
            return
        seconds = next((value for key, value in report.user_properties if key == SECONDS), None)
        spent = sum(json.loads(str(seconds)).values()) if seconds else None
        if spent is not None or report.when == "teardown":
            self._forecast.heard(node_id, spent)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._stopped.set()
        self._wipe()
        self._file.close()

    def _run(self) -> None:
        on_terminal = self._file.isatty()
        every = DRAW_EVERY if on_terminal else LINE_EVERY
        while not self._stopped.wait(every):
            try:
                self._draw() if on_terminal else self._write_line()
            except (OSError, ValueError):  # the terminal is gone
                return

    def _draw(self) -> None:
        with self._lock:
            if time.monotonic() < self._quiet_until or self._stopped.is_set():
                return
            self._erase()
            used = getattr(getattr(self._terminal, "_tw", None), "width_of_current_line", 0)
            free = shutil.get_terminal_size().columns - used - 3
            if free >= NARROWEST:
                text = "  " + self.line(free)
                self._file.write(text)
                self._file.flush()
                self._drawn = len(text)

    def _write_line(self) -> None:
        with self._lock:
            if not self._stopped.is_set():
                self._file.write(f"\nkn_bench: {self.line(200)}\n")
                self._file.flush()

    def _wipe(self) -> None:
        with self._lock:
            self._quiet_until = time.monotonic() + QUIET
            if not self._file.closed:
                self._erase()

    def _erase(self) -> None:
        if self._drawn:
            self._file.write("\b" * self._drawn + "\x1b[K")
            self._file.flush()
            self._drawn = 0


def clock(seconds: float) -> str:
    """Return ``seconds`` as ``3:20`` or ``1:03:20``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def terminal_file() -> TextIO:
    """Return standard error in a copy that pytest's capturing does not redirect."""
    return os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
