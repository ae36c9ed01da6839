"""One shard of a run as a job: begun, or gone on with where an earlier attempt left it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.results.files import StoreError
from kn_bench.results.manifest import read_manifest
from kn_bench.testing.processes import ending_with_parent, last_words

BAD_INPUT = 4
"""pytest's exit status for a command line that cannot be run: another attempt would end alike."""
PATIENCE = 20.0
"""Seconds that pytest has to close its log when its job is pre-empted."""


class ShardDied(Exception):  # noqa: N818 - an outcome, which the launcher answers with a requeue
    """A shard ended before it was measured; another attempt goes on with it."""


class Outcome(NamedTuple):
    """How a shard ended: pytest's exit status, and its last words where it measured nothing."""

    status: int
    said: str


@dataclass
class ShardJob:
    """What submitit calls on the machine that measures a shard.

    Attributes:
        arguments: pytest's, as the user gave them.
        shard: such as ``2/4``.
        run: name of the shard's run.
        reports: folder of runs, which all machines share.
        folder: where pytest is started.
        log: file that pytest's output is added to.
        environment: variables to set; None removes one.
    """

    arguments: tuple[str, ...]
    shard: str
    run: str
    reports: Path
    folder: Path
    log: Path
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def __call__(self) -> Outcome:
        """Measure the shard, or what is left of it.

        Raises:
            ShardDied: when it ended before it was measured.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            begins = output.tell()
            self._process: Any = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=_changed(os.environ, self.environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=ending_with_parent(),  # else its log stays taken when the job is killed
            )
            status = self._process.wait()
        if is_finished(self.reports, self.run):
            return Outcome(status, "")
        if status == BAD_INPUT:
            said = self.log.read_bytes()[begins:].decode("utf-8", "replace")
            return Outcome(status, last_words(said))
        raise ShardDied(f"pytest ended with status {status} before shard {self.shard} was measured")

    def command(self) -> list[str]:
        """Return the command line of this attempt: ``--resume`` once the run has begun."""
        begun = manifest_of(self.reports, self.run) is not None
        return [
            *(sys.executable, "-m", "pytest"),
            *self.arguments,
            *("--reports", str(self.reports), "--shard", self.shard),
            *("--resume" if begun else "--run", self.run),
        ]

    def checkpoint(self) -> Any:
        """Close the log and return the job to be queued again: submitit's call before the end."""
        import psutil
        from submitit.helpers import DelayedSubmission

        # called by a signal, maybe while Popen waits: its own wait would wait for that for ever
        process = psutil.Process(self._process.pid)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except psutil.TimeoutExpired:
            process.kill()  # the log is whole after each test
        return DelayedSubmission(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_process"}


def manifest_of(reports: Path, run: str) -> Any:
    """Return the manifest of a run, or None where it has not begun."""
    try:
        return read_manifest(reports / "runs" / run)
    except StoreError:
        return None


def is_finished(reports: Path, run: str) -> bool:
    """Whether a run has all its tests and its end."""
    manifest = manifest_of(reports, run)
    return bool(manifest and manifest.finished)


def _changed(environment: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if name not in changes}
    return kept | {name: value for name, value in changes.items() if value is not None}
