"""``kn-bench evaluate``: a checkpoint, an adapter or saved edits, measured against their base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kn_bench.commands import options

if TYPE_CHECKING:
    from kn_bench.measure.harness import TaskFigure
    from kn_bench.measure.measurement import EditRecord
    from kn_bench.model.language_model import LanguageModel

app = typer.Typer(add_completion=False)


@app.command()
def command(
    base: Annotated[str, typer.Option(help="The model that was edited, by any name.")],
    edited: Annotated[
        Path,
        typer.Option(help="A checkpoint's folder, a PEFT adapter's, or edits that were saved."),
    ],
    cases: options.Cases = None,
    relation: options.Relations = None,
    limit: Annotated[int | None, typer.Option(help="Cases of each relation.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the run to this folder.")
    ] = None,
    generations: Annotated[
        int, typer.Option(help="Texts a case that the models write freely, for fluency.", min=0)
    ] = 0,
    references: Annotated[
        Path | None,
        typer.Option(help="Texts about new targets for the reference score.", exists=True),
    ] = None,
    lm_eval: Annotated[
        str,
        typer.Option(
            "--lm-eval",
            metavar="TASKS",
            help="Tasks of lm-evaluation-harness, or paths of their YAML files, by commas: general "
            "ability, without and with the edit.",
        ),
    ] = "",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    markdown: options.Markdown = False,
) -> None:
    """Judge what was edited elsewhere by all criteria, the base being the unedited model.

    Exit status 1 where the edit failed on a case; --lm-eval is then left out.
    """
    from kn_bench.api.evaluating import ABILITY, check_no_run, evaluate
    from kn_bench.commands.runner import chosen_cases, loaded
    from kn_bench.edits.checkpoint import check
    from kn_bench.measure.harness import check_tasks
    from kn_bench.measure.writing import check_references
    from kn_bench.results.files import together
    from kn_bench.results.leaderboard import terminal_table

    tasks = [task.strip() for task in lm_eval.split(",") if task.strip()]
    check(str(edited), base, dtype)
    check_references(references, generations)
    if tasks:
        check_tasks(tasks)
    if output is not None:
        check_no_run(output)
    chosen = chosen_cases(cases, relation, limit, seed)
    lm = loaded(base, device, dtype)
    evaluation = evaluate(
        lm,
        f"checkpoint:{edited}",
        chosen,
        generations=generations,
        references=references,
        seed=seed,
    )
    record = next((r.edit for r in evaluation.results if r.edit is not None), None)
    if record is not None:
        typer.echo(f"{edited} against {base}: {difference(record)}")
    # errors go to standard error
    typer.echo(evaluation.board(markdown=True) if markdown else terminal_table(evaluation.runs))
    failed = evaluation.errors
    ability = general_ability(lm, edited, tasks) if tasks and not failed else []
    if ability:
        typer.echo(ability_table(ability, markdown=markdown))
    if output is not None:
        with together():
            if ability:
                write_ability(ability, output / ABILITY)
            evaluation.save(output)  # goes last, for a folder with a run is not written again
        typer.echo(f"written to {output}")
    for error, n in failed.items():
        typer.echo(f"kn-bench: {n} of {len(evaluation.results)} cases: {error}", err=True)
    if failed:
        raise typer.Exit(1)


def general_ability(lm: LanguageModel, edited: Path, tasks: list[str]) -> list[TaskFigure]:
    """Return lm-evaluation-harness's figures, without and with what was ``edited``."""
    from kn_bench.api.methods import method
    from kn_bench.measure.harness import task_figures

    bound = method(f"checkpoint:{edited}", lm)
    return task_figures(lm, bound.inner.whole(), tasks)  # type: ignore[attr-defined]


def write_ability(figures: Sequence[TaskFigure], path: Path) -> None:
    """Write the figures as JSON, whole or not at all."""
    from kn_bench.results.codec import encode
    from kn_bench.results.files import write_text

    write_text(path, encode([figure._asdict() for figure in figures], indent=2) + "\n")


def difference(record: EditRecord) -> str:
    """Return what an edit changes: its kind and ranks, the tensors by name, the norm.

    Of an adapter also the base that it says it was made from: its shapes alone were compared.
    """
    tensors = record.notes.get("changed", "")
    # a dense edit's description names its tensors already
    named = f" ({tensors})" if tensors and not record.description.startswith("dense") else ""
    base = record.notes.get("stated_base", "")
    made_from = f"; an adapter of {base} by its own account" if base else ""
    return f"{record.description}{named}; norm {record.norm:.4g}{made_from}"


def ability_table(figures: Sequence[TaskFigure], *, markdown: bool) -> str:
    """Return the tasks' figures as a table, unedited and edited side by side."""
    from kn_bench.results import tables

    layout = tables.markdown if markdown else tables.plain
    rows = [
        (
            figure.task,
            figure.metric,
            with_error(figure.unedited, figure.unedited_error),
            with_error(figure.edited, figure.edited_error),
            tables.number(figure.edited - figure.unedited, 3, signed=True),
            str(figure.n),
        )
        for figure in figures
    ]
    return layout(("task", "metric", "unedited", "edited", "change", "n"), rows, 2)


def with_error(value: float, error: float) -> str:
    """Return ``0.512 ± 0.014``: a figure with its standard error, where there is one."""
    from kn_bench.results import tables

    shown = tables.number(value, 3)
    return shown if math.isnan(error) else f"{shown} ± {tables.number(error, 3)}"
