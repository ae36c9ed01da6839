"""``kn-bench modifiers``: 24 modifiers under suppression of number neurons."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_bench.commands import studying as options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: options.ModelName,
    output: options.Output = None,
    neuron: Annotated[
        list[str] | None,
        typer.Option(help="LAYER:NUMBER, repeatable; the located number neurons by default."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts that modifiers are put in.", min=1)] = 80,
    cases: options.Cases = None,
    paradigm: options.Paradigms = None,
    corpus: options.CorpusFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Silence a number neuron and watch 24 modifiers: Figures 5 to 7 of the paper.

    Paired tests with Holm's correction beside the published test, exact probabilities, and the
    shift against the number of the nouns that each modifier keeps company with in a corpus.
    """
    from kn_bench.study.material import Settings

    settings = Settings(gaps=prompts, neurons=options.neurons(neuron), corpus=corpus, seed=seed)
    wanted = paradigm or [
        "determiner_noun_agreement_1",
        "determiner_noun_agreement_2",
        "determiner_noun_agreement_with_adj_2",
    ]
    found = options.material(
        model, settings, cases=cases, relations=None, paradigms=wanted, device=device, dtype=dtype
    )
    options.run_and_show(found, ["modifiers"], output, again=again)
