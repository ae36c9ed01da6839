"""Ray's actors as a pool: units go in, results and deaths come out."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kn_bench.testing.ray.actor import UnitActor

EXTRA = "--engine ray needs Ray: pip install 'kn_bench[ray]'"
AHEAD = 2
"""Units of an actor: it begins the next one while the last one's tests are reported."""
CPUS_OF_A_LARGE_MODEL = 4


class Resources(NamedTuple):
    """What Ray is to keep for one actor."""

    num_cpus: float
    num_gpus: float

    def __str__(self) -> str:
        gpu = f"{self.num_gpus:g} GPU and " if self.num_gpus else ""
        return f"{gpu}{self.num_cpus:g} CPU"


class Answer(NamedTuple):
    """What came of one unit: the worker's message, or why there is none."""

    unit: int
    message: bytes | None
    reason: str = ""


class Gone(NamedTuple):
    """An actor that died: its name, the unit that it was at, those it had not begun, and why."""

    actor: str
    at: int
    waiting: tuple[int, ...]
    reason: str


class Cluster:
    """Ray, joined or started.

    Args:
        address: of a running cluster; "" for the one that ``ray start`` left here, or a new one.

    Raises:
        ValueError: where there is no Ray, or no cluster at ``address``; one sentence.
    """

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise ValueError(EXTRA) from None
        self.ray: Any = ray
        self.ours = not ray.is_initialized()
        if self.ours:
            try:
                ray.init(
                    address or None,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ValueError(
                    f"--engine ray:{address}: no Ray answers there ({reason}); start it by `ray "
                    "start --head`, set RAY_AUTH_MODE=token where it wants a token, or leave the "
                    "address out"
                ) from None

    def room_for(self, resources: Resources) -> int:
        """Return how many actors of ``resources`` the cluster has room for, at least one.

        Raises:
            ValueError: when it has no GPU and one is asked for.
        """
        total = self.ray.cluster_resources()
        room = total.get("CPU", 0) / resources.num_cpus
        if resources.num_gpus:
            if total.get("GPU", 0) < resources.num_gpus:
                raise ValueError("--device cuda: the Ray cluster has no GPU; use --device cpu")
            room = min(room, total["GPU"] / resources.num_gpus)
        return max(1, int(room))

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        if self.ours:
            self.ray.shutdown()


class Pool:
    """Actors that compute units.

    Args:
        cluster: where they live.
        size: how many there are.
        resources: of each.
        hello: name of an actor -> what it is told first.
        environment: variables for its worker.
    """

    def __init__(
        self,
        cluster: Cluster,
        size: int,
        resources: Resources,
        hello: Callable[[str], bytes],
        environment: dict[str, str],
    ) -> None:
        self._ray, self._hello, self._environment = cluster.ray, hello, environment
        self._class = self._ray.remote(UnitActor).options(
            num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0
        )
        self._actors: dict[str, Any] = {}
        self._at: dict[str, deque[tuple[int, Any]]] = {}
        self._started = 0
        for _ in range(size):
            self._start()

    def _start(self) -> None:
        name = f"ray{self._started}"
        self._started += 1
        self._actors[name] = self._class.remote(self._hello(name), self._environment)
        self._at[name] = deque()

    @property
    def hungry(self) -> Sequence[str]:
        """Names of the actors that can take another unit, the idlest first."""
        names = [name for name, units in self._at.items() if len(units) < AHEAD]
        return sorted(names, key=lambda name: len(self._at[name]))

    @property
    def busy(self) -> bool:
        """Whether a unit is under way."""
        return any(self._at.values())

    def give(self, name: str, unit: int, work: bytes) -> None:
        """Queue a unit on an actor."""
        self._at[name].append((unit, self._actors[name].measure.remote(work)))

    def wait(self, seconds: float) -> list[Answer | Gone]:
        """Return what has come of units, after ``seconds`` at the latest; replace who died."""
        firsts = {units[0][1]: name for name, units in self._at.items() if units}
        if not firsts:
            return []
        ready, _ = self._ray.wait(list(firsts), num_returns=1, timeout=seconds)
        return [self._outcome(firsts[reference]) for reference in ready]

    def _outcome(self, name: str) -> Answer | Gone:
        unit, reference = self._at[name].popleft()
        try:
            return Answer(unit, self._ray.get(reference))
        except self._ray.exceptions.RayError as error:  # the actor, its worker or its machine died
            waiting = tuple(unit for unit, _ in self._at.pop(name))
            self._ray.kill(self._actors.pop(name))
            self._start()
            return Gone(name, unit, waiting, _reason(error))

    def close(self) -> None:
        """End all actors, and their workers with them."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._at.clear()


def _reason(error: Exception) -> str:
    """Why an actor died, on one line: what the actor said, or the first of Ray's many."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    told = [line for line in lines if "WorkerEnded" in line]
    return told[-1].partition("WorkerEnded: ")[2] if told else (lines or ["no reason given"])[0]
