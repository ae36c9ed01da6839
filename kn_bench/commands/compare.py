"""``kn-bench compare``: two runs, or two methods, on the cases they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kn_bench.commands import options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    first: Annotated[str, typer.Argument(help="A run: its name, its folder or 'last'.")],
    second: Annotated[
        str,
        typer.Argument(
            help="The run to compare it with; the same run compares two of its methods."
        ),
    ],
    methods: Annotated[
        tuple[str, str] | None,
        typer.Option(help="One method of the first run, and the method of the second beside it."),
    ] = None,
    markdown: options.Markdown = False,
    reports: options.Reports = Path("reports"),
) -> None:
    """Compare two runs on the cases they share: paired tests, intervals, Holm across criteria."""
    from kn_bench.results.comparison import comparison_text
    from kn_bench.results.loading import load_runs
    from kn_bench.results.store import find_run

    folders = [find_run(reports, run) for run in (first, second)]
    first_run = load_runs(folders[:1], explained=False)
    second_run = first_run if folders[0] == folders[1] else load_runs(folders[1:], explained=False)
    text = comparison_text(first_run, second_run, methods=methods, as_markdown=markdown)
    typer.echo(text, nl=False)
