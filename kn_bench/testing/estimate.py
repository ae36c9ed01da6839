"""How long a run will take, stated before it begins.

    an earlier run like it on this machine    seconds per edit, from a file in the cache
    else a calibration                        a few edits by each built-in method, in this process

The embedded models are not calibrated: their runs are as short as a calibration would be. Methods
of other packages are not either: their code belongs in a worker, which may be lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kn_bench.model import embedded
from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.progress import Progress
from kn_bench.testing.calibration import Pair, Rates, calibrate
from kn_bench.testing.devices import at_once, cores, settle, threads
from kn_bench.testing.progress import Forecast, clock, shared_out

if TYPE_CHECKING:
    from kn_bench.cases.case import Case
    from kn_bench.editing.registry import MethodSpec
    from kn_bench.editing.settings import Choices
    from kn_bench.testing.models import Models
    from kn_bench.testing.options import Options

WORTH_SAYING = 60.0
"""Seconds from which on a run's length is stated."""
WORTH_CALIBRATING = 8
"""Edits of a run from which on a few cases are timed first."""
LARGE_WEIGHTS = 50 << 20
"""Bytes of weights from which on a few edits take a minute."""
WORTH_CALIBRATING_LARGE = 3
"""Edits of such a model from which on a few cases are timed first."""
FORMAT = "seconds a case"
"""What the file keeps. It is part of every key, so that an older file's numbers are not read."""
KEPT = 200
"""Kinds of runs whose timings are kept."""


@dataclass(frozen=True)
class Estimate:
    """What is stated before a run.

    Attributes:
        edits: of each method on each model.
        workers: processes that compute at the same time.
        units: how many units a method's edits on a model make; one worker computes a unit alone.
            A pair that is missing may be divided at will.
        shares: what methods have in common with others, by slug: these stay on one worker.
    """

    rates: Rates
    edits: Mapping[Pair, int]
    workers: int
    units: Mapping[Pair, int] = field(default_factory=dict)
    shares: Mapping[str, str] = field(default_factory=dict)

    @property
    def unknown(self) -> list[str]:
        """Methods of which no timing is known."""
        return sorted({method for method, model in self.edits} - {m for m, _ in self.rates.seconds})

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        return self.rates.once + shared_out(self._work, self.units, self.workers, self.shares)

    @property
    def _work(self) -> dict[Pair, float]:
        """Seconds that one worker would take for all edits of each method and model."""
        known = self.rates.seconds
        return {pair: n * known[pair] for pair, n in self.edits.items() if pair in known}

    @property
    def sentence(self) -> str:
        """The estimate, and the methods that most of it is spent on."""
        shares = {pair: seconds / self.workers for pair, seconds in self._work.items()}
        several = len({model for _, model in shares}) > 1
        longest = sorted(shares, key=lambda pair: -shares[pair])[:3]
        parts = ", ".join(
            f"{method}{f' on {model}' if several else ''} {clock(shares[method, model])}"
            for method, model in longest
        )
        text = f"about {clock(self.seconds)} for {sum(self.edits.values())} edits"
        text += f" by {self.workers} workers" if self.workers > 1 else ""
        text += f", by {self.rates.source}: {parts}, ..."
        return text + (f"; without {', '.join(self.unknown)}" if self.unknown else "")


# -- earlier runs ----------------------------------------------------------------------------


class Timings:
    """Seconds per edit of earlier runs, by kind of run; what cannot be read or written is ignored.

    Args:
        file: where they are kept; that of the cache folder when None.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or cache_folder() / "timings.json"

    def read(self, kind: str) -> Rates | None:
        """Return what runs of one kind cost; None where there was none."""
        try:
            entry = self._entries()[kind]
            seconds = {(m, model): float(s) for m, model, s in entry["seconds"]}
            return Rates(seconds, float(entry["once"]), "an earlier run like it")
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def remember(self, kind: str, rates: Rates, edits: int) -> None:
        """Keep what a run cost, unless a much longer one of its kind is kept."""
        entries = self._entries()
        try:
            if entries[kind]["edits"] > 4 * edits:
                return
        except (KeyError, TypeError):
            pass
        entries.pop(kind, None)
        seconds = [[*pair, round(value, 4)] for pair, value in rates.seconds.items()]
        entries[kind] = {"seconds": seconds, "once": round(rates.once, 2), "edits": edits}
        kept = dict(list(entries.items())[-KEPT:])
        fresh = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(kept), encoding="utf-8")
            fresh.replace(self._file)
        except OSError:  # a full disk, or a folder that is read only: the next run calibrates
            with suppress(OSError):
                fresh.unlink()

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            entries = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}


def kind_of_run(
    options: Options,
    fingerprints: Mapping[str, str],
    methods: Sequence[str],
    workers: int,
    selected: Sequence[str] = ("", ""),
) -> str:
    """Return what runs have in common whose edits cost the same on one machine.

    The methods belong to it: what several share, such as located neurons, counts for the first.
    So do sources, relations and selections: facts have more prompts than pairs, and files of one's
    own few.

    Args:
        selected: the expressions after ``-m`` and ``-k``.
    """
    parts: list[Any] = [
        FORMAT,
        sorted(fingerprints.values()),
        sorted(methods),
        options.sets,
        options.dtype,
    ]
    parts += [list(options.cases), list(options.relations), list(selected), options.chat_template]
    parts += [[str(p) for p in options.presets], str(options.protocol), list(options.devices)]
    parts += [workers, threads(workers), options.corpus, os.environ.get("OMP_NUM_THREADS", "")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


# -- in a session ----------------------------------------------------------------------------


def estimated(
    options: Options,
    names: Mapping[str, str],
    cases: Callable[[], list[Case]],
    forecast: Forecast,
    kind: str,
    methods: Callable[[], tuple[Sequence[MethodSpec], Choices]],
    workers: int,
) -> Estimate | None:
    """Return the estimate of a run; None where nothing is known and nothing is calibrated.

    Args:
        names: of the models, by slug.
        cases: returns those that are measured; called where some are calibrated.
        forecast: of the run; is told the estimated seconds.
        methods: returns those to calibrate with their settings; called where it is needed.
    """
    rates, edits = Timings().read(kind), forecast.counts
    if rates is None:
        own = [name for name in names.values() if name not in embedded.NAMES]
        if not own or sum(edits.values()) < _worth_calibrating(own):
            return None
        rates = _calibrated(options, names, cases(), *methods(), workers)
    forecast.assume(rates.seconds)
    return Estimate(rates, edits, at_once(workers, options), forecast.units, forecast.shares)


def _worth_calibrating(names: Sequence[str]) -> int:
    """Return the edits from which on a run of these models is calibrated."""
    from kn_bench.testing.models import weight_bytes

    large = any(weight_bytes(name) >= LARGE_WEIGHTS for name in names)
    return WORTH_CALIBRATING_LARGE if large else WORTH_CALIBRATING


def _calibrated(
    options: Options,
    names: Mapping[str, str],
    cases: Sequence[Case],
    specs: Sequence[MethodSpec],
    choices: Choices,
    workers: int,
) -> Rates:
    from kn_bench.testing.models import Models

    settle(workers, options.models)

    def models(progress: Progress) -> Models:
        return Models(options, options.devices[0], {}, workers=workers, progress=progress)

    processes = min(workers, cores()) if options.devices == ("cpu",) else 1
    protocol = options.protocol
    return calibrate(names, cases, specs, models, choices, protocol=protocol, processes=processes)


class Timekeeper:
    """States the estimate before the first test and what it took at the end; keeps the timings.

    Args:
        estimate: None where there is none.
        kind: of run, see :func:`kind_of_run`.
        forecast: knows what the run's edits took.
    """

    def __init__(self, estimate: Estimate | None, kind: str, forecast: Forecast) -> None:
        self.estimate, self._kind, self._forecast = estimate, kind, forecast
        self._started = time.monotonic()
        self._took = 0.0

    def state(self, terminal: pytest.TerminalReporter | None) -> None:
        """Write the estimate where the run takes long."""
        estimate = self.estimate
        if terminal is not None and estimate is not None and estimate.seconds >= WORTH_SAYING:
            terminal.ensure_newline()
            terminal.write_line(f"kn_bench: {estimate.sentence}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._took = time.monotonic() - self._started
        measured = self._forecast.measured
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not measured:
            return
        counted: defaultdict[Pair, float] = defaultdict(float)
        for pair, (spent, cases) in measured.items():
            counted[pair] = spent / cases
        edits = sum(cases for _, cases in measured.values())
        once = self.estimate.rates.once if self.estimate else 0.0
        Timings().remember(self._kind, Rates(counted, once, ""), edits)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        estimate = self.estimate
        if estimate is not None and max(estimate.seconds, self._took) >= WORTH_SAYING:
            terminalreporter.write_line(
                f"kn_bench: took {clock(self._took)}, estimated {clock(estimate.seconds)}"
            )
