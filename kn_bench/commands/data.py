"""``kn-bench data``: what cases there are, and whether a file of your own can be read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kn_bench.cases.case import Selection

app = typer.Typer(add_completion=False)
HEADERS = ("source", "relations", "cases", "probes", "excluded", "SHA-256 of the cases")


@app.command()
def command(
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            help="As --cases takes them: blimp=FOLDER, your own JSONL file, ...; by default all "
            "sources that need no file of yours."
        ),
    ] = None,
    by_relation: Annotated[
        bool, typer.Option("--by-relation", help="A row for each relation and paradigm.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch what is not in the cache yet.")
    ] = False,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
) -> None:
    """List the sources of cases with their counts and hashes, and why anything is excluded.

    A file of your own is read and checked: what is wrong is said with its line.
    """
    from kn_bench.cases import sources
    from kn_bench.results import tables

    layout = tables.markdown if markdown else tables.plain
    body: list[tuple[str, ...]] = []
    excluded: Counter[tuple[str, str]] = Counter()
    absent = []
    for spec in cases or [name for name, one in sources.SOURCES.items() if not one.needs_path]:
        source, path = sources.parse(spec)
        if path is None and not fetch and not source.in_cache():
            absent.append(spec)
            continue
        found = sources.load(spec)
        body += rows(spec, found, by_relation=by_relation)
        excluded.update((spec, one.reason) for one in found.exclusions)
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


def rows(spec: str, found: Selection, *, by_relation: bool) -> list[tuple[str, ...]]:
    """A row for the source, or one for each of its relations."""
    from kn_bench.cases.sources import content_hash

    if not by_relation:
        relations = len({case.relation for case in found.cases})
        probes = sum(len(case.probes) for case in found.cases)
        counts = (relations, len(found.cases), probes, len(found.exclusions))
        return [(spec, *map(str, counts), content_hash(found.cases))]
    left_out = Counter(_relation(one.case, spec) for one in found.exclusions)
    listed = []
    for id in sorted({case.relation for case in found.cases} | set(left_out)):
        members = [case for case in found.cases if case.relation == id]
        probes = sum(len(case.probes) for case in members)
        numbers = map(str, (len(members), probes, left_out[id]))
        listed.append((spec, id, *numbers, content_hash(members)))
    return listed


def _relation(case: str, spec: str) -> str:
    """The relation in a case's id, ``source/relation/subject``."""
    parts = case.split("/")
    return parts[1] if len(parts) > 1 else spec
