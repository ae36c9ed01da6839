"""``kn-bench data``: the sources of cases, and a check of your own files."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from kn_bench.commands import options

if TYPE_CHECKING:
    from kn_bench.cases.case import Selection

app = typer.Typer(add_completion=False)
HEADERS = ("source", "relations", "cases", "probes", "excluded", "SHA-256 of the cases")


@app.command()
def command(
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sources as --cases takes them, such as blimp=FOLDER or your own JSONL file. "
            "Default: all sources that need no file of yours."
        ),
    ] = None,
    by_relation: Annotated[
        bool, typer.Option("--by-relation", help="Print one row per relation and paradigm.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download what is not in the cache yet.")
    ] = False,
    markdown: options.Markdown = False,
) -> None:
    """List sources of cases with counts, hashes and the reasons for exclusions.

    A file of your own is read and checked; errors name the line.
    """
    from kn_bench.cases import sources
    from kn_bench.results import tables

    layout = tables.markdown if markdown else tables.plain
    body: list[tuple[str, ...]] = []
    excluded: Counter[tuple[str, str]] = Counter()
    absent = []
    for spec in cases or [name for name, known in sources.SOURCES.items() if not known.needs_path]:
        source, path = sources.parse(spec)
        if path is None and not fetch and not source.in_cache():
            absent.append(spec)
            continue
        selection = sources.load(spec)
        body += rows(spec, selection, by_relation=by_relation)
        excluded.update((spec, exclusion.reason) for exclusion in selection.exclusions)
    if body:
        typer.echo(layout(HEADERS, body))
    if excluded:
        reasons = [(spec, reason, str(n)) for (spec, reason), n in excluded.most_common()]
        typer.echo("\n" + layout(("source", "excluded because", "cases or probes"), reasons, 2))
    for spec in absent:
        typer.echo(
            f"\n{spec} is not in the cache: `kn-bench data {spec} --fetch` fetches it, or give a "
            f"folder of its files, {spec}=FOLDER"
        )


def rows(spec: str, selection: Selection, *, by_relation: bool) -> list[tuple[str, ...]]:
    """Return one row for the source, or one for each of its relations."""
    from kn_bench.cases.sources import content_hash

    if not by_relation:
        relations = len({case.relation for case in selection.cases})
        probes = sum(len(case.probes) for case in selection.cases)
        counts = (relations, len(selection.cases), probes, len(selection.exclusions))
        return [(spec, *map(str, counts), content_hash(selection.cases))]
    left_out = Counter(_relation(exclusion.case, spec) for exclusion in selection.exclusions)
    listed = []
    for id in sorted({case.relation for case in selection.cases} | set(left_out)):
        members = [case for case in selection.cases if case.relation == id]
        probes = sum(len(case.probes) for case in members)
        numbers = map(str, (len(members), probes, left_out[id]))
        listed.append((spec, id, *numbers, content_hash(members)))
    return listed


def _relation(case: str, spec: str) -> str:
    """Return the relation in a case's id, ``source/relation/subject``."""
    parts = case.split("/")
    return parts[1] if len(parts) > 1 else spec
