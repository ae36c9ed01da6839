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
    facts: options.Facts = 6,
    prompts: options.Prompts = 20,
    corpus: options.Corpus = None,
    ablation: options.AblationScope = "ranked",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Run the whole study and write tables, figures and one HTML page to a folder.

    Sections that the folder already has are kept unless model, cases, settings or code changed.
    """
    from kn_bench.study.material import Settings

    request = Request(
        model=model,
        output=output,
        cases=cases,
        relations=relation,
        paradigms=paradigm,
        device=device,
        dtype=dtype,
        again=again,
    )
    settings = Settings(ablation=ablation, facts=facts, prompts=prompts, corpus=corpus, seed=seed)
    run_sections(only, request, settings, show=False)
