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
        typer.Argument(help="One or more runs: their names, folders or 'last'.", metavar="RUN"),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write. Default: leaderboard.md in the folder of --reports.",
        ),
    ] = None,
    judge_again: Annotated[
        bool,
        typer.Option("--judge-again", help="Compute the verdicts again from the measurements."),
    ] = False,
    reports: options.Reports = Path("reports"),
) -> None:
    """Rebuild the leaderboard from runs; where they overlap, the run named last counts."""
    from kn_bench.results.leaderboard import terminal_table, write_leaderboard
    from kn_bench.results.store import find_run

    target = output or reports / "leaderboard.md"
    folders = [find_run(reports, run) for run in runs]
    board = write_leaderboard(folders, target, judge_again=judge_again)
    typer.echo(terminal_table(board))
    typer.echo(f"written to {target}")
