"""Render a study in Markdown, as the ``README.md`` that code hosts show for a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kn_bench.results import tables
from kn_bench.study.writing import WrittenSection


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
        stands_for = f"**{figure.paper} of the paper.** " if figure.paper else ""
        yield from (f"![{figure.name}]({section.id}/{figure.name}.png)", "")
        yield from (stands_for + figure.caption, "")
    for table in section.tables:
        if table.rows:
            summary = f"<summary>{table.name}</summary>"
            yield from ("<details>", summary, "", table.described, "")
            yield from (tables.markdown(table.headers, table.rows, table.left), "</details>", "")
    for note in section.notes:
        yield from (f"*{note}*", "")
