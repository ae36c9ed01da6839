"""``kn-bench control``: one section of the study by its name, the eight controls among them."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_bench.commands import studying as options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    name: Annotated[
        str,
        typer.Argument(
            help="matched, dose, selectivity, erasing, choice, place, direction, activators; or "
            "overturn, generations, invariance."
        ),
    ],
    model: options.ModelName,
    output: options.Output = None,
    cases: options.Cases = None,
    relation: options.Relations = None,
    paradigm: options.Paradigms = None,
    facts: options.Facts = 6,
    prompts: options.Prompts = 20,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Run one control of the study, or one of its other sections, and print it."""
    from kn_bench.study.material import Settings
    from kn_bench.study.sections import parts

    parts([name])
    settings = Settings(facts=facts, prompts=prompts, seed=seed)
    found = options.material(
        model, settings, cases=cases, relations=relation, paradigms=paradigm, device=device,
        dtype=dtype,
    )  # fmt: skip
    options.run_and_show(found, [name], output, again=again)
