"""``kn-bench trace``: causal tracing of facts and syntax."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_bench.commands import options
from kn_bench.commands.runner import Request, run_sections

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: options.ModelName,
    output: options.Output = None,
    cases: options.Cases = None,
    relation: options.Relations = None,
    paradigm: options.Paradigms = None,
    known: options.Known = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            help="Number of prompts per relation and paradigm. Default: 3; 2 for a model of your "
            "own.",
            min=1,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of noise samples per prompt.", min=1)] = 10,
    window: Annotated[
        int | None,
        typer.Option(
            help="Number of neighbouring layers whose MLP or attention is restored together. "
            "Default: a fifth of the layers, as published (10 of 48).",
            min=1,
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Trace which hidden states carry an answer, by token position (Figure 9 of the paper)."""
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
    settings = settings_for(model, traced=prompts, samples=samples, window=window, seed=seed)
    run_sections(["tracing"], request, settings)
