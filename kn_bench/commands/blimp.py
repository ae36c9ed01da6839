"""``kn-bench blimp``: a model's accuracy on BLiMP, the baseline of every edit of grammar."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kn_bench.commands import options

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
        typer.Argument(
            help="Folder with BLiMP's JSONL files. Default: the cache, downloaded if necessary."
        ),
    ] = None,
    paradigm: options.Paradigms = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first N pairs of each paradigm.", min=1)
    ] = None,
    markdown: options.Markdown = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Print how often the model assigns the grammatical sentence the higher probability.

    Whole sentences are compared, as Warstadt et al. (2020) do. A masked model is scored by
    pseudo-log-likelihood.
    """
    from kn_bench.cases.building.paradigms import BLIMP
    from kn_bench.cases.sources import blimp
    from kn_bench.commands.runner import loaded
    from kn_bench.results import tables

    pairs = blimp.pairs_of(paradigm or None, data, limit)
    accuracy = accuracies(loaded(model, device, dtype), pairs)
    family = {paradigm.id: paradigm.family for paradigm in BLIMP}
    layout = tables.markdown if markdown else tables.plain
    typer.echo(layout(HEADERS, rows(accuracy, family)))


def accuracies(
    lm: LanguageModel, pairs: Mapping[str, Sequence[MinimalPair]]
) -> dict[str, Interval]:
    """Return, by paradigm, the share of pairs whose grammatical sentence is more probable."""
    from tqdm import tqdm

    from kn_bench.measure.sentences import preferred
    from kn_bench.measure.statistics import mean_interval

    accuracy = {}
    with tqdm(total=len(pairs), unit=" paradigms", disable=None, leave=False) as bar:
        for id, members in pairs.items():
            bar.set_description(id)
            right = preferred(lm, [p.good for p in members], [p.bad for p in members])
            accuracy[id] = mean_interval(right.astype(float), [p.id for p in members])
            bar.update()
    return accuracy


def rows(accuracy: Mapping[str, Interval], family: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return one row per paradigm, the mean of each family, and the mean of all paradigms."""
    from kn_bench.results import tables

    body: list[tuple[str, ...]] = [
        (
            id,
            tables.number(interval.mean, 3),
            f"{tables.number(interval.low, 3)} to {tables.number(interval.high, 3)}",
            str(interval.n),
        )
        for id, interval in sorted(accuracy.items())
    ]
    by_family: dict[str, list[Interval]] = defaultdict(list)
    for id, interval in accuracy.items():
        by_family[family.get(id, "other")].append(interval)
    means = {f"mean of {name}": members for name, members in sorted(by_family.items())}
    for name, members in [*means.items(), ("mean of all paradigms", list(accuracy.values()))]:
        mean = sum(interval.mean for interval in members) / len(members)
        body.append(
            (name, tables.number(mean, 3), "", str(sum(interval.n for interval in members)))
        )
    return body
