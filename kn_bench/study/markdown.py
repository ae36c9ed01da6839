"""Render a study in Markdown, as the ``README.md`` that code hosts show for a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kn_bench.results import tables
from kn_bench.study.writing import WrittenFigure, WrittenSection, WrittenTable


def index_markdown(model: str, sections: Sequence[WrittenSection]) -> str:
    """Return the text and figures of all ``sections``, and the shown rows of each table, folded."""
    lines = [f"# What the knowledge neurons of {model} are, and are not", ""]
    for number, section in enumerate(sections, 1):
        lines += [f"## {number}. {section.title}", "", *_body(section)]
    return "\n".join(lines).rstrip() + "\n"


def _body(section: WrittenSection) -> Iterator[str]:
    if section.question:
        yield from (section.question, "")
    if section.findings:
        yield from (*(f"- {sentence}" for sentence in section.findings), "")
    for figure in section.figures:
        yield from _figure(section.id, figure)
    for table in section.tables:
        if table.rows:
            yield from _table(table)
    for note in section.notes:
        yield from (f"*{note}*", "")


def _figure(folder: str, figure: WrittenFigure) -> Iterator[str]:
    stands_for = f"**{figure.paper} of the paper.** " if figure.paper else ""
    yield from (f"![{figure.name}]({folder}/{figure.name}.png)", "")
    yield from (stands_for + figure.caption, "")


def _table(table: WrittenTable) -> Iterator[str]:
    more = f" {table.omitted} more rows are in {table.name}.csv." if table.omitted else ""
    yield from ("<details>", f"<summary>{table.name}</summary>", "", table.caption + more, "")
    yield from (tables.markdown(table.headers, table.rows, table.left), "</details>", "")
