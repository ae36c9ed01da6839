"""``kn-bench trace``: causal tracing of facts and syntax."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_bench.commands import studying as options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: options.ModelName,
    output: options.Output = None,
    cases: options.Cases = None,
    relation: options.Relations = None,
    paradigm: options.Paradigms = None,
    prompts: Annotated[int, typer.Option(help="Of each relation and paradigm.", min=1)] = 3,
    samples: Annotated[int, typer.Option(help="Of the noise.", min=1)] = 10,
    window: Annotated[
        int | None,
        typer.Option(
            help="Layers restored at once for MLP and attention; 10 of 48 by default.", min=1
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Trace which states carry an answer, by token role: Figure 9 of the paper."""
    from kn_bench.study.material import Settings

    settings = Settings(traced=prompts, samples=samples, window=window, seed=seed)
    found = options.material(
        model, settings, cases=cases, relations=relation, paradigms=paradigm, device=device,
        dtype=dtype,
    )  # fmt: skip
    options.run_and_show(found, ["tracing"], output, again=again)
