"""What a sequence of edits leaves: each criterion early and late, and what the model can still do.

Each task and protocol has a table with one row per method, below that of the criteria's intervals::

    method    reliability  ...  BLiMP     known       ppl   KL    dW/W  collapse
    unedited                    98 96–100  100 96–100  5.6   0.00  0.00  –
    rome      99→82             71 65–78   41 31–52    63    0.83  5.98  step 50
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from kn_bench.cases.case import CRITERIA, Task
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.results import tables
from kn_bench.results.beside import shown
from kn_bench.results.board import Line
from kn_bench.results.curves import curves_of, over_sequences
from kn_bench.results.loading import Runs

HEADERS = ("method", *CRITERIA, "BLiMP", "known", "ppl", "KL", "dW/W", "collapse")
NAME_WIDTH = 15
UNEDITED = "unedited"


class _Group(NamedTuple):
    """What one table is about."""

    task: Task
    protocol: str


@dataclass(frozen=True, slots=True)
class AbilityTable:
    """The table of one task and protocol.

    Attributes:
        title: of its section.
        sentence: what its figures are, and how many questions are behind them.
        rows: cells by ``HEADERS``; of a model's heading all but the first are empty.
    """

    title: str
    sentence: str
    rows: tuple[tuple[str, ...], ...]


def ability_tables(
    runs: Runs, lines: Sequence[Line], titles: Mapping[Task, str]
) -> list[AbilityTable]:
    """Return the tables of all sequences, in the order of ``lines``; none without sequences.

    Args:
        lines: of the board.
        titles: of the tasks.
    """
    if not len(runs.curves):
        return []
    groups = dict.fromkeys(
        _Group(line.name.task, line.name.protocol)
        for line in lines
        if line.name.asked == "retained"
    )
    result = []
    for group in groups:
        curves = curves_of(runs, group.protocol)
        curves = curves[curves["task"] == group.task]
        if curves.empty:  # every sequence failed before its first checkpoint
            continue
        curves = curves.assign(ended=_ended(curves, group.protocol, runs))
        own = [n for n in lines if _Group(n.name.task, n.name.protocol) == group]
        title = f"{titles[group.task]}, {group.protocol}: what is left"
        result.append(AbilityTable(title, _sentence(curves), tuple(_rows(own, curves))))
    return result


def _ended(curves: pd.DataFrame, protocol: str, runs: Runs) -> pd.Series[bool]:
    """Tell of each checkpoint whether it is of the last step, or of a collapse that ended all."""
    labelled = zip(runs.folders, runs.manifests, strict=True)
    stopping = [label for label, manifest in labelled if "stop" in manifest.options]
    collapsed = (curves["step"] > 0) & (curves["step"] == curves["checkpoint_collapsed_at"])
    result: pd.Series[bool] = curves["step"] == parse_protocol(protocol).steps
    return result | (collapsed & curves["run"].isin(stopping))


def _rows(lines: Sequence[Line], curves: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    retained = [line for line in lines if line.name.asked == "retained"]
    for model in dict.fromkeys(line.name.model for line in retained):
        points = curves[curves["model"] == model]
        yield (tables.short(model, NAME_WIDTH - 2), *[""] * (len(HEADERS) - 1))
        blank = [""] * len(CRITERIA)
        for name, cells in _unedited(points):
            yield (tables.short(name, NAME_WIDTH), *blank, *cells, tables.NOTHING)
        for late in (line for line in retained if line.name.model == model):
            own = points["variant"] == late.name.variant
            method = points[own & (points["method"] == late.name.method)]
            early = next(
                (n for n in lines if n.name == late.name._replace(asked="immediate")), late
            )
            steps = method[method["step"] > 0].sort_values("step")
            last = steps.drop_duplicates("sequence", keep="last")
            yield (
                tables.short(late.name.shown, NAME_WIDTH),
                *(_early_and_late(early, late, criterion) for criterion in CRITERIA),
                *_abilities(method[method["ended"]]),
                _collapse(last),
            )


def _unedited(points: pd.DataFrame) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the unedited model's name and figures, once a run where runs have different ones."""
    first = points[points["step"] == 0].drop_duplicates(["run", "sequence"])
    cells = {str(run): tuple(_abilities(own)) for run, own in first.groupby("run", sort=False)}
    if len(set(cells.values())) == 1:
        cells = {"": next(iter(cells.values()))}
    for run, figures in cells.items():
        yield shown(UNEDITED, run), figures


def _early_and_late(early: Line, late: Line, criterion: str) -> str:
    means = [line.criteria[criterion].interval.mean for line in (early, late)]  # type: ignore[index]
    return "→".join(tables.number(100 * mean, 0) for mean in means)


def _abilities(points: pd.DataFrame) -> Iterator[str]:
    """Yield the cells from BLiMP to the growth of norms, of one checkpoint of each sequence."""
    for column in ("blimp", "known"):
        yield _percent(_share(points, column))
    yield _three_digits(_mean(points["checkpoint_perplexity"]))
    yield _three_digits(_mean(points["checkpoint_kl"]))
    yield _three_digits(_mean(points["growth"]))


def _share(points: pd.DataFrame, column: str) -> Interval:
    """Return a share with an interval over sequences, or over the questions of the only one."""
    shares = points[f"checkpoint_{column}"].astype(float)
    counts = points.loc[shares.notna(), f"checkpoint_n_{column}"].astype(int)
    shares = shares.dropna()
    if len(shares) != 1:
        return over_sequences(shares, (0.0, 1.0))
    n = int(counts.iloc[0])
    right = round(float(shares.iloc[0]) * n)
    answers = np.repeat([1.0, 0.0], [right, n - right])
    return mean_interval(answers, [str(i) for i in range(n)], bounds=(0.0, 1.0))


def _mean(values: pd.Series[float]) -> float:
    finite = values.dropna().astype(float)
    return float(finite.mean()) if len(finite) else np.nan


def _percent(share: Interval) -> str:
    mean, low, high = (tables.number(100 * x, 0) for x in share[:3])
    return mean if np.isnan(share.low) else f"{mean} {low}–{high}"


def _three_digits(value: float) -> str:
    if np.isnan(value):
        return tables.NOTHING
    if value >= 1e6:
        return f"{value:.0e}" if value < 1e29 else "∞"
    return tables.number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def _collapse(last: pd.DataFrame) -> str:
    """Return ``step 50``, of several ``2/3, 50``: how many and the first; a dash for none."""
    steps = [int(step) for step in last["checkpoint_collapsed_at"] if step]
    if not steps:
        return tables.NOTHING
    if len(last) == 1:
        return f"step {steps[0]}"
    return f"{len(steps)}/{len(last)}, {min(steps)}"


def _span(n: pd.Series[int]) -> str:
    low, high = int(n.min()), int(n.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _sentence(curves: pd.DataFrame) -> str:
    """Return what the figures are, and the number of questions behind each."""
    name = ["run", "model", "method"]
    last = curves.sort_values("step").drop_duplicates([*name, "sequence"], keep="last")
    asked = last[last["ended"]] if last["ended"].any() else last

    def span(column: str) -> str:
        return _span(asked[f"checkpoint_n_{column}"])

    sequences = last.groupby(name)["sequence"].nunique()
    pairs = (
        f"BLiMP on {span('blimp')} pairs"
        if curves["checkpoint_n_blimp"].max()
        else "BLiMP not asked, as every paradigm is edited"
    )
    return (
        "Criteria: percent right after a step → after the last one (intervals above). Abilities "
        f"after the last step: {pairs}, {span('known')} known facts, perplexity (ppl) on "
        f"{span('tokens')} tokens, KL at {span('neutral')} prompts, norm growth of the matrix that "
        f"grew most; {_span(sequences)} sequence{'s' if sequences.max() > 1 else ''}. Collapse: "
        "the first checkpoint with a perplexity over 10 times the unedited model's."
        + _broken_off(last)
    )


def _broken_off(last: pd.DataFrame) -> str:
    """Return how many sequences of each method ended early, in a sentence; "" for none."""
    names = [*map(shown, last["method"], last["variant"])]
    counts = [
        f"{(~ended).sum()} of {len(ended)} ({name} on {model})"
        for (name, model), ended in last.groupby([names, "model"], sort=False)["ended"]
        if not ended.all()
    ]
    if not counts:
        return ""
    return (
        " Sequences that broke off before their last step are left out of the abilities: "
        f"{', '.join(counts)}."
    )
