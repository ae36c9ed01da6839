"""``kn-bench localise``: knowledge neurons of facts and classes, and how localised they are."""

from __future__ import annotations

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
    facts: options.Facts = 6,
    prompts: options.Prompts = 20,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Locate knowledge neurons and measure how localised they are: Figures 1 to 4 of the paper.

    Facts and syntax side by side, with intervals and nulls, with and without the cap on the number
    of neurons, by integrated gradients and three other attributions.
    """
    from kn_bench.study.material import Settings

    settings = Settings(facts=facts, prompts=prompts, seed=seed)
    found = options.material(
        model, settings, cases=cases, relations=relation, paradigms=paradigm, device=device,
        dtype=dtype,
    )  # fmt: skip
    options.run_and_show(found, ["determiners", "levels"], output, again=again)
