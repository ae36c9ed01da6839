r"""The board's tables for a paper: LaTeX with booktabs, one table a task and protocol.

The preamble needs ``\usepackage{booktabs}``. Names are escaped; nothing in them is a command.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from kn_bench.cases.case import CRITERIA
from kn_bench.measure.statistics import Interval
from kn_bench.results.board import Figure, Line, board, has_control
from kn_bench.results.escaping import terminal
from kn_bench.results.files import write_text
from kn_bench.results.leaderboard import MARK, NOT_COMPARED, TableName, is_alone, no_control
from kn_bench.results.loading import Runs

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
}  # fmt: skip
"""LaTeX's default encoding has no double straight quote."""
CAPTION = (
    r"{title}. Percent with 95\,\% intervals (bootstrap by cluster); {counts}. $S$: harmonic mean "
    r"of reliability, generality and locality; $K$: mean of symmetry and synonym. {compared}"
)
COMPARED = (
    r"$^\circ$: not significantly better than a random edit of equal size on the same cases "
    r"(paired permutation test, Holm)."
)


def escaped(text: str) -> str:
    """Return ``text`` for LaTeX's text mode, literally."""
    return "".join(SPECIAL.get(c, c if c.isprintable() else "?") for c in terminal(text))


def write_latex(runs: Runs, target: Path) -> None:
    """Write the tables to ``target``.

    Raises:
        StoreError: when it cannot be written.
    """
    write_text(target, latex(runs))


def latex(runs: Runs) -> str:
    """Return the tables of the board."""
    tables: dict[TableName, list[Line]] = {}
    for line in board(runs):
        name = TableName(line.name.task, line.name.protocol, line.name.asked)
        tables.setdefault(name, []).append(line)
    head = r"% needs \usepackage{booktabs}, and XeLaTeX or LuaLaTeX for names beyond Latin letters"
    return "\n\n".join([head, *(_table(name, lines) for name, lines in tables.items())]) + "\n"


def _table(name: TableName, lines: Sequence[Line]) -> str:
    columns = ("$S$", "$K$", *(criterion.capitalize() for criterion in CRITERIA))
    label = "".join(c for c in f"kn-bench-{name.task}-{name.protocol}-{name.asked}" if c != ":")
    compared = " ".join([COMPARED, *_alone(lines)]) if has_control(lines) else NOT_COMPARED
    caption = CAPTION.format(title=escaped(str(name)), counts=_counts(lines), compared=compared)
    parts = [
        r"\begin{table}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        rf"Method & {' & '.join(columns)} \\",
        *_rows(lines),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts)


def _alone(lines: Sequence[Line]) -> Iterator[str]:
    """Yield, a model a sentence, which rows have no control."""
    alone: dict[str, list[str]] = {}
    for line in filter(is_alone, lines):
        alone.setdefault(line.name.model, []).append(line.name.shown)
    for model, methods in alone.items():
        yield escaped(no_control(model, methods)).replace(MARK, r"$^\circ$")


def _rows(lines: Sequence[Line]) -> Iterator[str]:
    model = None
    for line in lines:
        if line.name.model != model:
            model = line.name.model
            yield f"\\midrule\n\\multicolumn{{9}}{{l}}{{\\emph{{{escaped(model)}}}}} \\\\"
        cells = [_interval(line.s), _interval(line.k)]
        cells += [_figure(line.criteria[criterion]) for criterion in CRITERIA]
        yield f"{escaped(line.name.shown)} & {' & '.join(cells)} \\\\"


def _figure(figure: Figure) -> str:
    return _interval(figure.interval, r"$^\circ$" if figure.no_better else "")


def _interval(value: Interval, mark: str = "") -> str:
    if math.isnan(value.mean):
        return "--"
    mean, low, high = (f"{100 * x:.0f}" for x in value[:3])
    ends = "" if math.isnan(value.low) else rf"\,{{\scriptsize[{low}, {high}]}}"
    return f"{mean}{mark}{ends}"


def _counts(lines: Sequence[Line]) -> str:
    n = [line.criteria[c].interval.n for line in lines for c in CRITERIA]
    measured = [each for each in n if each] or [0]
    fewest, most = min(measured), max(measured)
    return f"$n = {fewest}$" + (f" to ${most}$" if most > fewest else "") + " cases"
