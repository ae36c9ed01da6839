"""``kn-bench control``: any one section of the study, such as one of its eight controls."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_bench.commands import options
from kn_bench.commands.runner import Request, run_sections

app = typer.Typer(add_completion=False)


@app.command()
def command(
    name: Annotated[
        str,
        typer.Argument(
            help="One of the controls matched, dose, selectivity, erasing, choice, place, "
            "direction, activators, or of the sections overturn, generations, invariance."
        ),
    ],
    model: options.ModelName,
    output: options.Output = None,
    cases: options.Cases = None,
    relation: options.Relations = None,
    paradigm: options.Paradigms = None,
    known: options.Known = None,
    facts: options.Facts = None,
    prompts: options.Prompts = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Run one section of the study and print its findings and tables."""
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
    settings = settings_for(model, facts=facts, prompts=prompts, seed=seed)
    run_sections([name], request, settings)
