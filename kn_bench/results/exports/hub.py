"""Results for a model's repository on the Hugging Face hub: ``.eval_results/*.yaml``.

One file a model, method and task, as the hub wants variants of one benchmark kept apart; the method
and protocol stand in ``notes``. The hub shows ``value`` beside the model; the benchmark's data set
is named by the user, as it must exist there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from kn_bench.cases.case import CRITERIA
from kn_bench.cases.sampling import slug
from kn_bench.measure.statistics import Interval
from kn_bench.results.board import Line, board
from kn_bench.results.escaping import terminal
from kn_bench.results.files import write_text
from kn_bench.results.loading import Runs

DATASET = "kn-bench/kn-bench"
"""Id of the benchmark's data set on the hub, to be replaced by that of the registered one."""
TASKS = {"fact": "facts", "pair": "syntax"}


def write(runs: Runs, folder: Path) -> None:
    """Write ``MODEL/.eval_results/kn_bench_METHOD_TASK.yaml`` for every line of the board.

    Raises:
        StoreError: when a file cannot be written.
    """
    dates = {m.run: (m.finished or m.created)[:10] for m in runs.manifests}
    newest = max(dates.values(), default="")
    for line in board(runs):
        name = f"kn_bench_{slug(line.name.shown)}_{TASKS[line.name.task]}"
        if line.name.protocol != "single":
            name += f"_{slug(line.name.protocol)}_{line.name.asked}"
        target = folder / slug(line.name.model.rsplit("/", 1)[-1]) / ".eval_results"
        write_text(target / f"{name}.yaml", "\n".join(_entries(line, newest)) + "\n")


def _entries(line: Line, date: str) -> Iterator[str]:
    values: dict[str, Interval] = {"S": line.s, "K": line.k}
    values |= {criterion: line.criteria[criterion].interval for criterion in CRITERIA}
    for name, value in values.items():
        if not math.isnan(value.mean):
            notes = f"{line.name.shown}, protocol {line.name.protocol}, n = {value.n}"
            if not math.isnan(value.low):
                notes += f", 95 % interval {100 * value.low:.1f} to {100 * value.high:.1f}"
            yield "- dataset:"
            yield f"    id: {DATASET}"
            yield f"    task_id: {TASKS[line.name.task]}_{name.lower()}"
            yield f"  value: {100 * value.mean:.2f}"
            yield f"  date: {_text(date)}"
            yield f"  notes: {_text(notes)}"


def _text(text: str) -> str:
    """Return a quoted YAML scalar: every JSON string is one."""
    return json.dumps(terminal(text), ensure_ascii=True)
