"""``kn-bench leaderboard``: rebuild the board from the logs of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kn_bench.commands import options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Runs: names, folders of a run or of runs, or 'last'.", metavar="RUN"),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            help="File that ends in .md, .html, .csv, .parquet or .tex; repeatable. "
            "leaderboard.md and leaderboard.html by default.",
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="every-eval-ever, hub or inspect: write these into the folder named by -o."
        ),
    ] = "",
    judge_again: Annotated[
        bool,
        typer.Option("--judge-again", help="Compute the verdicts again from the measurements."),
    ] = False,
    reports: options.Reports = Path("reports"),
) -> None:
    """Rebuild the leaderboard from runs, whatever their order."""
    from kn_bench.results.exports import chosen
    from kn_bench.results.files import together
    from kn_bench.results.leaderboard import PAGE, terminal_table
    from kn_bench.results.loading import load_runs
    from kn_bench.results.store import find_runs

    targets = output or [reports / "leaderboard.md", reports / PAGE]
    write = [(chosen(target, format), target) for target in targets]
    loaded = load_runs(find_runs(reports, runs), judge_again=judge_again, explained=False)
    typer.echo(terminal_table(loaded))
    with together():
        for write_to, target in write:
            write_to(loaded, target)
    for target in targets:
        typer.echo(f"written to {target}")
