"""``kn-bench data``: the sources of cases, and a check of your own files."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from kn_bench.commands import options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kn_bench.cases.case import Case, Probe, Selection

app = typer.Typer(add_completion=False)
HEADERS = ("source", "relations", "cases", "probes", "excluded", "SHA-256 of the cases")
WIDTH = 100


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
    examples: Annotated[
        int, typer.Option(help="Cases of each file or folder to print as they are asked.", min=0)
    ] = 3,
    markdown: options.Markdown = False,
) -> None:
    """List sources of cases with counts, hashes, what they lack, and the reasons for exclusions.

    A file of your own is read and checked; errors name the line. Three of its cases are printed as
    they will be asked.
    """
    from kn_bench.cases import sources
    from kn_bench.cases.case import by_label

    overview = Overview()
    known = [name for name, known in sources.SOURCES.items() if not known.needs_path]
    for spec in dict.fromkeys(cases or known):
        source, path = sources.parse(spec)
        if path is None and not fetch and not source.in_cache():
            overview.absent.append(spec)
            continue
        selection = sources.load(spec)
        by_label(selection.cases)  # refuses what a run would refuse
        overview.add(spec, selection, by_relation=by_relation)
        if path is not None:
            overview.add_own(spec, selection, examples)
    overview.print(markdown=markdown)


@dataclass
class Overview:
    """What the sources offer.

    Attributes:
        rows: the rows of the table of sources.
        excluded: for each source and reason, how many cases or probes were left out.
        lacking: how many of the user's own cases have no question, counted by source, criterion
            and reason.
        shown: the cases to print as they will be asked.
        absent: the sources that are not in the cache.
    """

    rows: list[tuple[str, ...]] = field(default_factory=list)
    excluded: Counter[tuple[str, str]] = field(default_factory=Counter)
    lacking: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    shown: list[Case] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def add(self, spec: str, selection: Selection, *, by_relation: bool) -> None:
        """Count the cases of a source."""
        self.rows += rows(spec, selection, by_relation=by_relation)
        self.excluded.update((spec, exclusion.reason) for exclusion in selection.exclusions)

    def add_own(self, spec: str, selection: Selection, examples: int) -> None:
        """Count what the user's own cases lack, and keep some of them as examples."""
        self.lacking.update(
            (spec, criterion, reason)
            for case in selection.cases
            for criterion, reason in case.not_applicable.items()
        )
        self.shown += spread(selection.cases, examples)

    def print(self, *, markdown: bool) -> None:
        """Print the tables, the examples, and how to get what is absent."""
        from kn_bench.results import tables

        layout = tables.markdown if markdown else tables.plain
        if self.rows:
            typer.echo(layout(HEADERS, self.rows))
        if self.lacking:
            listed = [(*key, str(n)) for key, n in self.lacking.most_common()]
            typer.echo(
                "\n" + layout(("source", "criterion", "not asked because", "cases"), listed, 3)
            )
        if self.excluded:
            reasons = [(spec, reason, str(n)) for (spec, reason), n in self.excluded.most_common()]
            typer.echo("\n" + layout(("source", "excluded because", "cases or probes"), reasons, 2))
        for case in self.shown:
            typer.echo("\n" + "\n".join(as_asked(case)))
        for spec in self.absent:
            typer.echo(
                f"\n{spec} is not in the cache: `kn-bench data {spec} --fetch` fetches it, or give "
                f"a folder of its files, {spec}=FOLDER"
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


def spread(cases: Sequence[Case], n: int) -> list[Case]:
    """Return ``n`` cases at even distances, the first among them."""
    n = min(n, len(cases))
    return [cases[i * len(cases) // n] for i in range(n)]


def as_asked(case: Case) -> Iterator[str]:
    """Yield a case as lines of text: the edit, then every question with what it expects."""
    request = case.request
    before = request.target_true if request.true_is_known else "not in the data"
    yield _line(case.id, f"edit to {request.target_new!r} (before: {before!r})", "")
    for probe in case.probes:
        question = probe.cloze.fill("▁").replace("\n", "\\n")  # a line break would read as a space
        yield _line(probe.id, question, f"→ {expectation(probe)}")


def expectation(probe: Probe) -> str:
    """Return what the answer to a probe is compared with, in words."""
    from kn_bench.cases.building.rows import CONDITION

    if probe.kind == "old_inverse":
        return f"no longer {probe.expected!r}"
    others = f" ({len(probe.aliases)} more names count)" if probe.aliases else ""
    if probe.criterion == "locality":
        return f"unchanged (true: {probe.expected!r}){others}"
    if probe.kind == CONDITION:
        return f"{probe.expected!r} from the unedited model, or the question does not count"
    return f"{probe.expected!r}, not {probe.rejected!r}{others}"


def _line(name: str, question: str, expected: str) -> str:
    from kn_bench.results.escaping import terminal

    return textwrap.fill(
        terminal(f"{question} {expected}".strip()),
        WIDTH,
        initial_indent=f"{terminal(name)}  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )


def _relation(case: str, spec: str) -> str:
    """Return the relation in a case's id, ``source/relation/subject``."""
    parts = case.split("/")
    return parts[1] if len(parts) > 1 else spec
