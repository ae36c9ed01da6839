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
    known: options.Known = False,
    facts: options.Facts = 6,
    prompts: options.Prompts = 20,
    edited: Annotated[
        int, typer.Option(help="Cases of each relation that are edited and measured.", min=1)
    ] = 8,
    traced: Annotated[
        int, typer.Option(help="Prompts traced of each relation and paradigm.", min=1)
    ] = 3,
    samples: Annotated[int, typer.Option(help="Samples of the noise in a trace.", min=1)] = 10,
    sampled: Annotated[
        int, typer.Option(help="Groups of each task for what is costly to compute.", min=1)
    ] = 12,
    corpus: options.Corpus = None,
    ablation: options.AblationScope = "ranked",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Run the whole study and write tables, figures and one HTML page to a folder.

    Sections that the folder already has are kept unless cases, settings or code changed. A folder
    that holds the study of another model is refused.
    """
    from kn_bench.study.material import StudySettings

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
    settings = StudySettings(
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
    run_sections(only, request, settings, show=False)
