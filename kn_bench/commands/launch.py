"""``kn-bench launch``: a run in shards, on a Slurm queue or beside each other on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kn_bench.commands import options

if TYPE_CHECKING:
    from kn_bench.testing.launching import Jobs, Launch

app = typer.Typer(add_completion=False)


@app.command()
def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="After --, what pytest is given: suites/, --method, --model and so on.",
            metavar="PYTEST-ARGUMENTS",
        ),
    ],
    shards: Annotated[int, typer.Option(help="Jobs to cut the run into.", min=1)],
    run: Annotated[str, typer.Option("--run", help="Name of the merged run.")],
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="What sbatch is told: partition=gpu,gpus=1,time=120 (minutes)."),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(help="A shell command before each job, such as 'module load cuda'."),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Processes of this machine in place of Slurm's jobs.")
    ] = False,
    at_once: Annotated[
        int | None, typer.Option(help="Jobs at a time (default: 256, and 1 with --local).", min=1)
    ] = None,
    requeues: Annotated[
        int, typer.Option(help="How often a shard that died is queued again.", min=0)
    ] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the script for sbatch and submit nothing.")
    ] = False,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks at the queue.", min=0.1)
    ] = 10.0,
    reports: options.Reports = Path("reports"),
) -> None:
    """Measure a run in shards: submit them, queue again what died, merge them.

    All jobs have to see the same `--reports` folder. A launch that was ended is gone on with by the
    same command: shards that are measured are kept, others are resumed. Needs the extra `slurm`.
    """
    from kn_bench.testing import launching

    launch = launching.Launch(
        tuple(arguments), run, shards, reports, requeues, at_once or (1 if local else 256)
    )
    launch.check()
    parameters = launching.slurm_options(slurm or ())
    if dry_run:
        typer.echo(launching.script(launch, parameters, setup or ()), nl=False)
        return
    if local and slurm:
        raise launching.LaunchError("--local has no use for --slurm: give one of them")
    launching.refuse_bad_input(launch)
    if local:
        jobs = launching.local_jobs(launch)
    else:
        jobs = launching.slurm_jobs(launch, parameters, setup or ())
    _watch(jobs, every)
    _merge(launch)


def _watch(jobs: Jobs, every: float) -> None:
    """Report each shard as it ends; with Ctrl-C take back those that have not.

    Raises:
        LaunchError: when one of them could not be measured.
    """
    from kn_bench.testing.launching import LaunchError

    failed = []
    try:
        for ended in jobs.watch(every):
            said = f": {ended.said}" if ended.said else ""
            typer.echo(f"shard {ended.shard} {ended.state}{said}")
            failed += [ended] if ended.state == "failed" else []
    except KeyboardInterrupt:
        jobs.cancel()
        raise
    if failed:
        names = ", ".join(ended.shard for ended in failed)
        raise LaunchError(f"not measured: {names} ({failed[-1].said}); mend it and launch again")


def _merge(launch: Launch) -> None:
    from kn_bench.results.merging import merge

    folder = merge(launch.folders, launch.reports, launch.run)
    typer.echo(f"merged {launch.shards} shards into {folder}")
