"""The board as Markdown, and as a compact table for the end of a run.

Facts and syntax stand apart; every figure has its interval, its n and the number of cases left
out of it; why they were left out is counted below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kn_bench.cases.case import CRITERIA, Task
from kn_bench.measure.statistics import Interval
from kn_bench.results import tables
from kn_bench.results.accounting import accounts
from kn_bench.results.board import READINGS, Figure, Line, board
from kn_bench.results.files import unwritable, write_text
from kn_bench.results.loading import Runs, load_runs
from kn_bench.results.manifest import Manifest
from kn_bench.results.protocol_board import protocol_sections

TITLES: dict[Task, str] = {"fact": "Facts", "pair": "Syntax"}
HOW = """\
Each figure is a mean over cases, each case the mean of its probes, with a 95 % interval by \
bootstrap over clusters (subjects for facts, the agreeing noun for pairs); n is the number of \
cases, *out* the number that had to be left out of it, *n/a* the number to which criterion or \
method does not apply, with reasons under [Left out](#left-out). *Score* is the harmonic mean of \
the first five criteria, all attempted edits pooled; what the model knew before is told apart \
under *By what was known*. *Overturn* is the share of right answers that the edit overturns, \
*shift* the mean shift of probability towards the new answer within the pair, over the same \
cases. Facts are judged by what the model generates, minimal pairs by its preference within the \
pair.
"""
HEADERS = ("method", "model", *CRITERIA[:5], "score", "overturn", "shift", "s/edit")


def write_leaderboard(folders: Sequence[Path], target: Path, *, judge_again: bool = False) -> Runs:
    """The board of the runs in ``folders``, as Markdown in ``target``; see :func:`load_runs`.

    The curves of sequences are drawn beside it.

    Raises:
        StoreError: when a run cannot be read or ``target`` cannot be written.
    """
    runs = load_runs(folders, judge_again=judge_again)
    figures: list[Path] = []
    if len(runs.curves):
        from kn_bench.results.curves import draw  # matplotlib is slow to import

        try:
            figures = draw(runs, target.parent)
        except OSError as error:
            raise unwritable(target.parent, error) from None
    write_text(target, leaderboard(runs, figures))
    return runs


def leaderboard(runs: Runs, figures: Sequence[Path] = ()) -> str:
    """The whole document; ``figures`` lie beside it."""
    lines = board(runs)
    parts = ["# Leaderboard\n", HOW]
    if not runs.measured:
        parts.append("Nothing has been measured.\n")
    for task, title in TITLES.items():
        if chosen := [line for line in lines if line.name.task == task]:
            parts += [f"## {title}\n", main_table(chosen), *_details(chosen)]
    parts += protocol_sections(runs, main_table, figures)
    parts += ["## Left out\n", *accounts(runs)]
    parts += ["## Runs\n", _runs(runs.manifests)]
    if runs.doubled:
        parts.append(f"{runs.doubled} verdicts stand in several runs: the last named counts.\n")
    return "\n".join(parts)


def main_table(lines: Sequence[Line]) -> str:
    """A row a method and model."""
    rows = (
        (
            line.name.method,
            line.name.model,
            *(figure(line.criteria[criterion]) for criterion in CRITERIA[:5]),
            tables.interval(line.score),
            figure(line.criteria["overturn"]),
            tables.interval(line.shift, signed=True),
            tables.seconds(line.seconds),
        )
        for line in lines
    )
    return tables.markdown(HEADERS, rows, left=2)


def figure(value: Figure) -> str:
    """A figure with its n and how many cases were left out, or cannot have it."""
    if not value.interval.n and not value.out:
        return "n/a" if value.not_applicable else ""
    beside = [f"{value.out} out"] if value.out else []
    beside += [f"{value.not_applicable} n/a"] if value.not_applicable else []
    text = tables.interval(value.interval)
    return f"{text} ({', '.join(beside)})" if beside else text


def _details(lines: Sequence[Line]) -> Iterator[str]:
    """The tables below a task's board."""
    yield "### By what was known\n"
    known = ("{} known", "{} not known")
    headers = [text.format(name) for name in CRITERIA[:3] for text in known]
    headers += [text.format(name) for name in ("synonym",) for text in known]
    headers += ["symmetry, inverse known", "symmetry, inverse not known"]
    yield _table(headers, lines, [line.strata for line in lines])
    yield "### Outcomes of symmetry\n"
    headers = ["new inverse learned", "old inverse revoked", "displaced inverse kept", "other"]
    yield _table(headers, lines, [line.symmetry for line in lines])
    yield "### Overturned answers\n"
    headers = ["generated", "within the pair", "vocabulary argmax", "wrong before, right after"]
    yield _table(headers, lines, [line.overturn for line in lines])
    yield "### Locality by neighbour\n"
    yield _neighbours(lines)
    yield "### The four readings of the literature\n"
    yield _readings(lines)


def _table(
    headers: Sequence[str], lines: Sequence[Line], values: Sequence[Sequence[Interval]]
) -> str:
    rows = (
        (line.name.method, line.name.model, *map(tables.interval, figures))
        for line, figures in zip(lines, values, strict=True)
    )
    return tables.markdown(("method", "model", *headers), rows, left=2)


def _neighbours(lines: Sequence[Line]) -> str:
    kinds = list(dict.fromkeys(kind for line in lines for kind in line.neighbours))
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)
    rows = (
        (
            line.name.method,
            line.name.model,
            *(tables.interval(line.neighbours.get(kind, nothing)) for kind in kinds),
            tables.interval(line.kl, digits=3),
        )
        for line in lines
    )
    names = (kind.replace("_", " ") for kind in kinds)
    return tables.markdown(("method", "model", *names, "mean KL (nats)"), rows, left=2)


def _readings(lines: Sequence[Line]) -> str:
    rows = (
        (line.name.method, line.name.model, criterion, *map(tables.interval, values))
        for line in lines
        for criterion, values in line.readings.items()
    )
    return tables.markdown(("method", "model", "criterion", *READINGS), rows, left=3)


def _runs(manifests: Sequence[Manifest]) -> str:
    return "\n".join(_run(manifest) for manifest in manifests)


def _run(m: Manifest) -> str:
    """One run as a list of what it was made of."""
    about = {
        "begun": f"{m.created[:16].replace('T', ' ')} UTC"
        + ("" if m.finished else ", not finished"),
        "models": _hashes(m.models),
        "data": _hashes(m.data),
        "options": ", ".join(f"{k}={v}" for k, v in m.options.items() if v) or "defaults",
        "seed": str(m.seed),
        "code": f"`{m.code[:8]}`" if m.code else "",
        "versions": ", ".join(f"{name} {version}" for name, version in m.versions.items()),
        "machine": ", ".join(
            (f"{m.host.system} {m.host.machine}", f"{m.host.cpus} CPUs", *m.host.devices)
        ),
        "time": ", ".join(f"{phase} {tables.seconds(t)} s" for phase, t in m.timings.items()),
    }
    items = "".join(f"  - {name}: {value}\n" for name, value in about.items() if value)
    return f"- **{m.run}**\n{items}"


def _hashes(named: Mapping[str, str]) -> str:
    return ", ".join(f"{name} `{value[:8]}`" for name, value in named.items())


# --- the terminal ------------------------------------------------------------------------------

SHORT = ("relia.", "gener.", "local.", "symm.", "synon.", "score", "overt.", "shift", "s/edit")


def terminal_table(runs: Runs) -> str:
    """The board in percent, two lines a row: a figure with n, and its interval."""
    parts = []
    named = [("", runs)]
    named += [(f"{s.protocol}, {s.asked}, ", s.runs) for s in runs.sections]
    for name, of_protocol in named:
        lines = board(of_protocol)
        for task, title in TITLES.items():
            rows = [_short_row(line) for line in lines if line.name.task == task]
            if rows:
                about = f"{name}{title.lower()}" if name else title
                parts.append(f"{about}: % (n, left out), 95 % interval\n")
                parts.append(tables.plain(("method", "model", *SHORT), rows, left=2) + "\n")
    return "\n".join(parts)


def _short_row(line: Line) -> list[str]:
    cells = [_short(line.criteria[criterion]) for criterion in CRITERIA[:5]]
    cells.append(_percent(line.score))
    cells.append(_short(line.criteria["overturn"]))
    cells.append(_percent(line.shift))
    return [line.name.method, line.name.model, *cells, tables.seconds(line.seconds)]


def _short(value: Figure) -> str:
    if not value.interval.n and not value.out:
        return "n/a" if value.not_applicable else ""
    return _percent(value.interval, value.out)


def _percent(value: Interval, out: int = 0) -> str:
    """``88 (40)`` or, with cases left out, ``88 (38,2)``, above ``[75,98]``."""
    n = f"({value.n},{out})" if out else f"({value.n})"
    if math.isnan(value.mean):
        return f"{tables.NOTHING} {n}" if out else tables.NOTHING
    low, high, mean = (tables.number(100 * x, 0) for x in (value.low, value.high, value.mean))
    return f"{mean} {n}\n[{low},{high}]"
