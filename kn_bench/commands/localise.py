"""``kn-bench localise``: knowledge neurons of facts and classes, and how localised they are."""

from __future__ import annotations

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
    facts: options.Facts = None,
    prompts: options.Prompts = None,
    ablation: options.AblationScope = "ranked",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Locate knowledge neurons and measure how localised they are (Figures 1 to 4 of the paper).

    Compares facts with syntax, four attributions, and selection with and without a maximum number
    of neurons. Every figure comes with its interval and its null.
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
    settings = settings_for(model, ablation=ablation, facts=facts, prompts=prompts, seed=seed)
    run_sections(["determiners", "levels"], request, settings)
