"""``kn-bench blimp``: does the model know grammar at all? BLiMP's own accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kn_bench.commands import studying as options

if TYPE_CHECKING:
    from kn_bench.cases.building.spans import MinimalPair
    from kn_bench.measure.statistics import Interval
    from kn_bench.model.language_model import LanguageModel

app = typer.Typer(add_completion=False)
HEADERS = ("paradigm", "accuracy", "95 %", "pairs")


@app.command()
def command(
    model: options.ModelName,
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of BLiMP's JSONL files; the hub, or its cache, without."),
    ] = None,
    paradigm: options.Paradigms = None,
    limit: Annotated[
        int | None, typer.Option(help="The first so many pairs of each paradigm.", min=1)
    ] = None,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Print how often the model finds the grammatical sentence likelier, whole sentences compared.

    The metric of Warstadt et al. 2020; a masked model's sentences have pseudo-log-likelihoods.
    """
    from kn_bench.cases.building.paradigms import BLIMP
    from kn_bench.cases.sources import blimp
    from kn_bench.model.loading import load_model
    from kn_bench.results import tables

    pairs = blimp.pairs_of(paradigm or None, data, limit)
    found = accuracies(load_model(model, device=device, dtype=dtype), pairs)
    family = {one.id: one.family for one in BLIMP}
    layout = tables.markdown if markdown else tables.plain
    typer.echo(layout(HEADERS, rows(found, family)))


def accuracies(
    lm: LanguageModel, pairs: Mapping[str, Sequence[MinimalPair]]
) -> dict[str, Interval]:
    """Paradigm -> the share of its pairs whose grammatical sentence is likelier."""
    from tqdm import tqdm

    from kn_bench.measure.sentences import preferred
    from kn_bench.measure.statistics import mean_interval

    found = {}
    with tqdm(total=len(pairs), unit=" paradigms", disable=None, leave=False) as bar:
        for id, members in pairs.items():
            bar.set_description(id)
            right = preferred(lm, [p.good for p in members], [p.bad for p in members])
            found[id] = mean_interval(right.astype(float), [p.id for p in members])
            bar.update()
    return found


def rows(found: Mapping[str, Interval], family: Mapping[str, str]) -> list[tuple[str, ...]]:
    """A row a paradigm, then the mean of each family's paradigms, then that of all."""
    from kn_bench.results import tables

    body: list[tuple[str, ...]] = [
        (
            id,
            tables.number(one.mean, 3),
            f"{tables.number(one.low, 3)} to {tables.number(one.high, 3)}",
            str(one.n),
        )
        for id, one in sorted(found.items())
    ]
    by_family: dict[str, list[Interval]] = defaultdict(list)
    for id, one in found.items():
        by_family[family.get(id, "other")].append(one)
    means = {f"mean of {name}": ones for name, ones in sorted(by_family.items())}
    for name, ones in [*means.items(), ("mean of all paradigms", list(found.values()))]:
        mean = sum(one.mean for one in ones) / len(ones)
        body.append((name, tables.number(mean, 3), "", str(sum(one.n for one in ones))))
    return body
