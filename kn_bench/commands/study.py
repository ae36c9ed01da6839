"""``kn-bench study``: the paper's figures and the controls on any model, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kn_bench.commands import options
from kn_bench.commands.runner import Request, run_sections

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: options.ModelName,
    output: Annotated[Path, options.OUTPUT],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run only this section. Repeatable. Default: all sections."),
    ] = None,
    cases: options.Cases = None,
    relation: options.Relations = None,
    paradigm: options.Paradigms = None,
    known: options.Known = None,
    facts: options.Facts = None,
    prompts: options.Prompts = None,
    edited: Annotated[
        int | None,
        typer.Option(
            help="Cases of each relation that are edited and measured. Default: 8; 4 for a model "
            "of your own.",
            min=1,
        ),
    ] = None,
    traced: Annotated[
        int | None,
        typer.Option(
            help="Prompts traced of each relation and paradigm. Default: 3; 2 for a model of your "
            "own.",
            min=1,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the noise in a trace.", min=1)] = 10,
    sampled: Annotated[
        int | None,
        typer.Option(
            help="Groups of each task for what is costly to compute. Default: 12; 3 for a model "
            "of your own.",
            min=1,
        ),
    ] = None,
    corpus: options.Corpus = None,
    ablation: options.AblationScope = "ranked",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--workers",
            help="Processes that compute sections. Default: one a core, four at most, where memory "
            "allows; on a GPU one.",
            min=1,
        ),
    ] = None,
) -> None:
    """Run the whole study and write tables, figures and one HTML page to a folder.

    For a model of your own it takes a sample: three relations and three paradigms, unless you name
    others, and a few cases of each.

    Sections that the folder already has are kept unless cases, settings or code changed. A folder
    that holds the study of another model is refused.
    """
    from kn_bench.study.sizes import settings_for

    request = Request(
        model=model,
        output=output,
        cases=cases,
        relations=relation,
        paradigms=paradigm,
        known=known,
        device=device,
        dtype=dtype,
        again=again,
    )
    settings = settings_for(
        model,
        ablation=ablation,
        facts=facts,
        prompts=prompts,
        edited=edited,
        traced=traced,
        samples=samples,
        sampled=sampled,
        corpus=corpus,
        seed=seed,
    )
    run_sections(only, request, settings, workers=workers, show=False)
