"""``kn-bench leaderboard``: the board rebuilt from runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def command(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: names, folders or 'last'.", metavar="RUN")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the Markdown.")
    ] = None,
    judge_again: Annotated[
        bool,
        typer.Option("--judge-again", help="Draw the verdicts from the measurements once more."),
    ] = False,
    reports: Annotated[Path, typer.Option(help="Folder that has the runs.")] = Path("reports"),
) -> None:
    """Rebuild the leaderboard from runs; the last named counts where they overlap."""
    from kn_bench.results.leaderboard import terminal_table, write_leaderboard
    from kn_bench.results.store import find_run

    target = output or reports / "leaderboard.md"
    folders = [find_run(reports, run) for run in runs]
    found = write_leaderboard(folders, target, judge_again=judge_again)
    typer.echo(terminal_table(found))
    typer.echo(f"written to {target}")
