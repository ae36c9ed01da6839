"""Results for a model's repository on the Hugging Face hub: ``.eval_results/*.yaml``.

One file a model, method and task, as the hub wants variants of one benchmark kept apart; the
method, the protocol, when it was asked and the revision stand in ``notes``. The hub shows ``value``
beside the model; the benchmark's data set is named by the user, as it must exist there.
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
from kn_bench.results.exports.naming import distinct, identities, revision_of
from kn_bench.results.files import together, write_text
from kn_bench.results.loading import Runs
from kn_bench.results.shown import runs_behind

DATASET = "kn-bench/kn-bench"
"""Id of the benchmark's data set on the hub, to be replaced by that of the registered one."""
TASKS = {"fact": "facts", "pair": "syntax"}


def write(runs: Runs, folder: Path) -> None:
    """Write ``DEVELOPER/MODEL/.eval_results/kn_bench_METHOD_TASK.yaml``, one a line of the board.

    Models and methods that would have one name there get a hash as well, and revisions of one model
    have theirs in the name of the file. A line without a figure, as of a method that is not
    applicable, has no file: the hub takes no empty one.

    Raises:
        StoreError: when a file cannot be written.
    """
    manifests = zip(runs.folders, runs.manifests, strict=True)
    dates = {run: (manifest.finished or manifest.created)[:10] for run, manifest in manifests}
    behind = runs_behind(runs)
    lines = board(runs)
    models = identities(line.name.model for line in lines)
    methods = distinct(line.name.shown for line in lines)
    revisions = distinct(filter(None, (revision_of(line.name.model) for line in lines)))
    with together():
        for line in lines:
            entries = [*_entries(line, dates[behind[tuple(line.name)]])]
            if not entries:
                continue
            name = f"kn_bench_{methods[line.name.shown]}_{TASKS[line.name.task]}"
            if line.name.protocol != "single":
                name += f"_{slug(line.name.protocol)}_{line.name.asked}"
            if revision := revision_of(line.name.model):
                name += f"_at_{revisions[revision]}"
            target = folder / models[line.name.model] / ".eval_results"
            write_text(target / f"{name}.yaml", "\n".join(entries) + "\n")


def _entries(line: Line, date: str) -> Iterator[str]:
    values: dict[str, Interval] = {"S": line.s, "K": line.k}
    values |= {criterion: line.criteria[criterion].interval for criterion in CRITERIA}
    revision = revision_of(line.name.model)
    what = f"{line.name.shown}, protocol {line.name.protocol}"
    what += f", asked {line.name.asked}" if line.name.protocol != "single" else ""
    what += f", revision {revision}" if revision else ""
    for name, value in values.items():
        if not math.isnan(value.mean):
            notes = f"{what}, n = {value.n}"
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
