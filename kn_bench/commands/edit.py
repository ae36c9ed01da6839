"""``kn-bench edit``: edit a model and write it, as a checkpoint or an adapter, with its edits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kn_bench.commands import options

if TYPE_CHECKING:
    from kn_bench.api.methods import BoundMethod
    from kn_bench.cases.case import Case, EditRequest
    from kn_bench.editing.edit import Edit
    from kn_bench.model.language_model import LanguageModel

app = typer.Typer(add_completion=False)
CARD = "README.md"
PART = ".part"
"""Where the files of the folder lie until all of them are written."""


@app.command()
def command(
    model: options.ModelName,
    method: Annotated[str, typer.Option(help="The editing method, such as rome.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new or empty folder.")],
    cases: options.Cases = None,
    relation: options.Relations = None,
    limit: Annotated[int | None, typer.Option(help="Cases of each relation.", min=1)] = None,
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write a PEFT LoRA in place of whole weights.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the edited model, and put it in its card.")
    ] = False,
    allow_conflicts: Annotated[
        bool,
        typer.Option(
            "--allow-conflicts",
            help="Let requests about the same subject and relation meet in the model.",
        ),
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Edit a model by a method, all cases at once, and write what transformers loads.

    The folder holds the edited weights and tokenizer (or the adapter), a model card, and the edits
    with their provenance in edits/.
    """
    from kn_bench.commands.runner import chosen_cases, loaded
    from kn_bench.editing.exporting import model_card
    from kn_bench.measure.drawing import refuse_conflicts
    from kn_bench.results.files import check_writable, write_text

    if output.exists() and (not output.is_dir() or {p.name for p in output.iterdir()} - {PART}):
        raise ValueError(f"{output}: expected a new or an empty folder; name another one")
    check_writable(output)
    chosen = chosen_cases(cases, relation, limit, seed)
    if not allow_conflicts:
        refuse_conflicts(chosen)
    lm = loaded(model, device, dtype)
    bound, edits, left_out = bound_edits(method, lm, chosen)
    requests = {case.id: case.request for case in chosen}
    edited = [case for case in chosen if case.id not in left_out]
    facts = {case.id: case.request.cloze.fill(case.request.target_new) for case in edited}
    named = {case or "all cases": edit for case, edit in edits.items()}
    with filling(output) as folder:
        write_edited(bound, edits, requests, folder, as_adapter=as_adapter)
        write_text(folder / CARD, model_card(bound.provenance, named, facts, left_out))
    for case_id, why in left_out.items():
        typer.echo(f"not edited: {case_id} ({why})", err=True)
    cases_edited = f"{len(facts)} case{'s' * (len(facts) != 1)}"
    typer.echo(f"{cases_edited} edited by {bound.name}, written to {output} in {dtype}")
    if measure:
        # measuring is the long part: whatever ends it, the folder is complete already
        scores = measured_scores(lm, output, edited)
        write_text(output / CARD, model_card(bound.provenance, named, facts, left_out, scores))
        typer.echo(f"measured, scores in {output / CARD}")


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a place for the files of an empty ``folder``, which go there once all are written.

    Weights go last: whatever ends the command, there is no edited model before it is whole.
    """
    part = folder / PART
    try:
        shutil.rmtree(part, ignore_errors=True)  # a command that was killed left it
        part.mkdir()
        yield part
        for path in sorted(part.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def bound_edits(
    name: str, lm: LanguageModel, cases: list[Case]
) -> tuple[BoundMethod, dict[str, Edit], dict[str, str]]:
    """Return the method called ``name`` on ``lm``, and what :func:`make_edits` makes by it.

    Raises:
        ValueError: where no case has an edit.
    """
    from kn_bench.api.methods import method
    from kn_bench.editing.edit import NotApplicable

    try:
        bound = method(name, lm)
        edits, left_out = make_edits(bound, cases)
    except NotApplicable as reason:
        raise ValueError(f"--method {name}: {reason}; name another method or model") from None
    if not edits:
        raise ValueError(f"--method {name}: no case has an edit; {next(iter(left_out.values()))}")
    return bound, edits, left_out


def write_edited(
    bound: BoundMethod,
    edits: dict[str, Edit],
    requests: dict[str, EditRequest],
    output: Path,
    *,
    as_adapter: bool,
) -> None:
    """Write the edited model, or its adapter, and each edit with its provenance in ``edits/``."""
    from kn_bench.editing.exporting import save_adapter, save_checkpoint
    from kn_bench.editing.saving import save_edit

    (save_adapter if as_adapter else save_checkpoint)(bound.model, list(edits.values()), output)
    (output / "edits").mkdir()
    source = bound.provenance
    for number, (case, edit) in enumerate(edits.items()):
        path = output / "edits" / f"{number:04d}.safetensors"
        save_edit(edit, path, provenance=source.of(requests[case]) if case else source)


def measured_scores(lm: LanguageModel, folder: Path, cases: list[Case]) -> str:
    """Return the board's table of what was written to ``folder``, against its base."""
    from kn_bench.api.evaluating import evaluate

    lines = evaluate(lm, f"checkpoint:{folder}", cases).board(markdown=True).splitlines()
    counted = [line for line in lines if line.startswith("n = ")]
    table = [line for line in lines if line.startswith("|")]
    return "\n".join([*counted, "", *table])


def make_edits(bound: BoundMethod, cases: list[Case]) -> tuple[dict[str, Edit], dict[str, str]]:
    """Return the edits by case id, one called "" for all cases; and why some cases have none.

    A method that makes one edit of many requests is asked for that; another one makes each on the
    unedited model.

    Raises:
        NotApplicable: when the method is not defined for the model.
        ValueError: for what is no edit of the model.
    """
    from kn_bench.api.methods import with_queries
    from kn_bench.editing.edit import NotApplicable
    from kn_bench.editing.method import begin, edit_step, kind_of, refusals
    from kn_bench.editing.validation import checked

    requests = [with_queries(case.request) for case in cases]
    if len(cases) > 1 and kind_of(bound.inner) != "apart":
        state = begin(bound.inner)
        refused = refusals(bound.inner, requests, state)
        left = [request for i, request in enumerate(requests) if i not in refused]
        left_out = {cases[i].id: str(reason) for i, reason in refused.items()}
        if not left:
            return {}, left_out
        edits_made = edit_step(bound.inner, left, state).edits
        (together,) = checked(edits_made, 1, bound.model, bound.name)
        if isinstance(together, str):
            raise ValueError(together)
        if isinstance(together, NotApplicable):
            raise together
        return {"": together}, left_out
    edits: dict[str, Edit] = {}
    missing: dict[str, str] = {}
    for case, edit in zip(cases, bound.edit(requests), strict=True):
        if isinstance(edit, NotApplicable):
            missing[case.id] = str(edit)
        else:
            edits[case.id] = edit
    return edits, missing
