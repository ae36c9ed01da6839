"""``kn-bench evaluate``: a checkpoint, an adapter or saved edits, measured against their base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kn_bench.commands import options

app = typer.Typer(add_completion=False)


@app.command()
def command(
    base: Annotated[str, typer.Option(help="The model that was edited, by any name.")],
    edited: Annotated[
        Path,
        typer.Option(help="A checkpoint's folder, a PEFT adapter's, or edits that were saved."),
    ],
    cases: options.Cases = None,
    relation: options.Relations = None,
    limit: Annotated[int | None, typer.Option(help="Cases of each relation.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the run to this folder.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    markdown: options.Markdown = False,
) -> None:
    """Judge what was edited elsewhere by all criteria, the base being the unedited model."""
    from kn_bench.api.evaluating import evaluate, load_cases
    from kn_bench.edits.checkpoint import check
    from kn_bench.model.loading import load_model

    check(str(edited), base)
    chosen = [
        case
        for source in cases or ["embedded"]
        for case in load_cases(source, relation=relation, limit=limit, seed=seed)
    ]
    lm = load_model(base, device=device, dtype=dtype)
    evaluation = evaluate(lm, f"checkpoint:{edited}", chosen)
    record = next((r.edit for r in evaluation.results if r.edit is not None), None)
    if record is not None:
        typer.echo(f"{edited} against {base}: {record.description}; norm {record.norm:.4g}")
    typer.echo(evaluation.board(markdown=markdown))
    if output is not None:
        evaluation.save(output)
        typer.echo(f"written to {output}")
