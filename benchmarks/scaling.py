"""One worker to 4,096: how long a run takes, how well the workers are used, and what it costs.

    python benchmarks/scaling.py                 # the simulation and the costs
    python benchmarks/scaling.py --check         # against real runs with 1, 2 and 4 workers
    python benchmarks/scaling.py --figure scaling.png

Simulated are units (32 cases of a method on a model), as they are handed out: shards get theirs
before the run (``--shard``, Slurm), a pool as workers become free (``-n``, ``--engine ray``).
Stragglers and failures are drawn with a seed; a shard that fails waits in the queue and resumes its
unit, a pool gives the unit to another worker.

The seconds of a unit come from arithmetic: what has to be computed, at the rate of an accelerator.
They are no measurement on a 7B model, and the assumptions below are what to change for another
machine. What --check holds against reality is the simulation: units that sleep for known seconds,
handed out by the real scheduler to real processes.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from kn_bench.testing.devices import cores
from kn_bench.testing.node_ids import CASES_PER_LARGE_UNIT

CASES_A_UNIT = 32
PARAREL = 26_586
"""Cases of PARAREL: the 93,586 that are read with BLiMP, less BLiMP's 67,000 pairs."""
WORKERS = (1, 4, 16, 64, 256, 1024, 4096)
TOYS = Path(__file__).resolve().parents[1] / "tests" / "toy_bench.py"


@dataclass(frozen=True)
class Machine:
    """Assumptions on one worker.

    Attributes:
        flops: multiply-adds a second that a worker reaches, times two: bfloat16 on one H100 at a
            third of its 990 TFLOP/s for 7B; a 70B model is spread over four, at the same share.
        bytes_a_second: at which weights are read from a shared disk.
        dollars_an_hour: of one worker.
        failures_an_hour: of one worker: pre-emptions and crashes together.
        queue: seconds until a job that failed runs again.
        straggling: spread (of the logarithm) of the seconds of equal units.
        slow: share of the units that take three times as long.
        starting: seconds of a process before it loads a model: imports and collection.
    """

    flops: float = 330e12
    bytes_a_second: float = 2e9
    dollars_an_hour: float = 2.5
    failures_an_hour: float = 0.02
    queue: float = 300.0
    straggling: float = 0.15
    slow: float = 0.01
    starting: float = 40.0


@dataclass(frozen=True)
class Method:
    """What a method has to compute for one case, in tokens that pass through the whole model.

    ROME: 20 steps of 10 contexts of 15 tokens, forward and backward (three passes), from the edited
    layer on (half of the model). Fine-tuning: 25 steps of one prompt, all of the model.
    """

    name: str
    tokens: float


METHODS = (
    Method("none", 0),
    Method("rome", 20 * 10 * 15 * 3 / 2),
    Method("memit", 20 * 10 * 15 * 3 / 2),
    Method("ft", 25 * 12 * 3),
)
MEASUREMENTS_A_CASE = 10
"""Probes of a case over the six criteria (938,000 probes of 93,586 cases of PARAREL and BLiMP)."""
TOKENS_A_MEASUREMENT = 12 + 10 * 12 / 8
"""A prompt, and ten generated tokens for one probe in eight, all of them after the edit."""


def unit_seconds(method: Method, parameters: float, machine: Machine) -> float:
    """Return the seconds of one unit: two operations a parameter and token."""
    tokens = method.tokens + MEASUREMENTS_A_CASE * TOKENS_A_MEASUREMENT
    return CASES_A_UNIT * tokens * 2 * parameters / machine.flops


@dataclass(frozen=True)
class Simulated:
    """How a run went: seconds to its end, and of work that was of use."""

    seconds: float
    useful: float
    workers: int

    @property
    def efficiency(self) -> float:
        """Share of the workers' time that went into results."""
        return self.useful / (self.seconds * self.workers)


def drawn(seconds: list[float], machine: Machine, seed: int) -> list[float]:
    """Return the units' seconds with stragglers, in the order of their digests."""
    dice = random.Random(seed)
    spread = machine.straggling
    units = [
        s * math.exp(dice.gauss(0, spread) - spread**2 / 2)
        * (3 if dice.random() < machine.slow else 1)
        for s in seconds
    ]  # fmt: skip
    dice.shuffle(units)
    return units


def _until_failure(dice: random.Random, machine: Machine) -> float:
    rate = machine.failures_an_hour / 3600
    return dice.expovariate(rate) if rate else math.inf


def shards(units: list[float], workers: int, loading: float, machine: Machine) -> Simulated:
    """Return units dealt before the run; a failure costs the unit, a queue and a start."""
    dice = random.Random(workers)
    begins = machine.starting + loading
    ends = []
    for worker in range(workers):
        now, fails = begins, _until_failure(dice, machine)
        for seconds in units[worker::workers]:
            while now + seconds > fails:
                now = fails + machine.queue + begins
                fails = now + _until_failure(dice, machine)
            now += seconds
        ends.append(now)
    return Simulated(max(ends), sum(units), workers)


def pool(units: list[float], workers: int, loading: float, machine: Machine) -> Simulated:
    """Return units given to whoever is free; a failure costs the unit and a start."""
    dice = random.Random(workers)
    begins = machine.starting + loading
    free = [(begins, _until_failure(dice, machine)) for _ in range(workers)]
    heapq.heapify(free)
    waiting = list(reversed(units))
    end = begins
    while waiting:
        now, fails = heapq.heappop(free)
        seconds = waiting.pop()
        if now + seconds > fails:
            waiting.insert(0, seconds)
            again = fails + begins
            heapq.heappush(free, (again, again + _until_failure(dice, machine)))
            continue
        end = max(end, now + seconds)
        heapq.heappush(free, (now + seconds, fails))
    return Simulated(end, sum(units), workers)


def cost_table(machine: Machine) -> str:
    """Return hours, efficiency and dollars of 10^7 measurements by model and workers."""
    rows = []
    for name, parameters, gpus in (("7B", 7e9, 1), ("70B", 70e9, 4)):
        worker = replace(
            machine,
            flops=machine.flops * gpus,
            dollars_an_hour=machine.dollars_an_hour * gpus,
            bytes_a_second=machine.bytes_a_second * math.sqrt(gpus),
        )
        loading = 2 * parameters / worker.bytes_a_second
        count = 10**7 // (MEASUREMENTS_A_CASE * CASES_A_UNIT * len(METHODS))
        seconds = [unit_seconds(m, parameters, worker) for m in METHODS for _ in range(count)]
        units = drawn(seconds, worker, seed=0)
        for workers in WORKERS:
            for way, simulate in (("shards", shards), ("pool", pool)):
                ran = simulate(units, workers, loading, worker)
                dollars = ran.seconds * workers / 3600 * worker.dollars_an_hour
                hours = ran.seconds / 3600
                rows.append((name, workers, workers * gpus, way, hours, ran.efficiency, dollars))
    headers = ("model", "workers", "GPUs", "way", "hours", "efficiency", "$")
    return tabulate(rows, headers, floatfmt=("", "", "", "", ".2f", ".0%", ",.0f"))


def pararel_table(machine: Machine) -> str:
    """Return hours and dollars of all of PARAREL for a 7B model on one GPU, by method."""
    rows = []
    for method in METHODS:
        hours = PARAREL / CASES_A_UNIT * unit_seconds(method, 7e9, machine) / 3600
        rows.append((method.name, PARAREL, hours, hours * machine.dollars_an_hour))
    headers = ("method, 7B", "facts of PARAREL", "GPU hours", "$")
    return tabulate(rows, headers, floatfmt=("", "", ".2f", ".2f"))


# -- against real workers ------------------------------------------------------------------------

CONFTEST = """
import toy_bench
from kn_bench.editing.registry import edit_method

toy_bench.install()

def make(name):
    @edit_method(name)
    def method(language_model):
        return toy_bench.Toy()
    return method

for number in range(6):
    globals()[f"toy_{number}"] = make(f"toy-{number}")
"""
SECONDS = 3.0
UNITS = 12


def check() -> str:
    """Return measured and simulated seconds of 12 units that sleep 3 s each, by workers and way.

    Shards run one after another, so that any number can be checked; a pool has a worker a core.
    """
    machine = Machine(failures_an_hour=0, straggling=0, slow=0)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "toy_bench.py").write_text(TOYS.read_text())
        (folder / "conftest.py").write_text(CONFTEST)
        for workers in (1, 2, 4):
            if workers <= cores():
                idle = _run(folder, 0.0, ("-n", str(workers)))
                real = _run(folder, SECONDS, ("-n", str(workers)))
                told = replace(machine, starting=idle)
                simulated = pool([SECONDS] * UNITS, workers, 0, told).seconds
                rows.append((workers, "pool", real, simulated))
            idle = max(_parts(folder, 0.0, workers))
            real = max(_parts(folder, SECONDS, workers))
            told = replace(machine, starting=idle)
            simulated = shards([SECONDS] * UNITS, workers, 0, told).seconds
            rows.append((workers, "shards", real, simulated))
    table = [(*row, row[3] / row[2] - 1) for row in rows]
    headers = ("workers", "way", "measured s", "simulated s", "off by")
    return tabulate(table, headers, floatfmt=("", "", ".1f", ".1f", "+.0%"))


def _parts(folder: Path, seconds: float, count: int) -> list[float]:
    """Return the seconds of each of ``count`` shards, measured one after another."""
    return [
        _run(folder, seconds, ("-p", "no:xdist", "--shard", f"{number}/{count}"))
        for number in range(1, count + 1)
    ]


def _run(folder: Path, seconds: float, arguments: tuple[str, ...]) -> float:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "xdist"]
    command += ["-p", "kn_bench.testing.plugin", "--pyargs", "kn_bench.suites"]
    # a model that is not embedded has fewer cases a unit
    limit = CASES_PER_LARGE_UNIT * UNITS // 6
    command += ["--relation", "P36", "--limit", str(limit), "--method", "toy-*"]
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "TOY_UNIT_SECONDS": str(seconds),
    }
    started = time.perf_counter()
    subprocess.run(
        [*command, "--model", "toy-gpt", *arguments],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    spent = time.perf_counter() - started
    computed = folder / "computed.log"
    if "--shard" not in arguments and (units := len(computed.read_text().splitlines())) != UNITS:
        raise RuntimeError(f"expected {UNITS} units, and the run had {units}")
    computed.unlink(missing_ok=True)
    return spent


def draw(file: Path, machine: Machine) -> None:
    """Write the figure: efficiency of shards and pool by workers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    loading = 2 * 7e9 / machine.bytes_a_second
    count = 10**7 // (MEASUREMENTS_A_CASE * CASES_A_UNIT * len(METHODS))
    units = drawn(
        [unit_seconds(m, 7e9, machine) for m in METHODS for _ in range(count)], machine, seed=0
    )
    figure, axes = pyplot.subplots(figsize=(5, 3.2))
    for name, simulate, marker in (("shards", shards, "o"), ("pool (Ray)", pool, "s")):
        shares = [simulate(units, n, loading, machine).efficiency for n in WORKERS]
        axes.plot(WORKERS, shares, marker=marker, label=name)
    axes.set(xscale="log", xlabel="workers (one GPU each)", ylabel="efficiency", ylim=(0, 1.02))
    axes.set_title("10$^7$ measurements, 7B, simulated", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_args()
    machine = Machine()
    if asked.check:
        print(check())
        return
    if asked.figure:
        draw(asked.figure, machine)
    print(machine)
    print(cost_table(machine))
    print(pararel_table(machine))


if __name__ == "__main__":
    main()
