"""How long a run will take, stated before it begins.

    an earlier run like it on this machine    seconds per edit, from a file in the cache
    else a calibration                        a few cases by each built-in method, in this process

The embedded models are not calibrated: their runs are as short as a calibration would be. Methods
of other packages are not either: their code belongs in a worker, which may be lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kn_bench.cases.sampling import slug
from kn_bench.model import embedded
from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.progress import Advance, Bars, Progress
from kn_bench.testing.devices import settle, threads
from kn_bench.testing.progress import Forecast, clock

if TYPE_CHECKING:
    from kn_bench.cases.case import Case
    from kn_bench.editing.registry import MethodSpec
    from kn_bench.editing.settings import Choices
    from kn_bench.measure.engine import Engine
    from kn_bench.testing.models import Models
    from kn_bench.testing.options import Options
    from kn_bench.testing.plan import TestPlan

Pair = tuple[str, str]
"""Slugs of a method and a model, as test ids have them."""

WORTH_SAYING = 60.0
"""Seconds from which on a run's length is stated."""
WORTH_CALIBRATING = 8
"""Edits of a run from which on a few cases are timed first."""
SAMPLE = 8
"""Cases that are asked together in a calibration."""
LOADING = "loading"
ONCE = (LOADING, "writing text for C", "second moment C")
"""Tasks that are done once for a model, however many cases follow. After a calibration text and C
are on disk; every process loads the model."""
KEPT = 200
"""Kinds of runs whose timings are kept."""


class Rates(NamedTuple):
    """What a run's work costs.

    Attributes:
        seconds: of one process for one edit with its measurements.
        once: seconds of what each process waits for once, however many edits follow.
        source: where the figures come from, in a few words.
    """

    seconds: Mapping[Pair, float]
    once: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """What is stated before a run.

    Attributes:
        edits: of each method on each model.
        workers: processes that share them.
    """

    rates: Rates
    edits: Mapping[Pair, int]
    workers: int

    @property
    def unknown(self) -> list[str]:
        """Methods of which no timing is known."""
        return sorted({method for method, model in self.edits} - {m for m, _ in self.rates.seconds})

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        known = self.rates.seconds
        work = sum(n * known[pair] for pair, n in self.edits.items() if pair in known)
        return self.rates.once + work / self.workers

    @property
    def sentence(self) -> str:
        """The estimate, and the methods that most of it is spent on."""
        known = self.rates.seconds
        shares = {p: n * known[p] / self.workers for p, n in self.edits.items() if p in known}
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
    options: Options, fingerprints: Mapping[str, str], methods: Sequence[str], workers: int
) -> str:
    """Return what runs have in common whose edits cost the same on one machine.

    The methods belong to it: what several share, such as located neurons, counts for the first.
    So do sources and relations: facts have more prompts than pairs, and files of one's own few.
    """
    parts: list[Any] = [sorted(fingerprints.values()), sorted(methods), options.sets, options.dtype]
    parts += [list(options.cases), list(options.relations), options.chat_template]
    parts += [[str(p) for p in options.presets], str(options.protocol), list(options.devices)]
    parts += [workers, threads(workers), options.corpus, os.environ.get("OMP_NUM_THREADS", "")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


# -- calibration -----------------------------------------------------------------------------


class OnceClock:
    """A progress that adds up the seconds of what is done once, and passes everything on.

    Attributes:
        seconds: of all of it.
        loading: of them.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.seconds = self.loading = 0.0

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Advance]:
        started = time.perf_counter()
        with self._shown.task(what, total) as advance:
            yield advance
        spent = time.perf_counter() - started
        self.seconds += spent if what in ONCE else 0.0
        self.loading += spent if what == LOADING else 0.0


def calibrate(
    plan: TestPlan,
    specs: Sequence[MethodSpec],
    models: Callable[[Progress], Models],
    choices: Choices,
    *,
    askings: int = 2,
) -> Rates:
    """Take the time of a few cases on each model of ``plan``.

    Asking a case costs the same under every edit, so it is timed once, for some cases together as
    in a run; by each method one fact and one pair are edited, and asked a single probe, which
    tells how its edits compare (those of ``none`` cost nothing to ask).

    Args:
        models: makes the loaded models of this process, given the progress they report to.
        askings: how often a case is put to an edited model: under its edit and the edit's control,
            or, in a sequence, after the edit and at the end.
    """
    from kn_bench.editing.registry import bind

    watch = OnceClock(Bars())
    loaded = models(watch)
    cases = [case for cases in plan.labels.values() for case in cases]
    sample, shares = spread(cases, SAMPLE), task_shares(cases)
    seconds: dict[Pair, float] = {}
    for model_slug, name in plan.models.items():
        if name in embedded.NAMES:
            continue
        try:
            engine = loaded.engine(name)
            timer = _Timer(engine, watch)
            unedited = timer.measuring(_Unedited(), sample)
            nudge = _Nudge(engine)
            per_case = timer.measuring(nudge, sample)
            of_nudge = timer.one_probe(nudge, sample[0])
        except Exception:  # a model that cannot be loaded: its tests will say so
            continue
        for number, spec in enumerate(specs):
            spent = 0.0
            try:
                method = bind(spec, engine.model, choices)
                for case, share in shares:
                    editing, asking = timer.edit(method, case)
                    spent += share * (editing + askings * per_case * min(2.0, asking / of_nudge))
            except Exception:  # its tests will say so
                continue
            # the unedited model is asked once, by whichever method comes first
            seconds[slug(spec.name), model_slug] = spent + (0.0 if number else unedited)
        loaded.forget(name)
    return Rates(seconds, watch.loading, "a short calibration")


class _Unedited:
    """A method that edits nothing."""

    def edit(self, requests: Sequence[object]) -> list[object]:
        from kn_bench.editing.edit import NoEdit

        return [NoEdit() for _ in requests]


class _Nudge:
    """A method whose edits cost nothing to make: tiny updates of rank one in the middle."""

    def __init__(self, engine: Engine) -> None:
        self._lm = engine.model

    def edit(self, requests: Sequence[object]) -> list[object]:
        import torch

        from kn_bench.editing.edit import LowRank, LowRankEdit

        lm = self._lm
        u, v = torch.ones(lm.d_mlp, 1), torch.full((1, lm.d_model), 1e-9)
        update = LowRank(lm.n_layers // 2, u.to(lm.device, lm.dtype), v.to(lm.device, lm.dtype))
        return [LowRankEdit((update,)) for _ in requests]


class _Timer:
    """Takes the time of one engine's work, less what is done once."""

    def __init__(self, engine: Engine, watch: OnceClock) -> None:
        self._engine, self._watch = engine, watch

    def measuring(self, method: object, cases: Sequence[Case]) -> float:
        """Return the seconds a case of putting all probes of ``cases``."""
        return self._run(method, cases)[1] / len(cases)

    def one_probe(self, method: object, case: Case) -> float:
        """Return the seconds of putting one probe of ``case``."""
        return max(1e-6, self.edit(method, case)[1])

    def edit(self, method: object, case: Case) -> tuple[float, float]:
        """Return the seconds of editing ``case``, and of putting one probe."""
        return self._run(method, [replace(case, probes=case.probes[:1])])

    def _run(self, method: object, cases: Sequence[Case]) -> tuple[float, float]:
        before = self._watch.seconds
        result = self._engine.measure("calibration", method, cases)  # type: ignore[arg-type]
        once = self._watch.seconds - before
        return max(0.0, result.edit_seconds - once), result.measure_seconds


def spread(cases: Sequence[Case], n: int) -> list[Case]:
    """Return ``n`` of the cases, or all: evenly spaced in the order of their numbers of probes."""
    ordered = sorted(cases, key=lambda case: (len(case.probes), case.id))
    n = min(n, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * n)] for i in range(n)]


def task_shares(cases: Sequence[Case]) -> list[tuple[Case, float]]:
    """Return the middle case of each task, and the task's share of all cases."""
    by_task: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_task[case.task].append(case)
    return [(spread(group, 1)[0], len(group) / len(cases)) for group in by_task.values()]


# -- in a session ----------------------------------------------------------------------------


def estimated(
    options: Options,
    plan: TestPlan,
    forecast: Forecast,
    kind: str,
    methods: Callable[[], tuple[Sequence[MethodSpec], Choices]],
    workers: int,
) -> Estimate | None:
    """Return the estimate of a run; None where nothing is known and nothing is calibrated.

    Args:
        forecast: of the run; is told the estimated seconds.
        methods: returns those to calibrate with their settings; called where it is needed.
    """
    rates, edits = Timings().read(kind), forecast.counts
    if rates is None:
        small = set(plan.models.values()) <= set(embedded.NAMES)
        if small or sum(edits.values()) < WORTH_CALIBRATING:
            return None
        specs, choices = methods()
        rates = _calibrated(options, plan, specs, choices, workers)
    forecast.assume(rates.seconds)
    return Estimate(rates, edits, workers)


def _calibrated(
    options: Options,
    plan: TestPlan,
    specs: Sequence[MethodSpec],
    choices: Choices,
    workers: int,
) -> Rates:
    from kn_bench.testing.models import Models

    settle(workers, options.models)

    def models(progress: Progress) -> Models:
        return Models(options, options.devices[0], {}, workers=workers, progress=progress)

    return calibrate(plan, specs, models, choices)


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
