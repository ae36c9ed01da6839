"""``kn-bench modifiers``: 24 modifiers under suppression of number neurons."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_bench.commands import options
from kn_bench.commands.runner import Request, parse_neurons, run_sections

app = typer.Typer(add_completion=False)
PARADIGMS = (
    "determiner_noun_agreement_1",
    "determiner_noun_agreement_2",
    "determiner_noun_agreement_with_adj_2",
)
"""What is used unless paradigms are named: those in which determiner or noun vary."""


@app.command()
def command(
    model: options.ModelName,
    output: options.Output = None,
    neuron: Annotated[
        list[str] | None,
        typer.Option(
            help="Neuron to suppress, as LAYER:NUMBER. Repeatable. Default: the number neurons "
            "that are located."
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option(help="Number of prompts that the modifiers are put into.", min=1)
    ] = 80,
    cases: options.Cases = None,
    paradigm: options.Paradigms = None,
    corpus: options.Corpus = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Suppress a number neuron and measure 24 modifiers (Figures 5 to 7 of the paper).

    Paired tests with Holm's correction stand beside the published test, exact probabilities
    beside relative changes. The change is also compared with how often each modifier occurs with
    singular and plural nouns in a corpus.
    """
    from kn_bench.study.material import StudySettings

    request = Request(
        model=model,
        output=output,
        cases=cases,
        paradigms=paradigm or PARADIGMS,
        device=device,
        dtype=dtype,
        again=again,
    )
    settings = StudySettings(gaps=prompts, neurons=parse_neurons(neuron), corpus=corpus, seed=seed)
    run_sections(["modifiers"], request, settings)
