"""The board in 60 lines of 120 characters, for a README, a pull request and a terminal.

One table for facts, one for syntax, one more of each for every further protocol. What no criterion
shows to be better than chance damage is named in a line below its table. Everything else (strata,
readings, exclusions, errors, every answer) is on the page; the exports have all figures.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kn_bench.cases.case import CRITERIA, Task
from kn_bench.measure.statistics import Interval
from kn_bench.results import abilities, escaping, tables
from kn_bench.results.abilities import ability_tables
from kn_bench.results.board import SCORED, Figure, Line, board, has_control
from kn_bench.results.files import unwritable, write_text
from kn_bench.results.further import markdown_section
from kn_bench.results.loading import Runs, load_runs
from kn_bench.results.manifest import Manifest

LINES, WIDTH = 60, 120
"""What a page in a pull request, or a terminal, has room for."""
NAME_WIDTH = 24
MARK = "°"
"""Stands behind a figure that is not significantly better than its control."""
TITLES: dict[Task, str] = {"fact": "Facts", "pair": "Syntax"}
HEADERS = (
    "method", "S", "K", "reliability", "generality", "locality", "symmetry", "synonym", "overturn",
)  # fmt: skip
HOW = """\
Percent with 95 % interval. S: harmonic mean of reliability, generality and locality; K: mean of \
symmetry and synonym, what an edit of knowledge would have to reach. {}; an equal rank is a tie."""
COMPARED = f"""\
{MARK}: not significantly better than a random edit of equal size on the same cases (paired, \
Holm). Ranked by how many of the five in S and K are, then S, then K"""
NOT_COMPARED = "Nothing was compared with a random edit of equal size."
PAGE = "leaderboard.html"
SHOWN_RUNS = 3


def write_markdown(runs: Runs, target: Path) -> None:
    """Write the board of ``runs`` as Markdown to ``target``.

    Raises:
        StoreError: when it cannot be written.
    """
    write_text(target, leaderboard(runs))


def write_leaderboard(folders: Sequence[Path], target: Path, *, judge_again: bool = False) -> Runs:
    """Write the board of the runs in ``folders`` as Markdown to ``target``; see :func:`load_runs`.

    The curves of sequences are drawn beside it.

    Raises:
        StoreError: when a run cannot be read or ``target`` cannot be written.
    """
    runs = load_runs(folders, judge_again=judge_again, explained=False)
    if len(runs.curves):
        from kn_bench.results.curves import draw  # matplotlib is slow to import

        try:
            draw(runs, target.parent)
        except OSError as error:
            raise unwritable(target.parent, error) from None
    write_markdown(runs, target)
    return runs


# --- what is in the tables ---------------------------------------------------------------------


class TableName(NamedTuple):
    """What one table is about."""

    task: Task
    protocol: str
    asked: str

    def __str__(self) -> str:
        title = TITLES[self.task]
        if self.protocol == "single":
            return title
        when = f", {self.asked}" if self.protocol.startswith("sequence") else ""
        return f"{title}, {self.protocol}{when}"


@dataclass(frozen=True, slots=True)
class BoardTable:
    """One table: the lines that are shown, and what is only named.

    Attributes:
        name: what it is about.
        lines: the shown ones, by model.
        by_chance: of each model, the methods no better than chance damage in any criterion.
        alone: of each model, the shown methods that have no control, where others have one.
        further: lines that there is no room for.
        counts: of each criterion the fewest and the most cases behind a figure.
    """

    name: TableName
    lines: tuple[Line, ...]
    by_chance: tuple[tuple[str, tuple[str, ...]], ...]
    alone: tuple[tuple[str, tuple[str, ...]], ...]
    further: int
    counts: tuple[tuple[str, int, int], ...]

    @property
    def length(self) -> int:
        """Lines of text: title, n, header, rule, a row a line and model, what is only named."""
        models = len({line.name.model for line in self.lines})
        named = len(self.by_chance) + len(self.alone) + bool(self.further)
        return 8 + len(self.lines) + models + named


def board_tables(lines: Sequence[Line], room: int) -> list[BoardTable]:
    """Return the tables of the board in at most ``room`` lines of text, the best lines kept."""
    names = list(dict.fromkeys(_table_name(line) for line in lines))
    most = max(Counter((_table_name(n), n.name.model) for n in lines).values(), default=0)
    compared = has_control(lines)
    result: list[BoardTable] = []
    for each in range(most, 0, -1):
        result = [
            _table(name, [n for n in lines if _table_name(n) == name], each, compared=compared)
            for name in names
        ]
        if sum(table.length for table in result) <= room:
            break
    return result


def _room(lines: Sequence[Line]) -> int:
    """Return the lines of text for the tables: a page for each protocol and time of asking."""
    return LINES * len({(line.name.protocol, line.name.asked) for line in lines})


def _table_name(line: Line) -> TableName:
    return TableName(line.name.task, line.name.protocol, line.name.asked)


def _table(name: TableName, lines: Sequence[Line], each: int, *, compared: bool) -> BoardTable:
    """Return the table with ``each`` lines a model at the most.

    Args:
        compared: whether some lines of the board have a control.
    """
    shown: list[Line] = []
    by_chance: dict[str, list[str]] = {}
    alone: dict[str, list[str]] = {}
    taken: Counter[str] = Counter()
    some_are_better = any(line.beating for line in lines)
    for line in lines:
        if some_are_better and _is_by_chance(line):
            by_chance.setdefault(line.name.model, []).append(line.name.shown)
        elif taken[line.name.model] < each:
            taken[line.name.model] += 1
            shown.append(line)
            if compared and is_alone(line):
                alone.setdefault(line.name.model, []).append(line.name.shown)
    named = sum(map(len, by_chance.values()))
    return BoardTable(
        name,
        tuple(shown),
        tuple((model, tuple(methods)) for model, methods in by_chance.items()),
        tuple((model, tuple(methods)) for model, methods in alone.items()),
        len(lines) - named - len(shown),
        tuple(_counts(lines)),
    )


def _is_by_chance(line: Line) -> bool:
    """Tell whether there is a control, and no criterion is significantly better."""
    return not line.beating and any(line.criteria[c].no_better for c in SCORED)


def is_alone(line: Line) -> bool:
    """Tell whether there are scores, and no control to compare them with."""
    return not line.controlled and any(line.criteria[c].interval.n for c in SCORED)


def _counts(lines: Sequence[Line]) -> Iterator[tuple[str, int, int]]:
    for criterion in CRITERIA:
        n = [line.criteria[criterion].interval.n for line in lines]
        measured = [each for each in n if each]
        if measured:
            yield criterion, min(measured), max(measured)


def table_rows(table: BoardTable, width: int = NAME_WIDTH) -> Iterator[tuple[str, ...]]:
    """Yield a heading a model, and a row a line, names cut to ``width``."""
    model = None
    for line in table.lines:
        if line.name.model != model:
            model = line.name.model
            yield (tables.short(model, width - 2), *[""] * (len(HEADERS) - 1))
        yield (
            f"{line.rank:>2} {tables.short(line.name.shown, width)}",
            percent(line.s),
            percent(line.k),
            *(figure(line.criteria[criterion]) for criterion in CRITERIA),
        )


def figure(value: Figure) -> str:
    """Return ``93° 88–97``: a mean, a mark where chance does as well, and its interval."""
    return percent(value.interval, MARK if value.no_better else "")


def percent(value: Interval, mark: str = "") -> str:
    """Return a rate in percent with its interval; a dash where there is none."""
    if math.isnan(value.mean):
        return tables.NOTHING
    mean, low, high = (tables.number(100 * x, 0) for x in value[:3])
    return f"{mean}{mark}" if math.isnan(value.low) else f"{mean}{mark} {low}–{high}"


def n_sentence(table: BoardTable) -> str:
    """Return ``n = 28 cases (symmetry 20 to 22)``: what is behind the figures of the table."""
    if not table.counts:
        return "No case has a score."
    spans = [(criterion, f"{a}" if a == b else f"{a} to {b}") for criterion, a, b in table.counts]
    (usual, _), *_ = Counter(span for _, span in spans).most_common(1)
    unlike = [f"{criterion} {span}" for criterion, span in spans if span != usual]
    return f"n = {usual} cases" + (f" ({', '.join(unlike)})" if unlike else "") + "."


def below(table: BoardTable) -> Iterator[str]:
    """Yield what is only named."""
    for model, methods in table.by_chance:
        yield f"Like chance damage in every criterion on {model}: {_methods(methods)}."
    for model, methods in table.alone:
        yield no_control(model, methods)
    if table.further:
        yield f"{table.further} further rows are on the page."


def no_control(model: str, methods: Sequence[str]) -> str:
    """Name the methods that are compared with nothing, where others have a control."""
    return (
        f"No control on {model}, so no {MARK} and a rank after all that have one: "
        f"{_methods(methods)}."
    )


def _methods(names: Sequence[str]) -> str:
    """Return the names as such: one method is called none."""
    return f"the method{'s' if len(names) > 1 else ''} {', '.join(names)}"


def notes(runs: Runs) -> Iterator[str]:
    """Yield what a reader must know of the whole: what is missing, repeated or shown apart."""
    status = Counter(runs.verdicts["verdict_status"].value_counts().to_dict())
    failed = status["error"] + len(runs.crashes)
    if failed or status["excluded"]:
        yield (f"{status['excluded']} verdicts excluded, {failed} errors: reasons are on the page.")
    if runs.doubled:
        yield f"{runs.doubled} verdicts stand in several runs made of the same; each counts once."
    yield from runs.apart[:2]
    yield from runs.cut


# --- Markdown ----------------------------------------------------------------------------------


def leaderboard(runs: Runs) -> str:
    """Return the whole document: at most 60 lines of at most 120 characters a protocol."""
    lines = board(runs)
    ranked = COMPARED if has_control(lines) else f"{NOT_COMPARED} Ranked by S, then K"
    head = ["# Leaderboard", "", *_wrapped(HOW.format(ranked)), ""]
    foot = [*(line for note in notes(runs) for line in _wrapped(escaping.markdown(note)))]
    foot += ["", *_runs(runs.manifests)]
    if not lines:
        return "\n".join([*head, "Nothing has been measured.", *foot]) + "\n"
    body: list[str] = []
    further = [_cut(text) for text in markdown_section(runs, WIDTH)]
    for table in board_tables(lines, _room(lines) - len(head) - len(foot) - len(further)):
        body += [f"## {escaping.markdown(str(table.name))}", "", n_sentence(table), ""]
        body += [*_markdown(table_rows(table)), ""]
        body += [_cut(escaping.markdown(text)) for text in below(table)]
        body += [""] if body[-1] else []
    for ability in ability_tables(runs, lines, TITLES):
        body += [f"## {escaping.markdown(ability.title)}", ""]
        body += [*_wrapped(escaping.markdown(ability.sentence)), ""]
        body += [*_markdown(ability.rows, abilities.HEADERS), ""]
    return "\n".join([*head, *body, *further, *foot]) + "\n"


def _markdown(rows: Iterable[tuple[str, ...]], headers: Sequence[str] = HEADERS) -> Iterator[str]:
    """Yield a table without spaces beside its bars: 120 characters hold nine columns."""
    heads = [escaping.markdown(header) for header in headers]
    body = [[escaping.markdown(cell) for cell in row] for row in rows]
    # a rule needs room for a hyphen beside its colon
    widths = [max(2, *(len(row[i]) for row in (heads, *body))) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "|".join(["", first[0].ljust(first[1]), *(c.rjust(w) for c, w in others), ""])

    yield line(heads)
    yield "|".join(
        ["", ":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:]), ""]
    )
    for row in body:
        heading = not any(row[1:])
        yield line([f"**{row[0]}**", *row[1:]] if heading else row)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2, break_long_words=True, break_on_hyphens=False)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _runs(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield a line a run; the page has the rest of the manifests."""
    shown = manifests[-SHOWN_RUNS:]
    for m in shown:
        about = [
            f"{m.created[:16].replace('T', ' ')} UTC" + ("" if m.finished else ", not finished"),
            f"seed {m.seed}",
            *(f"{name} {value[:8]}" for name, value in (*m.models.items(), *m.data.items())),
            f"code {m.code[:8]}" if m.code else "",
        ]
        yield _cut(
            f"- {escaping.markdown(m.run)}: {escaping.markdown(', '.join(filter(None, about)))}"
        )
    if len(manifests) > len(shown):
        yield f"- and {len(manifests) - len(shown)} earlier runs"


# --- the terminal ------------------------------------------------------------------------------


def terminal_table(runs: Runs) -> str:
    """Return the tables of the board for a terminal."""
    parts = []
    lines = board(runs)
    for table in board_tables(lines, _room(lines) - 4):
        parts.append(
            f"{escaping.terminal(str(table.name))}: %, 95 % interval; {n_sentence(table)}\n"
        )
        parts.append(tables.plain(HEADERS, table_rows(table, NAME_WIDTH - 5), left=1))
        parts += [_cut(escaping.terminal(text)) for text in below(table)]
        parts.append("")
    for ability in ability_tables(runs, lines, TITLES):
        sentence = _wrapped(escaping.terminal(ability.sentence))
        parts += [escaping.terminal(ability.title), "", *sentence, ""]
        parts += [tables.plain(abilities.HEADERS, ability.rows, left=1), ""]
    if parts:
        mark = f"{MARK} not significantly better than a random edit of equal size"
        parts.append(mark if has_control(lines) else NOT_COMPARED)
    parts += [line for cut in runs.cut for line in _wrapped(escaping.terminal(cut))]
    return "\n".join(parts)
