"""General ability by lm-evaluation-harness, run in process on the unedited and the edited model.

Its tasks are named as on its own command line; a path to a task's YAML file is a task too, and its
data may be files, so that no hub is needed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.editing.applying import edited
from kn_bench.editing.composition import Composition
from kn_bench.editing.edit import Edit, LookupEdit, PromptEdit
from kn_bench.editing.surroundings import own_random
from kn_bench.model.language_model import LanguageModel

BATCH = 16
"""Rows of a batch of the harness."""


class TaskFigure(NamedTuple):
    """One metric of one task, without and with the edit, each with its standard error.

    A standard error is NaN where the task gives none.
    """

    task: str
    metric: str
    unedited: float
    unedited_error: float
    edited: float
    edited_error: float
    n: int


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse, before a model is loaded, tasks that cannot be run.

    Raises:
        ValueError: one sentence: the harness is not installed, or does not know a task.
    """
    known = _manager(tasks)
    for task in tasks:
        if not Path(task).is_file() and not known.match_tasks([task]):
            raise ValueError(
                f"--lm-eval '{task}': expected a task of lm-evaluation-harness or the path of a "
                "task's YAML file; `lm-eval ls tasks` lists the names"
            )


def _manager(tasks: Sequence[str]) -> Any:
    """Return the harness's index of tasks; of its own ones only where a task is a name.

    Reading all of their files takes ten seconds.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError(
            "--lm-eval: expected lm-evaluation-harness, and it is not installed; do "
            "pip install 'kn_bench[lm-eval]'"
        ) from None
    return TaskManager(include_defaults=not all(Path(task).is_file() for task in tasks))


def task_figures(
    lm: LanguageModel, edits: Sequence[Edit], tasks: Sequence[str], *, limit: int | None = None
) -> list[TaskFigure]:
    """Return every metric of ``tasks`` on the unedited model and on that with all ``edits``.

    Args:
        lm: a causal model; it is as it was afterwards.
        edits: applied together.
        tasks: names, or paths of YAML files.
        limit: documents of each task; all by default.

    Raises:
        ValueError: for a masked model, an edit that is no change of the model, or a task that
            cannot be run.
    """
    if not lm.is_causal:
        raise ValueError(
            f"{lm.name}: expected a causal model, which lm-evaluation-harness asks; a masked one "
            "cannot be measured by --lm-eval"
        )
    for edit in edits:
        if isinstance(edit, LookupEdit | PromptEdit):
            raise ValueError(
                f"{type(edit).__name__}: expected a change of the model's weights or activations; "
                "lm-evaluation-harness builds its own prompts"
            )
    before = _scores(lm, tasks, limit)
    with _applied(lm, edits):
        after = _scores(lm, tasks, limit)
    return [
        TaskFigure(task, metric, value, error, *after[task, metric][:2], n)
        for (task, metric), (value, error, n) in before.items()
        if (task, metric) in after
    ]


def _applied(lm: LanguageModel, edits: Sequence[Edit]) -> AbstractContextManager[Any]:
    if len(edits) == 1:
        return edited(lm, edits[0])
    return _together(lm, edits)


@contextlib.contextmanager
def _together(lm: LanguageModel, edits: Sequence[Edit]) -> Iterator[None]:
    with Composition(lm) as composition:
        composition.add(edits)
        yield


def _scores(
    lm: LanguageModel, tasks: Sequence[str], limit: int | None
) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Return (value, standard error, documents) by task and metric."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(
        pretrained=lm.hf,
        tokenizer=lm.tokens.tokenizer,
        batch_size=BATCH,
        max_length=lm.tokens.max_length,
    )
    with own_random(0):  # the harness seeds the process
        try:
            given = lm_eval.simple_evaluate(
                model=wrapped,
                tasks=list(tasks),
                task_manager=_manager(tasks),
                limit=limit,
                log_samples=False,
            )
        except (OSError, KeyError, ConnectionError) as error:
            raise ValueError(
                f"--lm-eval {','.join(tasks)}: a task's data cannot be had "
                f"({str(error).splitlines()[0]}); name tasks whose data is here"
            ) from None
    documents = given["n-samples"]
    return {
        (task, name): (float(value), _error(figures, metric), documents[task]["effective"])
        for task, figures in given["results"].items()
        for metric, value in figures.items()
        if (name := _metric(metric)) and isinstance(value, int | float) and task in documents
    }


def _metric(key: str) -> str:
    """Return the metric of ``acc,none`` (``exact_match,strict``: with its filter); "" for none."""
    metric, comma, kept = key.partition(",")
    if not comma or metric.endswith("_stderr"):
        return ""
    return metric if kept == "none" else f"{metric} ({kept})"


def _error(figures: dict[str, Any], key: str) -> float:
    metric, _, kept = key.partition(",")
    value = figures.get(f"{metric}_stderr,{kept}", math.nan)
    return float(value) if isinstance(value, int | float) else math.nan
