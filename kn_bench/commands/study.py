"""``kn-bench study``: the paper's study and its controls on any model, as a folder and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kn_bench.commands import studying as options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: options.ModelName,
    output: Annotated[Path, options.FOLDER],
    only: Annotated[
        list[str] | None, typer.Option(help="Sections to run; repeatable. All by default.")
    ] = None,
    cases: options.Cases = None,
    relation: options.Relations = None,
    paradigm: options.Paradigms = None,
    facts: options.Facts = 6,
    prompts: options.Prompts = 20,
    corpus: options.CorpusFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    again: options.Again = False,
) -> None:
    """Run every section into a folder: tables, figures and one page. Goes on where it stopped."""
    from kn_bench.study.material import Settings
    from kn_bench.study.sections import SECTIONS, parts

    parts(only)
    settings = Settings(facts=facts, prompts=prompts, corpus=corpus, seed=seed)
    found = options.material(
        model, settings, cases=cases, relations=relation, paradigms=paradigm, device=device,
        dtype=dtype,
    )  # fmt: skip
    options.run_and_show(found, only or list(SECTIONS), output, again=again, show=False)
