"""What a run's work costs on this machine, from a few edits that are broken off early.

A method edits some cases of one unit together, as it will in the run, so that what they share (the
patterns of other facts, a subject's key) counts once; in a batch or sequence it makes steps, of as
many cases as a step has. The progress that it reports says what share of the work is done: after
some seconds the rest is reckoned from it and not waited for.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kn_bench.cases.sampling import slug
from kn_bench.editing.faults import PassesMethods, is_fault
from kn_bench.measure.protocols import SINGLE, Protocol, checkpoints
from kn_bench.model import embedded
from kn_bench.model.progress import Advance, Bars, Progress

if TYPE_CHECKING:
    from kn_bench.cases.case import Case
    from kn_bench.editing.registry import MethodSpec
    from kn_bench.editing.settings import Choices
    from kn_bench.measure.engine import Engine
    from kn_bench.model.memo import Memo
    from kn_bench.testing.models import Models

Pair = tuple[str, str]
"""Slugs of a method and a model, as test ids have them."""

ASKED, EDITED = 8, 16
"""Cases that are asked together, and cases of a task that a method edits together."""
STEPS = 4
"""Steps of a batch or sequence that are tried, and cases that are enough in all. One is too few:
neurons are located for each token of an answer, so that edits may differ tenfold."""
PATIENCE = 3.0
"""Seconds after which edits are broken off."""
LOADING = "loading"
TRIED = 0.3
"""Seconds of arithmetic by which it is found how much processes slow one another down."""
ONCE = (LOADING, "writing text for C", "second moment C")
"""Tasks that are done once for a model, however many cases follow. After a calibration text and C
are on disk; every process loads the model."""


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


class BrokenOff(PassesMethods):
    """Ends an edit whose time can be told; no ``except Exception`` of a method stops it.

    Attributes:
        left: seconds that the rest would take.
    """

    def __init__(self, left: float) -> None:
        super().__init__(left)
        self.left = left


@dataclass
class _Open:
    """A task under way; ``once`` seconds of what is done once passed inside it."""

    started: float
    once: float
    total: float
    done: float = 0.0


class Stopwatch:
    """A progress that times what is done once, can break work off, and passes everything on.

    Attributes:
        once: seconds of all that is done once.
        loading: seconds of them.
    """

    def __init__(self, shown: Progress, patience: float = PATIENCE) -> None:
        self._shown, self._patience = shown, patience
        self._open: list[_Open] = []
        self._breaks = False
        self.once = self.loading = 0.0

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Advance]:
        started = time.perf_counter()
        countable = bool(total) and what not in ONCE
        with self._shown.task(what, total) as shown:
            if countable:
                self._open.append(_Open(started, self.once, total or 1.0))
                depth = len(self._open) - 1

            def advance(part: float) -> None:
                shown(part)
                if countable:
                    self._open[depth].done += part
                    self._check()

            try:
                yield advance
            finally:
                if countable:
                    del self._open[depth:]
                spent = time.perf_counter() - started
                self.once += spent if what in ONCE else 0.0
                self.loading += spent if what == LOADING else 0.0

    def _check(self) -> None:
        """Break off where the outermost task has run for long and its share done is known."""
        outer = self._open[0]
        spent = time.perf_counter() - outer.started - (self.once - outer.once)
        share = 0.0
        for task in reversed(self._open):  # an inner task is a part of one item of the outer one
            share = min(1.0, (task.done + share) / task.total)
        if self._breaks and spent > self._patience and share > 0:
            raise BrokenOff(spent * (1 - share) / share)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long ``work`` takes or would take, without what is done once."""
        started, once, left = time.perf_counter(), self.once, 0.0
        self._breaks = True
        try:
            work()
        except BrokenOff as broken:
            left = broken.left
        finally:
            self._breaks = False
            self._open.clear()
        spent = time.perf_counter() - started - (self.once - once)
        return max(0.0, spent) + left


def calibrate(
    names: Mapping[str, str],
    cases: Sequence[Case],
    specs: Sequence[MethodSpec],
    models: Callable[[Progress], Models],
    choices: Choices,
    *,
    protocol: Protocol = SINGLE,
    processes: int = 1,
) -> Rates:
    """Take the time of a few cases on each model.

    Asking a case costs the same under every edit that changes rows, so it is timed once.

    Args:
        names: of the models, by slug.
        cases: those that the run measures.
        models: makes the loaded models of this process, given the progress they report to.
        protocol: of the run.
        processes: how many compute at the same time in the run, on cores of one machine.
    """
    watch = Stopwatch(Bars())
    loaded = models(watch)
    seconds: dict[Pair, float] = {}
    for model_slug, name in names.items():
        if name in embedded.NAMES:
            continue
        try:
            timer = _Timer(loaded.engine(name), watch, cases, protocol)
        except Exception:  # a model that cannot be loaded: its tests will say so
            continue
        for number, spec in enumerate(specs):
            try:
                spent = timer.seconds(spec, choices)
            except BaseException as error:  # its tests will say so
                if not is_fault(error):
                    raise
                continue
            # the unedited model is asked once, by whichever method comes first
            seconds[slug(spec.name), model_slug] = spent + (0.0 if number else timer.unedited)
        loaded.forget(name)
    slower = slowdown(processes) if seconds else 1.0
    return Rates(
        {pair: slower * spent for pair, spent in seconds.items()},
        watch.loading,
        "a short calibration",
    )


def slowdown(processes: int) -> float:
    """Return how many times as long arithmetic takes while ``processes`` compute, at least 1.

    Cores share caches, memory and their clock, and two cores of a virtual machine may be threads of
    one. A calibration computes alone, the workers of a run do not.
    """
    if processes < 2:
        return 1.0
    alone, together = _products(1), _products(processes)
    return max(1.0, alone / together)


def _products(processes: int) -> float:
    """Return how many matrix products one process makes while so many of them compute."""
    import torch

    threads = torch.get_num_threads()
    begin = threading.Barrier(processes)

    def count(_: int) -> int:
        torch.set_num_threads(threads)  # each thread of Python has its own number of them
        a, b = torch.ones(256, 768), torch.ones(768, 768)
        done = 0
        begin.wait()
        until = time.perf_counter() + TRIED
        while time.perf_counter() < until:
            torch.mm(a, b)  # without the interpreter's lock
            done += 1
        return done

    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(count, range(processes))) / processes


def count_once(memo: Memo) -> None:
    """Have ``memo`` treat what was broken off as remembered: in a run the next method finds it."""
    reckoned: set[Any] = set()
    get_many = memo.get_many

    def counting(
        keys: Iterable[Any], make: Callable[[list[Any]], Sequence[Any]], *, original: bool = False
    ) -> dict[Any, Any]:
        def remade(missing: list[Any]) -> Sequence[Any]:
            new = [key for key in missing if key not in reckoned]
            try:
                results = make(new) if new else ()
            except BrokenOff:
                reckoned.update(new)
                raise
            if len(new) < len(missing):  # the rest has no results, so that the edit ends here
                raise BrokenOff(0.0)
            return results

        return get_many(keys, remade, original=original)

    memo.get_many = counting  # type: ignore[method-assign]


class _Timer:
    """Takes the time of one engine's work, less what is done once.

    Attributes:
        unedited: seconds of asking the unedited model one case.
    """

    def __init__(
        self, engine: Engine, watch: Stopwatch, cases: Sequence[Case], protocol: Protocol
    ) -> None:
        from kn_bench.measure.known import Unedited

        self._engine, self._watch, self._protocol = engine, watch, protocol
        if protocol.name != "sequence":  # in one each method has a model of its own
            count_once(engine.model.memo)
        self._together = EDITED if protocol == SINGLE else min(protocol.per_step, EDITED)
        tried = self._together if protocol == SINGLE else self._together * STEPS
        self._samples = task_samples(cases, tried)
        asked = spread(cases, ASKED)
        self.unedited = self._asking(Unedited(), asked)
        self._per_case = self._asking(_Nudge(engine), asked)
        self._looks = self._looking(cases) if protocol.name == "sequence" else 0.0

    def seconds(self, spec: MethodSpec, choices: Choices) -> float:
        """Return the seconds of an edit and of asking its case, the mean over all cases.

        A case is put to the model under its edit and the edit's control, as often as it is asked.
        """
        from kn_bench.editing.registry import bind

        method = bind(spec, self._engine.model, choices)
        askings = 2 * len(self._protocol.asked)
        seconds = self._looks
        for cases, share in self._samples:
            editing, asked = self._editing(method, cases)
            seconds += share * (editing + askings * asked * self._per_case)
        return seconds

    def _editing(self, method: Any, cases: Sequence[Case]) -> tuple[float, float]:
        """Return the seconds an edit of ``cases``, and what share of them is then asked.

        They are edited together as the engine has it done. The steps of a sequence share nothing,
        since the model is another one at each; those to which the method is not applicable are left
        out.
        """
        from kn_bench.editing.surroundings import own_random

        kept = [encoded.case for encoded in self._engine.encode(cases, {})]
        seconds = changed = 0.0
        timed = 0
        for first in range(0, len(kept), self._together):
            step = kept[first : first + self._together]
            asked: float | None = 1.0  # also where the edit is broken off

            def edit(step: list[Case] = step) -> None:
                nonlocal asked
                asked = self._edited(method, step)

            if self._protocol.name == "sequence":
                self._engine.model.memo.clear()
            with own_random(self._engine.seed):
                spent = self._watch.seconds(edit)
            self._engine.put_back()
            if asked is not None:
                seconds, changed = seconds + spent, changed + asked * len(step)
                timed += len(step)
            if timed >= STEPS:
                break
        return (seconds / timed, changed / timed) if timed else (0.0, 0.0)

    def _edited(self, method: Any, cases: Sequence[Case]) -> float | None:
        """Edit ``cases`` together, and return what share of them an edit changes.

        Under no edit the answers are the unedited model's; None where the method is not applicable.
        """
        from kn_bench.editing.edit import NoEdit, NotApplicable
        from kn_bench.editing.method import begin, edit_cases, edit_step, kind_of

        try:
            if self._protocol != SINGLE and kind_of(method) != "apart":
                edit_step(method, [case.request for case in cases], begin(method))
                return 1.0
            edits = edit_cases(method, cases)
        except NotApplicable:
            return None
        if all(isinstance(edit, NotApplicable) for edit in edits):
            return None
        return sum(not isinstance(edit, NotApplicable | NoEdit) for edit in edits) / len(edits)

    def _looking(self, cases: Sequence[Case]) -> float:
        """Return the seconds that an edit's share of a sequence's checkpoints takes."""
        from kn_bench.measure.ability import Ability

        ability = Ability(self._engine, cases[: self._protocol.edits])
        started = time.perf_counter()
        ability.look()
        looks = 1 + sum(1 for _ in checkpoints(self._protocol.steps))
        return looks * (time.perf_counter() - started) / self._protocol.edits

    def _asking(self, method: object, cases: Sequence[Case]) -> float:
        """Return the seconds a case of putting all probes of ``cases``."""
        result = self._engine.measure("calibration", method, cases)  # type: ignore[arg-type]
        return result.measure_seconds / len(cases)


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


def spread(cases: Sequence[Case], n: int) -> list[Case]:
    """Return ``n`` of the cases, or all: evenly spaced in the order of their numbers of probes."""
    ordered = sorted(cases, key=lambda case: (len(case.probes), case.id))
    n = min(n, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * n)] for i in range(n)]


def task_samples(cases: Sequence[Case], n: int) -> list[tuple[list[Case], float]]:
    """Return up to ``n`` cases of each task, and the task's share of all cases."""
    by_task: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_task[case.task].append(case)
    return [(spread(group, n), len(group) / len(cases)) for group in by_task.values()]
