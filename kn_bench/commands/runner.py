"""Run sections of the study for a command: load model and cases, show progress, print results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kn_bench.cases.case import Case
    from kn_bench.localise.selection import Neuron
    from kn_bench.model.language_model import LanguageModel
    from kn_bench.study.material import Material, StudySettings
    from kn_bench.study.processes import Workers
    from kn_bench.study.runner import Part, StudyStep
    from kn_bench.study.writing import WrittenSection

ASKED = 24
"""Facts of each relation that --known asks."""
AT_MOST = 4
"""Processes started when nobody says: the longest section takes a quarter of the whole study."""
ALL_CASES = 200
"""Cases loaded of each relation and paradigm; no section looks at more."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the options of a command ask for.

    Attributes:
        model: name of the model.
        output: folder to write; None only prints.
        cases: sources; None for those that suit the model.
        relations, paradigms: what to keep of them; everything when both are empty.
        known: keep only facts that the model answers, of those first drawn of each relation; None
            does so unless the model is an embedded one.
        device, dtype: how the model is loaded.
        again: recompute what the folder already has.
    """

    model: str
    output: Path | None
    cases: Sequence[str] | None = None
    relations: Sequence[str] | None = None
    paradigms: Sequence[str] | None = None
    known: bool | None = None
    device: str = "cpu"
    dtype: str = "float32"
    again: bool = False


def run_sections(
    names: Sequence[str] | None,
    request: Request,
    settings: StudySettings,
    *,
    workers: int | None = 1,
    show: bool = True,
) -> None:
    """Run the sections called ``names`` (all when None), then print or point at what they found.

    Args:
        workers: processes to compute them; None for as many as suit the machine.
        show: print findings and tables even if they are also written to a folder.

    Raises:
        ValueError: one sentence, for an unknown section, before anything is loaded; for what
            cannot be loaded; for a neuron that the model does not have.
    """
    from kn_bench.study.sections import parts

    chosen = parts(names)
    material = load_material(request, settings)
    processes = _workers(request, material, workers)
    if request.output is None:
        with TemporaryDirectory() as temporary:
            _print(_run(material, chosen, Path(temporary), processes, again=True))
        typer.echo("give -o DIR to keep tables, figures and a page")
        return
    written = _run(material, chosen, request.output, processes, again=request.again)
    if show:
        _print(written)
    typer.echo(f"written to {request.output / 'index.html'}")


def loaded(model: str, device: str, dtype: str, position: int | None = None) -> LanguageModel:
    """Load a model that shows how far its work has come, at a ``position`` below the cursor."""
    from kn_bench.model.loading import load_model
    from kn_bench.model.progress import Bars

    lm = load_model(model, device=device, dtype=dtype)
    lm.progress = Bars(position=position)
    return lm


def load_material(request: Request, settings: StudySettings) -> Material:
    """Load the model and the cases that ``request`` names.

    Raises:
        ValueError: one sentence, for what cannot be loaded, when no case is left, or for a neuron
            that the model does not have.
    """
    from kn_bench.study.material import Material
    from kn_bench.study.sizes import is_sampled, sample_of

    wanted = [*(request.relations or ()), *(request.paradigms or ())]
    cases = load_cases(request.model, request.cases, wanted, settings.seed)
    lm = loaded(request.model, request.device, request.dtype)
    for layer, unit in settings.neurons:
        if layer >= lm.n_layers or unit >= lm.d_mlp:
            raise ValueError(
                f"neuron '{layer}:{unit}' of {request.model}: expected a layer from 0 to "
                f"{lm.n_layers - 1} and a number from 0 to {lm.d_mlp - 1}"
            )
    own = is_sampled(request.model)
    if own if request.known is None else request.known:
        cases = known_facts(lm, cases, settings.seed, needed=bool(request.known))
    if own and not wanted:
        offered, cases = cases, sample_of(cases)
        if len(cases) < len(offered):
            names = dict.fromkeys(case.relation for case in cases)
            typer.echo(
                f"looking at {', '.join(names)}; name others by --relation and --paradigm", err=True
            )
    return Material(lm, cases, settings)


def known_facts(
    lm: LanguageModel, cases: Sequence[Case], seed: int, *, needed: bool = True
) -> list[Case]:
    """Return the pairs, and of the facts first drawn of each relation those that ``lm`` answers.

    Where it answers none, return all cases, or refuse if known facts are ``needed``.

    Raises:
        ValueError: when it answers none and they are needed.
    """
    from kn_bench.cases.sampling import stable_hash
    from kn_bench.measure.engine import Engine
    from kn_bench.measure.known import known_ids
    from kn_bench.model.cache_folder import cache_folder

    by_relation: dict[str, list[Case]] = {}
    for case in cases:
        if case.task == "fact":
            by_relation.setdefault(case.relation, []).append(case)
    asked = [
        case
        for facts in by_relation.values()
        for case in sorted(facts, key=lambda case: stable_hash(seed, case.id))[:ASKED]
    ]
    if not asked:
        return list(cases)
    ids = known_ids(Engine(lm, cache=cache_folder() / "answers"), asked)
    typer.echo(f"{lm.name} knows {len(ids)} of {len(asked)} facts asked", err=True)
    if ids:
        return [case for case in cases if case.task == "pair" or case.id in ids]
    if needed:
        raise ValueError(
            f"--known: {lm.name} answers none of {len(asked)} facts; name other relations, or "
            "give --no-known"
        )
    return list(cases)


def load_cases(
    model: str, specs: Sequence[str] | None, wanted: Sequence[str], seed: int
) -> list[Case]:
    """Load the cases of ``specs``, or those that suit the kind of model.

    Raises:
        ValueError: when there are none.
    """
    from kn_bench.cases import sources
    from kn_bench.cases.sources.defaults import default_specs

    chosen: Sequence[str] = specs or ()
    if not chosen:
        chosen, sentence = default_specs([model])
        if sentence:
            typer.echo(sentence, err=True)
    cases = sources.load_all(chosen, limit=ALL_CASES, relations=wanted or None, seed=seed)
    if not cases:
        raise ValueError(
            f"{', '.join(chosen)}: no cases of {', '.join(wanted)}; name relations or paradigms "
            "that the source has (`kn-bench data --by-relation` lists them)"
        )
    return cases


def chosen_cases(
    specs: Sequence[str] | None, relations: list[str] | None, limit: int | None, seed: int
) -> list[Case]:
    """Load the cases of ``specs``, the embedded ones when None, to edit a model by them.

    Raises:
        ValueError: when there are none.
    """
    from kn_bench.cases import sources

    chosen = specs or ["embedded"]
    cases = sources.load_all(chosen, limit=limit, relations=relations, seed=seed)
    if not cases:
        raise ValueError(f"{', '.join(chosen)}: expected a case, and there is none")
    return cases


def parse_neurons(texts: Sequence[str] | None) -> tuple[Neuron, ...]:
    """Read ``9:1094`` as layer 9, neuron 1094.

    Raises:
        ValueError: for another form.
    """
    from kn_bench.localise.selection import Neuron

    neurons = []
    for text in texts or ():
        layer, colon, unit = text.partition(":")
        if not (colon and layer.isdigit() and unit.isdigit()):
            raise ValueError(f"--neuron {text!r}: expected LAYER:NUMBER, such as 9:1094")
        neurons.append(Neuron(int(layer), int(unit)))
    return tuple(neurons)


def _workers(request: Request, material: Material, number: int | None) -> Workers:
    """Return the processes that compute sections, as many as suit the machine when None."""
    from kn_bench.model.architecture import parameter_bytes
    from kn_bench.study.processes import Workers
    from kn_bench.testing.devices import workers_for

    if number is None:
        suited = min(AT_MOST, workers_for(parameter_bytes(material.lm.hf)))
        number = suited if request.device == "cpu" else 1
    load = partial(_loaded_beside, request.model, request.device, request.dtype, number)
    return Workers(number, load)


def _loaded_beside(model: str, device: str, dtype: str, number: int, place: int) -> LanguageModel:
    """Load a model in one of ``number`` processes, which share the cores and the terminal."""
    from kn_bench.testing.devices import settle
    from kn_bench.testing.models import share_memory

    settle(number, [model])
    lm = loaded(model, device, dtype, position=place + 1)
    share_memory(lm, model, device, number)
    return lm


def _run(
    material: Material, chosen: Sequence[Part], folder: Path, workers: Workers, *, again: bool
) -> list[WrittenSection]:
    from kn_bench.study.runner import run_study

    with _progress(chosen) as tell:
        return run_study(material, chosen, folder, workers=workers, tell=tell, again=again)


@contextmanager
def _progress(chosen: Sequence[Part]) -> Iterator[Callable[[StudyStep], None]]:
    """Show a bar on a terminal, a line for each section elsewhere."""
    from tqdm import tqdm

    with tqdm(total=len(chosen), unit=" sections", disable=None, leave=False) as bar:

        def tell(step: StudyStep) -> None:
            if step.state == "begins":
                bar.set_description(step.part.title)
                return
            bar.update()
            took = "kept" if step.state == "kept" else f"{step.seconds:.0f} s"
            line = f"[{step.number + 1}/{len(chosen)}] {step.part.title} ({took})"
            tqdm.write(line, file=sys.stderr)

        yield tell


def _print(written: Sequence[WrittenSection]) -> None:
    from kn_bench.results import tables

    for section in written:
        typer.echo(f"\n{section.title}\n")
        for sentence in (*section.findings, *section.notes):
            typer.echo(f"  {sentence}")
        for table in section.tables:
            if table.rows:
                typer.echo(f"\n{table.caption}\n")
                typer.echo(tables.plain(table.headers, table.rows, table.left))
