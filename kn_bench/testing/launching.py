"""A run cut into shards, sent to a Slurm queue or to processes of this machine by submitit.

    launch      submits a shard as a job, an array of them on Slurm
    ShardJob    runs `pytest ... --shard 2/64` there, or resumes what a killed attempt left
    watch       yields each shard as it ends; one that died is submitted again

submitit carries its jobs in pickles of its own folder, as every scheduler of Python functions does:
what is in them is :class:`~kn_bench.testing.shard_job.ShardJob`, text and paths.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kn_bench.results.store import RUNS, checked_name
from kn_bench.testing.processes import last_words
from kn_bench.testing.shard_job import (
    BAD_INPUT,
    Outcome,
    ShardJob,
    is_finished,
    manifest_of,
)

EXTRA = "kn-bench launch needs submitit: pip install 'kn_bench[slurm]'"
OWN = ("--shard", "--run", "--resume", "--reports")
"""Options of pytest that the launcher gives."""
OF_THE_WHOLE = ("--baseline", "--save-baseline", "--gate")
"""Options of pytest that speak of a run's scores, which a shard does not have."""
SHORT = {"gpus": "gpus_per_node", "cpus": "cpus_per_task"}
BEGUN = "KN_BENCH_BEGUN"
"""Variable with the folders of the shards that an earlier launch has begun, as JSON."""
SELECTED = "KN_BENCH_SELECTED"
"""Variable with the file that says which tests were asked for when the first of them was begun."""
A_WEEK = 7 * 24 * 60
"""Minutes that a local job may take; a Slurm queue has limits of its own."""


class LaunchError(ValueError):
    """What was asked for cannot be launched; one sentence."""


@dataclass(frozen=True)
class Launch:
    """What is launched.

    Attributes:
        arguments: pytest's.
        run: name of the merged run; its shards are called ``RUN-2-of-4``.
        shards: into how many it is cut.
        reports: folder of runs, which all machines share.
        requeues: how often a shard that died is submitted again.
        at_once: shards that are measured at a time; on Slurm, of the array.
    """

    arguments: tuple[str, ...]
    run: str
    shards: int
    reports: Path
    requeues: int = 3
    at_once: int = 256

    def check(self) -> None:
        """Refuse what could only fail later, on other machines.

        Raises:
            LaunchError: one sentence.
            StoreError: when the run's name is none.
        """
        checked_name(self.run)
        for word in self.arguments:
            option = word.partition("=")[0]
            if option in OWN:
                raise LaunchError(f"{option} is given by the launcher: leave it out after --")
            if option in OF_THE_WHOLE:
                raise LaunchError(
                    f"{option} is for a whole run, and each job measures a shard: compare the "
                    "merged run by kn-bench compare"
                )
        if manifest_of(self.reports, self.run) is not None:
            raise LaunchError(
                f"there is a run {self.run!r} in {self.reports / RUNS}: choose another --run"
            )

    def jobs(self, environment: Mapping[str, str | None] | None = None) -> list[ShardJob]:
        """Return a job for each shard that is not measured yet."""
        folder = Path.cwd()
        return [
            ShardJob(
                self.arguments,
                f"{number}/{self.shards}",
                self.name_of(number),
                self.reports.absolute(),
                folder,
                self.job_folder.absolute() / f"shard-{number}.log",
                environment or {},
            )
            for number in range(1, self.shards + 1)
            if not is_finished(self.reports, self.name_of(number))
        ]

    def name_of(self, number: int) -> str:
        """Return the name of a shard's run."""
        return f"{self.run}-{number}-of-{self.shards}"

    @property
    def folders(self) -> list[Path]:
        """The runs of all shards."""
        return [self.reports / RUNS / self.name_of(n) for n in range(1, self.shards + 1)]

    @property
    def job_folder(self) -> Path:
        """Where submitit keeps its files, and pytest's output goes."""
        return self.reports / "jobs" / self.run


class Ended(NamedTuple):
    """A shard that ended, or an attempt at it."""

    shard: str
    state: Literal["measured", "requeued", "failed"]
    said: str = ""


def refuse_bad_input(launch: Launch) -> None:
    """Let pytest check its arguments here, rather than in every job after an hour in the queue.

    Shards of an earlier launch must have been begun with the same: they are merged with the others.
    Devices are left out: a login node may have none.

    Raises:
        LaunchError: with pytest's own sentence.
    """
    words = list(launch.arguments)
    while "--device" in words:
        del words[(at := words.index("--device")) : at + 2]
    arguments = [word for word in words if not word.startswith("--device=")]
    checked = ("-p", "kn_bench.testing.checking", "-p", "no:cacheprovider", "--shard", "1/1")
    folders = [path for path in launch.folders if manifest_of(launch.reports, path.name)]
    begun = [str(path.absolute()) for path in folders]
    selected = str(launch.job_folder.absolute() / "selected.json")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *checked],
        capture_output=True,
        text=True,
        env={**os.environ, BEGUN: json.dumps(begun), SELECTED: selected},
    )
    if ended.returncode == BAD_INPUT:
        raise LaunchError(last_words(ended.stderr or ended.stdout))


def slurm_options(texts: Sequence[str]) -> dict[str, str | int]:
    """Return submitit's parameters for ``partition=gpu,gpus=1,time=120``.

    Raises:
        LaunchError: for a name that sbatch does not know, or a time that is not in minutes.
    """
    known = sorted({*_slurm_executor()._valid_parameters(), *SHORT} - {"additional_parameters"})
    parameters: dict[str, str | int] = {}
    for part in (part for text in texts for part in text.split(",") if part):
        name, equals, value = part.partition("=")
        if not equals or not value or name not in known:
            raise LaunchError(
                f"--slurm {part!r}: expected NAME=VALUE with a name of {', '.join(known)}"
            )
        if name == "time" and not value.isdecimal():
            raise LaunchError(f"--slurm {part!r}: expected a number of minutes")
        parameters[SHORT.get(name, name)] = int(value) if value.isdecimal() else value
    return parameters


def script(launch: Launch, parameters: Mapping[str, Any], setup: Sequence[str]) -> str:
    """Return the file that would be given to sbatch, and the command of its first job."""
    executor = _slurm(launch, parameters, setup, _slurm_executor(unsent=True))
    jobs = launch.jobs()
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
    first = " ".join(jobs[0].command()) if jobs else "nothing: all shards are measured"
    return f"{text}\n# {len(jobs)} jobs; the first runs\n# {first}\n"


def slurm_jobs(launch: Launch, parameters: Mapping[str, Any], setup: Sequence[str]) -> Jobs:
    """Submit the shards to Slurm, as one array.

    Raises:
        LaunchError: where there is no Slurm.
    """
    executor_class = _slurm_executor()
    if shutil.which("sbatch") is None:
        raise LaunchError(
            "there is no sbatch on this machine: launch from a login node, look at the script by "
            "--dry-run, or measure here by --local"
        )
    executor = _slurm(launch, parameters, setup, executor_class)
    return Jobs(launch, executor, launch.jobs(), at_once=launch.shards)


def local_jobs(launch: Launch) -> Jobs:
    """Prepare the shards as processes of this machine, ``at_once`` of them at a time."""
    submitit = _submitit()
    executor = submitit.LocalExecutor(folder=launch.job_folder)
    executor.update_parameters(timeout_min=A_WEEK)
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}  # submitit hides all
    return Jobs(launch, executor, launch.jobs(visible), at_once=launch.at_once)


class Jobs:
    """Shards on their way.

    Args:
        launch: what is launched.
        executor: of submitit.
        jobs: the shards that are not measured yet.
        at_once: how many are submitted before the first of them has ended.
    """

    def __init__(
        self, launch: Launch, executor: Any, jobs: Sequence[ShardJob], *, at_once: int
    ) -> None:
        self._launch, self._executor, self._at_once = launch, executor, at_once
        self._waiting = deque(jobs)
        self._running: dict[str, tuple[ShardJob, Any]] = {}
        self._deaths: Counter[str] = Counter()

    def watch(self, every: float = 10.0) -> Iterator[Ended]:
        """Yield each attempt as it ends, until none is under way.

        Args:
            every: seconds between two looks at the queue.
        """
        while self._waiting or self._running:
            self._submit()
            ended = [shard for shard, (_, job) in self._running.items() if job.done()]
            for shard in ended:
                yield self._end(*self._running.pop(shard))
            if not ended:
                time.sleep(every)

    def cancel(self) -> None:
        """Take back what is queued or running."""
        for _, job in self._running.values():
            job.cancel()

    def _submit(self) -> None:
        room = self._at_once - len(self._running)
        jobs = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        submitted = self._executor.submit_array(jobs) if jobs else ()
        for job, handle in zip(jobs, submitted, strict=True):
            self._running[job.shard] = (job, handle)

    def _end(self, job: ShardJob, handle: Any) -> Ended:
        """What is to be done about an attempt that ended: a dead one goes to the queue again."""
        error = handle.exception()
        if error is None:
            outcome: Outcome = handle.result()
            if outcome.status != BAD_INPUT:
                return Ended(job.shard, "measured")
            return Ended(job.shard, "failed", outcome.said)
        if is_finished(self._launch.reports, job.run):  # it died after its last word
            return Ended(job.shard, "measured")
        self._deaths[job.shard] += 1
        lines = [line for line in str(error).splitlines() if "ShardDied" in line]
        said = lines[-1].rpartition("ShardDied: ")[2] if lines else "the job was killed"
        if self._deaths[job.shard] > self._launch.requeues:
            return Ended(job.shard, "failed", f"{said} ({job.log})")
        self._waiting.append(job)
        return Ended(job.shard, "requeued", said)


def _slurm(
    launch: Launch, parameters: Mapping[str, Any], setup: Sequence[str], executor_class: Any
) -> Any:
    executor = executor_class(folder=launch.job_folder, max_num_timeout=launch.requeues)
    executor.update_parameters(
        job_name=launch.run,
        array_parallelism=launch.at_once,
        **({"setup": list(setup)} if setup else {}),
        **parameters,
    )
    return executor


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise LaunchError(EXTRA) from None
    return submitit


def _slurm_executor(*, unsent: bool = False) -> Any:
    """Return submitit's class for Slurm; with ``unsent`` one that can be made without Slurm."""
    executor_class: Any = _submitit().SlurmExecutor
    if not unsent:
        return executor_class

    class Unsent(executor_class):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 1

    return Unsent
