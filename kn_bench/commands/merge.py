"""``kn-bench merge``: the shards of a run joined into one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kn_bench.commands import options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    shards: Annotated[
        list[str], typer.Argument(help="The shards: names of runs or their folders.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Name of the merged run.")],
    reports: options.Reports = Path("reports"),
) -> None:
    """Join the shards of a run (`pytest suites/ --shard 1/4`, …) into one run.

    Shards may come from several machines, in any order, some twice. They are refused where
    weights, data, settings or code differ, and when one is missing or unfinished.
    """
    from kn_bench.results.merging import merge
    from kn_bench.results.store import find_run

    folder = merge([find_run(reports, shard) for shard in shards], reports, output)
    typer.echo(f"merged {len(shards)} runs into {folder}")
    typer.echo(f"write its board by: kn-bench leaderboard {folder}")
