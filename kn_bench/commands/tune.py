"""``kn-bench tune``: sweep a method's settings on held-out cases, and write a preset."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_bench.commands import options

if TYPE_CHECKING:
    from kn_bench.cases.case import Case, Criterion
    from kn_bench.editing.registry import MethodSpec
    from kn_bench.editing.settings import Choices
    from kn_bench.measure.engine import Engine
    from kn_bench.measure.measurement import CaseResult
    from kn_bench.model.language_model import LanguageModel

app = typer.Typer(add_completion=False)

CRITERIA: tuple[Criterion, ...] = ("reliability", "generality", "locality")
"""What is balanced: the harmonic mean of their shares, a board's S, is the score."""


@app.command()
def command(
    method: Annotated[str, typer.Argument(help="The method, such as memit.")],
    model: options.ModelName,
    values: Annotated[
        list[str],
        typer.Option(
            "--try", metavar="PARAMETER=V1|V2", help="Values to try; repeatable, also for one name."
        ),
    ],
    preset: Annotated[Path, typer.Option("-o", "--output", help="TOML file to write.")],
    cases: Annotated[
        str | None,
        typer.Option(help="Where cases come from. Default: what suits the model."),
    ] = None,
    relation: Annotated[list[str] | None, typer.Option(help="Relations; repeatable.")] = None,
    limit: Annotated[int, typer.Option(help="Held-out cases of each relation.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="That of the boards to be kept apart from.")] = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Try every combination of values, and write the best as a preset with the whole curve.

    Where no combination works, the curve is written without values.

    A board with ``--limit N`` asks the first N cases of each relation in an order drawn by the
    seed; these are the last ones of the same order, so that no board up to the limit that is
    printed, and written into the preset, asks any of them.
    """
    from kn_bench.api.methods import refuse_fixtures, registered
    from kn_bench.cases.sources.defaults import default_specs
    from kn_bench.commands.runner import loaded
    from kn_bench.editing.registry import expand
    from kn_bench.measure.engine import Engine
    from kn_bench.results.files import write_text

    known = registered().methods
    names = expand([method], known)
    if len(names) != 1:
        raise ValueError(f"{method!r}: expected one method, and it names {', '.join(names)}")
    spec = known[names[0]]
    refuse_fixtures(spec)
    grid = points(values, spec)
    if preset.is_dir() or not preset.resolve().parent.is_dir():
        raise ValueError(f"-o {preset}: expected a file in a folder that exists; name another")
    specs, sentence = ((cases,), "") if cases else default_specs([model])
    if sentence:
        typer.echo(sentence, err=True)
    held, apart = held_out(specs, relation, limit, seed)
    what = f"{len(held)} case{'s' * (len(held) != 1)}"
    typer.echo(f"{what} held out: boards with --limit up to {apart} ask none of them")
    lm = loaded(model, device, dtype)
    check_points(grid, spec, lm)
    engine = Engine(lm)
    curve: list[dict[str, Any]] = []
    for point in grid:
        curve.append(measured(engine, spec, point, held))
        typer.echo(" ".join(f"{key}={value}" for key, value in curve[-1].items()), err=True)
        sys.stderr.flush()
        # after every point: a sweep takes long, and one that is stopped leaves what it knows
        left = f"; stopped after {len(curve)} of {len(grid)} points" * (len(curve) < len(grid))
        source = f"{what}; boards up to {apart}{left}"
        text = as_toml(spec.name, model, best_of(grid, curve), curve, source)
        write_text(preset, text)
    if best_of(grid, curve):
        typer.echo(f"written to {preset}: use it by --preset {preset}")
    else:
        typer.echo(
            f"no point of {len(grid)} worked: each has a score of 0, and {preset} holds the curve "
            "without values; try others, or a larger --limit"
        )


def best_of(
    grid: Sequence[Mapping[str, Any]], curve: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return the values of the first point with the highest score; none where every score is 0."""
    best = max(range(len(curve)), key=lambda i: curve[i]["score"])
    return grid[best] if curve[best]["score"] > 0 else {}


def points(values: Sequence[str], spec: MethodSpec) -> list[dict[str, Any]]:
    """Return every combination of ``PARAMETER=V1|V2`` texts, each value in its type.

    Texts of one parameter add up, and equal values count once.

    Raises:
        ValueError: for a parameter that the method does not have, or a value of another type.
    """
    from kn_bench.editing.settings import Assignment, check_assignment, parse_value

    columns: dict[str, list[Any]] = {}
    for text in values:
        name, equals, several = text.partition("=")
        if not equals:
            raise ValueError(f"--try {text!r}: expected PARAMETER=V1|V2, such as v_lr=0.1|0.5")
        if spec.settings is None:
            raise ValueError(
                f"--try {text!r}: expected a method with parameters, and {spec.name} has none; "
                "name another"
            )
        column = columns.setdefault(name, [])
        for one in several.split("|"):
            assignment = Assignment(spec.name, name, parse_value(one), text, "--try")
            value = check_assignment(assignment, spec.settings)
            if value not in column:
                column.append(value)
    return [
        dict(zip(columns, point, strict=True)) for point in itertools.product(*columns.values())
    ]


def check_points(grid: Sequence[Mapping[str, Any]], spec: MethodSpec, lm: LanguageModel) -> None:
    """Refuse what ``lm`` cannot have, of every point before the first is measured.

    Raises:
        ValueError: for a method that edits models of the other kind.
        SettingError: for a value that the model cannot have.
    """
    from kn_bench.editing.settings import settings_for

    kind = lm.tokens.kind
    if spec.not_defined_for(kind):
        raise ValueError(
            f"{spec.name}: expected a {spec.models} model, and {lm.name} is a {kind} one; "
            "name another"
        )
    if spec.settings is not None:
        for point in grid:
            settings_for(spec.name, spec.settings, lm, _chosen(spec, point))


def _chosen(spec: MethodSpec, point: Mapping[str, Any]) -> Choices:
    from kn_bench.editing.settings import Assignment, Choices

    return Choices(
        tuple(Assignment(spec.name, n, v, f"{n}={v}", "--try") for n, v in point.items())
    )


def held_out(
    specs: Sequence[str], relations: Sequence[str] | None, limit: int, seed: int
) -> tuple[list[Case], int]:
    """Return the last cases of each relation, and the largest limit of a board apart from them.

    Raises:
        ValueError: where a relation has too few cases to keep any apart.
    """
    from kn_bench.cases import sources
    from kn_bench.cases.sampling import stable_hash

    by_relation: dict[str, list[Case]] = {}
    for case in sources.load_all(specs, relations=relations, seed=seed):
        by_relation.setdefault(case.relation, []).append(case)
    held: list[Case] = []
    apart = None
    for group in by_relation.values():
        # by place in the order that `--limit` takes the first of
        ordered = sorted(group, key=lambda case: stable_hash(seed, case.id))
        kept = min(limit, len(ordered) // 2)
        held += ordered[len(ordered) - kept :]
        left = len(ordered) - kept
        apart = left if apart is None else min(apart, left)
    if not held or not apart:
        raise ValueError(f"--cases {' '.join(specs)}: too few cases to keep any apart from a board")
    return held, apart


def measured(
    engine: Engine, spec: MethodSpec, point: Mapping[str, Any], cases: Sequence[Case]
) -> dict[str, Any]:
    """Return the point of the curve: the values, the share of each criterion, and S as the score.

    Cases that the method failed on count as missed, and their number as ``errors``. S is that of a
    board: the harmonic mean of the shares, over the cases that have all three.

    Raises:
        ValueError: where no case shows a criterion: a share of nothing says nothing.
    """
    import numpy as np

    from kn_bench.editing.registry import bind
    from kn_bench.measure.statistics import harmonic_mean
    from kn_bench.results.escaping import terminal

    method = bind(spec, engine.model, _chosen(spec, point))
    results = engine.measure(spec.name, method, cases).results
    scores = np.array([[_score(c, case, results[case.id]) for c in CRITERIA] for case in cases])
    for criterion, shown in zip(CRITERIA, ~np.isnan(scores).all(axis=0), strict=True):
        if not shown:
            raise ValueError(
                f"{criterion}: expected held-out cases that show it, and none of the {len(cases)} "
                f"does under {spec.name}; give a larger --limit, or other relations"
            )
    shares = dict(zip(CRITERIA, np.nanmean(scores, axis=0).round(4).tolist(), strict=True))
    whole = scores[~np.isnan(scores).any(axis=1)]
    score = harmonic_mean(whole.mean(axis=0)) if len(whole) else 0.0
    failed = [result.error for result in results.values() if result.error]
    if failed:
        typer.echo(f"{len(failed)} of {len(cases)} cases failed: {terminal(failed[0])}", err=True)
    errors = {"errors": len(failed)} if failed else {}
    return {**point, **shares, "score": round(score, 4), **errors}


def _score(criterion: Criterion, case: Case, result: CaseResult) -> float:
    """Return the share of the case's probes that hold; NaN where it cannot be judged."""
    from kn_bench.measure.criteria import judge

    verdict = judge(criterion, case, result)
    # an edit that failed has not done what was asked, and a point is no better for it
    if verdict.status == "error":
        return 0.0
    return math.nan if verdict.score is None else verdict.score


def as_toml(
    method: str,
    model: str,
    best: Mapping[str, Any],
    curve: Sequence[Mapping[str, Any]],
    what: str,
) -> str:
    """Return a preset's text, the curve below the chosen values."""
    name = Path(model).name.partition("@")[0].lower()
    table = f"[models.{json.dumps(name)}]"
    lines = [f"methods = [{json.dumps(method)}]", "", table]
    lines += [f"source = {json.dumps(f'kn-bench tune: held out {what}')}", *_pairs(best)]
    lines += ["curve = [", *(f"  {{{', '.join(_pairs(point))}}}," for point in curve), "]"]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    # JSON's numbers, texts, booleans and lists are TOML's too, but TOML has no null
    return [
        f"{name} = {json.dumps('none' if value is None else value)}"
        for name, value in values.items()
    ]
