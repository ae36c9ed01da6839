"""The board's sections of protocols of several edits: one each, never mixed with another.

criteria   immediate beside retained, and their difference on the same cases
ability    what the model can still do at the last checkpoint, and when it collapsed
curves     the figures of kn_bench.results.curves, where they are written
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from kn_bench.cases.case import Task
from kn_bench.measure.protocols import parse_protocol
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.results import tables
from kn_bench.results.accounting import accounts
from kn_bench.results.board import Line, board
from kn_bench.results.comparison import COLUMNS, compare
from kn_bench.results.loading import Runs, Section

TITLES: dict[Task, str] = {"fact": "Facts", "pair": "Syntax"}
CURVE = ["model", "method", "task", "sequence"]
ABILITY = ("retained", "blimp", "perplexity", "kl", "known")
"""Columns of a checkpoint that are shown, see :class:`~kn_bench.measure.measurement.Checkpoint`."""


def protocol_sections(
    runs: Runs,
    main_table: Callable[[Sequence[Line]], str],
    figures: Sequence[Path] = (),
) -> Iterator[str]:
    """The parts of the document, in Markdown; nothing where every edit was taken back at once.

    Args:
        runs: what was measured.
        main_table: the board's own, for protocols that are asked once.
        figures: files of curves, beside the document; see :func:`kn_bench.results.curves.draw`.
    """
    for protocol, same in groupby(runs.sections, key=lambda section: section.protocol):
        sections = {section.asked: section for section in same}
        first = next(iter(sections.values()))
        many = "sequence" if parse_protocol(protocol).name == "sequence" else "batch"
        plural = "es" if many == "batch" else "s"
        yield f"## Protocol {protocol}\n"
        yield (
            f"{parse_protocol(protocol).in_words().capitalize()}. "
            f"{first.sequences} {many}{plural if first.sequences > 1 else ''} a model and task"
            + (f"; intervals cluster by {many}.\n" if first.sequences > 1 else
               f"; intervals cluster by subject or noun, within this one {many}.\n")
        )  # fmt: skip
        if len(sections) == 2:
            yield from _side_by_side(sections["immediate"], sections["retained"])
        else:
            yield from _once(first, main_table)
        curves = curves_of(runs, protocol)
        if len(curves):
            yield "### Ability at the last checkpoint\n"
            yield _ability(curves)
        for path in figures:
            if slug(protocol) in path.name and path.suffix == ".svg":
                yield f"![Curves of {protocol}]({path.name})\n"
        yield f"### Left out of {protocol}\n"
        yield from accounts(first.runs)


def slug(protocol: str) -> str:
    """``sequence_100_5`` of ``sequence:100/5``."""
    return protocol.replace(":", "_").replace("/", "_")


def _side_by_side(immediate: Section, retained: Section) -> Iterator[str]:
    found = compare(_scores(immediate), _scores(retained))
    for task, title in TITLES.items():
        rows = [
            (
                c.group.method,
                c.group.model,
                c.group.criterion,
                tables.interval(c.first),
                tables.interval(c.second),
                tables.mean(c.difference, signed=True),
                tables.p_value(c.p_holm),
            )
            for c in found
            if c.group.task == task
        ]
        if rows:
            headers = (
                "method", "model", "criterion", "immediate", "retained", "difference", "p (Holm)"
            )  # fmt: skip
            yield f"### {title}, immediate and retained\n"
            yield tables.markdown(headers, rows, left=3)


def _scores(section: Section) -> pd.DataFrame:
    """Both times of asking under one name, so that they are held against each other."""
    verdicts = section.runs.verdicts
    scored = verdicts[verdicts["verdict_score"].notna()].assign(protocol=section.protocol)
    return scored.rename(columns={"verdict_score": "score"})[COLUMNS]


def _once(section: Section, main_table: Callable[[Sequence[Line]], str]) -> Iterator[str]:
    lines = board(section.runs)
    for task, title in TITLES.items():
        if chosen := [line for line in lines if line.name.task == task]:
            yield f"### {title}\n"
            yield main_table(chosen)


# -- ability -----------------------------------------------------------------------------------


def curves_of(runs: Runs, protocol: str) -> pd.DataFrame:
    """The checkpoints of one protocol, with the norm growth of the matrix that grew most."""
    curves = runs.curves
    if not len(curves):
        return curves
    curves = curves[curves["protocol"] == protocol]
    growth = [max((n["relative"] for n in norms), default=0.0) for norms in
              curves["checkpoint_norms"]]  # fmt: skip
    return curves.assign(growth=growth)


def _ability(curves: pd.DataFrame) -> str:
    headers = (
        "method", "model", "task", "edits", "retained", "BLiMP", "perplexity (unedited)",
        "KL, neutral prompts", "known facts", "|dW|/|W|", "collapsed",
    )  # fmt: skip
    rows = []
    for (model, method, task), group in curves.groupby(["model", "method", "task"], sort=False):
        last = group.sort_values("step").groupby("sequence").tail(1)
        first = group[group["step"] == 0]
        retained, blimp, perplexity, kl, known = (
            over_sequences(last[f"checkpoint_{name}"]) for name in ABILITY
        )
        before = over_sequences(first["checkpoint_perplexity"])
        rows.append(
            (
                method,
                model,
                task,
                str(int(last["checkpoint_edits"].max())),
                tables.mean(retained),
                tables.mean(blimp),
                f"{tables.mean(perplexity, 1)} ({tables.number(before.mean, 1)})",
                tables.mean(kl, 3),
                tables.mean(known),
                tables.mean(over_sequences(last["growth"])),
                _collapse(last["checkpoint_collapsed_at"]),
            )
        )
    return tables.markdown(headers, rows, left=3)


def over_sequences(values: pd.Series[float]) -> Interval:
    """The mean over sequences, with an interval where there are several."""
    clusters = [str(i) for i in range(len(values))]
    return mean_interval(values.to_numpy(float), clusters, bounds=None)


def _collapse(steps: pd.Series[int]) -> str:
    """``no``; or the step, over several sequences how many collapsed and when the first did."""
    collapsed = steps[steps > 0]
    if not len(collapsed):
        return "no"
    at = f"by step {int(collapsed.min())}"
    return at if len(steps) == 1 else f"{len(collapsed)} of {len(steps)}, first {at}"
