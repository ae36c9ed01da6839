"""``kn-bench view``: the board's page, with every answer, from this machine to its own browser."""

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
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8642,
    reports: options.Reports = Path("reports"),
) -> None:
    """Serve the whole of runs of any size; answers are read from the log when a case is opened."""
    from kn_bench.results.loading import load_runs
    from kn_bench.results.serving import Server
    from kn_bench.results.store import find_runs

    with Server(load_runs(find_runs(reports, runs), explained=False), port) as server:
        typer.echo(f"open {server.address} in a browser; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")
