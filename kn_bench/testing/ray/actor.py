"""What Ray starts on some machine: it keeps one worker process and passes messages on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from kn_bench.testing.processes import ending_with_parent, last_words, receive, send


class WorkerEnded(RuntimeError):  # noqa: N818 - an outcome, which the pool answers
    """The worker process is gone."""


class UnitActor:
    """One place of the pool. Its GPU is what Ray left in CUDA_VISIBLE_DEVICES.

    Args:
        hello: what the worker is told first.
        environment: variables for the worker.
    """

    def __init__(self, hello: bytes, environment: dict[str, str]) -> None:
        ours, theirs = os.pipe(), os.pipe()  # to the worker, and back
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kn_bench.testing.ray.worker", str(ours[0]), str(theirs[1])],
            env={**os.environ, **environment},
            pass_fds=(ours[0], theirs[1]),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            preexec_fn=ending_with_parent(),
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self._ask(hello)

    def measure(self, work: bytes) -> bytes:
        """Return what the worker makes of a unit.

        Raises:
            WorkerEnded: when it is gone.
        """
        return self._ask(work)

    def process_ids(self) -> tuple[int, int]:
        """Return the actor's process and the worker's."""
        return os.getpid(), self._process.pid

    def _ask(self, message: bytes) -> bytes:
        try:
            send(self._to, message)
            answer = receive(self._from)
        except OSError:
            answer = None
        if answer is None:
            raise WorkerEnded(f"its process ended with status {self._process.wait()}{self._said()}")
        return answer

    def _said(self) -> str:
        self._output.seek(0)
        said = last_words(self._output.read().decode("utf-8", "replace"))
        return f": {said}" if said else ""
