"""The options that the commands on a model share, each defined once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def _writable(folder: Path | None) -> Path | None:
    """Check before the model is loaded that ``folder`` can be written."""
    from kn_bench.results.files import check_writable

    if folder is not None:
        check_writable(folder)
    return folder


def _one_of(*allowed: str) -> Callable[[str], str]:
    def check(given: str) -> str:
        if given not in allowed:
            raise typer.BadParameter(f"'{given}': expected {' or '.join(allowed)}")
        return given

    return check


def _positive(help: str) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(help=help, min=1)
    return info


OUTPUT = typer.Option(
    "-o",
    "--output",
    help="Write tables, figures and an HTML page to this folder.",
    callback=_writable,
)

ModelName = Annotated[
    str,
    typer.Argument(
        help="The model: a packaged name such as tiny-bert, a folder of safetensors, a hub id or "
        "ID@REVISION."
    ),
]
Output = Annotated[Path | None, OUTPUT]
Cases = Annotated[
    list[str] | None,
    typer.Option(
        help="Where the cases come from: embedded, blimp, pararel, NAME=FOLDER or a JSONL file. "
        "Repeatable. Default: embedded for an embedded model, else pararel and blimp, or what "
        "can be had of them."
    ),
]
Relations = Annotated[
    list[str] | None,
    typer.Option("--relation", help="Use only this relation, such as P36. Repeatable."),
]
Paradigms = Annotated[
    list[str] | None, typer.Option("--paradigm", help="Use only this BLiMP paradigm. Repeatable.")
]
Facts = Annotated[
    int | None,
    _positive(
        "Number of facts per relation whose neurons are located. Default: 6; 3 for a model of "
        "your own."
    ),
]
Prompts = Annotated[
    int | None,
    _positive(
        "Maximum number of prompts per fact and of pairs per class. Default: 20; 4 for a "
        "model of your own."
    ),
]
Corpus = Annotated[
    Path | None,
    typer.Option(help="Text file in which to count co-occurrence of modifiers.", exists=True),
]
Seed = Annotated[int, typer.Option(help="Seed of all random sampling.")]
AblationScope = Annotated[
    str,
    typer.Option(
        "--ablation",
        help="Neurons that direct ablation silences one by one: ranked (those that another score "
        "ranks high, and a random sample) or all (a forward pass per neuron and prompt).",
        callback=_one_of("ranked", "all"),
    ),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda or cuda:N; auto spreads the model over all GPUs.")
]
Dtype = Annotated[str, typer.Option(help="Precision in which the weights are loaded.")]
Again = Annotated[
    bool, typer.Option("--again", help="Recompute sections that the folder already has.")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print tables as Markdown.")]
Reports = Annotated[Path, typer.Option(help="Folder that contains the runs.")]
Known = Annotated[
    bool | None,
    typer.Option(
        "--known/--no-known",
        help="Use only facts that the model answers unedited. Default: for a model of your own.",
    ),
]
