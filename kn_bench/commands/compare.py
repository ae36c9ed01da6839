"""``kn-bench compare``: two runs, or two methods, on the same cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def command(
    first: Annotated[str, typer.Argument(help="A run: its name, its folder or 'last'.")],
    second: Annotated[str, typer.Argument(help="The run to compare with it; may be the same.")],
    methods: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Compare this method in the first run with that one in the second."),
    ] = None,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
    reports: Annotated[Path, typer.Option(help="Folder that has the runs.")] = Path("reports"),
) -> None:
    """Compare two runs, paired on the same cases, with intervals; Holm across criteria."""
    from kn_bench.results.comparison import comparison_text
    from kn_bench.results.loading import load_runs
    from kn_bench.results.store import find_run

    runs = [load_runs([find_run(reports, run)]) for run in (first, second)]
    typer.echo(comparison_text(runs[0], runs[1], methods=methods, as_markdown=markdown), nl=False)
