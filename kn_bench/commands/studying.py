"""What the commands on a model have in common: its options, the cases, progress, printing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kn_bench.cases.case import Case
    from kn_bench.localise.selection import Neuron
    from kn_bench.study.material import Material, Settings
    from kn_bench.study.runner import Part, Step
    from kn_bench.study.writing import Written

ModelName = Annotated[
    str,
    typer.Argument(help="An embedded name, a folder of safetensors, a hub id or ID@REVISION."),
]


def _checked(folder: Path | None) -> Path | None:
    """Before the model is loaded: whether ``folder`` can be written."""
    from kn_bench.results.files import check_writable

    if folder is not None:
        check_writable(folder)
    return folder


FOLDER = typer.Option("-o", "--output", help="Folder to write.", callback=_checked)
Output = Annotated[Path | None, FOLDER]
Cases = Annotated[
    list[str] | None,
    typer.Option(
        help="embedded, blimp, pararel, NAME=FOLDER or a JSONL file; repeatable. The embedded "
        "cases for an embedded model, else blimp and pararel."
    ),
]
Relations = Annotated[
    list[str] | None, typer.Option("--relation", help="Relations to keep; repeatable.")
]
Paradigms = Annotated[
    list[str] | None, typer.Option("--paradigm", help="Paradigms to keep; repeatable.")
]
Facts = Annotated[
    int, typer.Option(help="Facts of each relation that neurons are located for.", min=1)
]
Prompts = Annotated[int, typer.Option(help="Prompts of each fact, and pairs of each class.", min=1)]
Seed = Annotated[int, typer.Option(help="Of all draws.")]
Device = Annotated[
    str, typer.Option(help="cpu, cuda or cuda:N; auto spreads the model over all GPUs.")
]
Dtype = Annotated[str, typer.Option(help="Precision of the weights.")]
Again = Annotated[bool, typer.Option("--again", help="Compute what is there already anew.")]
CorpusFile = Annotated[
    Path | None, typer.Option(help="Text to count the company of modifiers in.", exists=True)
]

ALL_CASES = 200
"""Cases of each relation and paradigm that are loaded: more are never looked at."""


def material(
    model: str,
    settings: Settings,
    *,
    cases: Sequence[str] | None,
    relations: Sequence[str] | None,
    paradigms: Sequence[str] | None,
    device: str,
    dtype: str,
) -> Material:
    """The model and the cases that the options name.

    Raises:
        ValueError: one sentence, for what cannot be loaded, when no case is left, or for a neuron
            that the model has not.
    """
    from kn_bench.model.loading import load_model
    from kn_bench.study.material import Material

    found = load_cases(model, cases, [*(relations or ()), *(paradigms or ())], settings.seed)
    lm = load_model(model, device=device, dtype=dtype)
    for layer, unit in settings.neurons:
        if layer >= lm.n_layers or unit >= lm.d_mlp:
            raise ValueError(
                f"{model} has no neuron {layer}:{unit}: its layers are 0 to {lm.n_layers - 1}, "
                f"the neurons of each 0 to {lm.d_mlp - 1}"
            )
    return Material(lm, found, settings)


def load_cases(
    model: str, specs: Sequence[str] | None, wanted: Sequence[str], seed: int
) -> list[Case]:
    """The cases of ``specs``, or those that fit the kind of model.

    Raises:
        ValueError: when there are none.
    """
    from kn_bench.cases import sources
    from kn_bench.model import embedded

    chosen = specs or (["embedded"] if model in embedded.NAMES else ["blimp", "pararel"])
    found = [
        case
        for spec in chosen
        for case in sources.load(spec, limit=ALL_CASES, relations=wanted or None, seed=seed).cases
    ]
    if not found:
        raise ValueError(
            f"there are no cases of {', '.join(wanted)} in {', '.join(chosen)}: name relations or "
            "paradigms that it has"
        )
    return found


def neurons(texts: Sequence[str] | None) -> tuple[Neuron, ...]:
    """``9:1094`` as layer 9, neuron 1094.

    Raises:
        ValueError: for another form.
    """
    from kn_bench.localise.selection import Neuron

    found = []
    for text in texts or ():
        layer, colon, unit = text.partition(":")
        if not (colon and layer.isdigit() and unit.isdigit()):
            raise ValueError(f"{text!r} names no neuron: write LAYER:NUMBER, such as 9:1094")
        found.append(Neuron(int(layer), int(unit)))
    return tuple(found)


def run_and_show(
    found: Material, names: Sequence[str], folder: Path | None, *, again: bool, show: bool = True
) -> None:
    """Run sections with a progress bar; print their findings and tables, or where they lie."""
    from tempfile import TemporaryDirectory

    if folder is not None:
        written = _run(found, names, folder, again=again)
        if show:
            _print(written)
        typer.echo(f"written to {folder / 'index.html'}")
        return
    with TemporaryDirectory() as temporary:
        _print(_run(found, names, Path(temporary), again=True))
    typer.echo("give -o DIR to keep tables, figures and a page")


def _run(found: Material, names: Sequence[str], folder: Path, *, again: bool) -> list[Written]:
    from kn_bench.study.runner import run_study
    from kn_bench.study.sections import parts

    chosen = parts(names)
    with _progress(chosen) as tell:
        return run_study(found, chosen, folder, tell=tell, again=again)


@contextmanager
def _progress(chosen: Sequence[Part]) -> Iterator[Callable[[Step], None]]:
    """A bar on a terminal, a line for each section elsewhere."""
    from tqdm import tqdm

    with tqdm(total=len(chosen), unit=" sections", disable=None, leave=False) as bar:

        def tell(step: Step) -> None:
            if step.state == "begins":
                bar.set_description(step.part.title)
                return
            bar.update()
            took = "kept" if step.state == "kept" else f"{step.seconds:.0f} s"
            line = f"[{step.number + 1}/{len(chosen)}] {step.part.title} ({took})"
            tqdm.write(line, file=sys.stderr)

        yield tell


def _print(written: Sequence[Written]) -> None:
    from kn_bench.results import tables

    for section in written:
        typer.echo(f"\n{section.title}\n")
        for sentence in (*section.findings, *section.notes):
            typer.echo(f"  {sentence}")
        for table in section.tables:
            if table.rows:
                typer.echo(f"\n{table.caption}\n")
                typer.echo(tables.plain(table.headers, table.rows, table.left))
