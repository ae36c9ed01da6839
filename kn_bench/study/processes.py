"""Compute the sections of a study in several processes, each with the model and its own thread.

    parent     hands out a section ─┐             ┌─ is told of it, hands out the next one
    process 1    profiles, section 1, .. section 4 ..
    process 2    profiles, section 2, section 3, ..

The sections share little but the attributions, which every process computes for itself. Weights are
memory-mapped, so that the processes share them.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from kn_bench.model.language_model import LanguageModel
from kn_bench.study.material import Material

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """Processes for the sections of a study.

    Attributes:
        number: how many; with one, sections are computed where the study was started.
        load: loads the model in such a process, with its place among them, from 0. It is pickled
            by its name.
    """

    number: int
    load: Callable[[int], LanguageModel]


def in_processes(
    material: Material,
    jobs: Sequence[Job],
    compute: Callable[[Material, Job], Result],
    workers: Workers,
    tell: Callable[[Job], None],
) -> Generator[tuple[Job, Result]]:
    """Yield ``compute(material, job)`` of all jobs, each as it is done.

    Args:
        compute: a function of a module, which other processes import.
        tell: called with each job as it begins.

    Raises:
        ValueError: one sentence, when a process was killed; what ``compute`` raises.
    """
    context = multiprocessing.get_context("spawn")
    number = min(workers.number, len(jobs))
    # by a file: a pipe would hold up each start until the process before has imported torch
    shared = TemporaryDirectory()
    path = Path(shared.name, "material.pickle")
    path.write_bytes(pickle.dumps((material.cases, material.settings)))
    start = (workers.load, path, context.Value("i", 0))
    pool = ProcessPoolExecutor(number, context, initializer=_start, initargs=start)
    waiting = list(reversed(jobs))
    running: dict[Future[Result], Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < number:
                job = waiting.pop()
                tell(job)
                with _deaf_to_interrupts():
                    running[pool.submit(_compute, compute, job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"-n {number}: a process of the study was killed, perhaps for want of memory; start "
            "it again with -n 1, finished sections are kept"
        ) from error
    finally:
        # a section takes minutes, and a study that was interrupted does not wait for it
        if running:
            for process in multiprocessing.active_children():
                process.terminate()
        pool.shutdown(cancel_futures=True)
        shared.cleanup()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: this one ends them, without a traceback each."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


_material: Material | None = None
"""In a process of the pool: what it works on."""


def _start(load: Callable[[int], LanguageModel], path: Path, places: Synchronized[int]) -> None:
    global _material
    with places.get_lock():
        place = places.value
        places.value += 1
    _material = Material(load(place), *pickle.loads(path.read_bytes()))


def _compute(compute: Callable[[Material, Job], Result], job: Job) -> Result:
    assert _material is not None
    return compute(_material, job)
