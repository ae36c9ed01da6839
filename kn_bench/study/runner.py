"""Run the sections of a study into a folder; keep those already there that are still valid."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import kn_bench
from kn_bench.results.files import write_text
from kn_bench.results.manifest import hash_files
from kn_bench.study.html import index_html
from kn_bench.study.markdown import index_markdown
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section
from kn_bench.study.processes import Workers, in_processes
from kn_bench.study.writing import (
    WORDS,
    Origin,
    WrittenSection,
    is_whole,
    read_section,
    write_section,
)


@dataclass(frozen=True)
class Part:
    """A section to run.

    Attributes:
        id: name of the section and its folder.
        title: title shown while it runs.
        run: computes the section; it is pickled where another process computes it.
        sources: source files of the code that computes it.
    """

    id: str
    title: str
    run: Callable[[Material], Section]
    sources: tuple[Path, ...]


@dataclass(frozen=True)
class StudyStep:
    """A progress report: a section begins, is kept from an earlier run, or is done.

    Attributes:
        part: the section.
        number: number of sections done before.
        state: ``begins``, ``kept`` or ``done``.
        seconds: time it took.
    """

    part: Part
    number: int
    state: str
    seconds: float = 0.0


def run_study(
    material: Material,
    parts: Sequence[Part],
    folder: Path,
    *,
    workers: Workers | None = None,
    tell: Callable[[StudyStep], None] = lambda _: None,
    again: bool = False,
) -> list[WrittenSection]:
    """Run ``parts`` into ``folder`` and write its ``index.html`` and ``README.md``.

    Keep sections written earlier from the same cases, settings and code. The pages also hold the
    sections in ``folder`` that are not among ``parts``; those of other origin say so.

    Args:
        workers: processes to compute several sections at a time; None for this one alone.
        tell: called with every progress report.
        again: recompute all sections.

    Raises:
        ValueError: for a folder that holds the study of another model, before anything is computed;
            when a worker was killed.
    """
    origin = origin_of(material)
    refuse_another_model(folder, origin)
    written: dict[str, WrittenSection] = {}
    for part in parts:
        kept = None if again else kept_section(folder, part, origin)
        if kept is not None:
            tell(StudyStep(part, len(written), "kept", kept.seconds))
            written[part.id] = kept
    left = [part for part in parts if part.id not in written]

    def begins(part: Part) -> None:
        tell(StudyStep(part, len(written), "begins"))

    for part, section in _computed(
        material, left, partial(compute_into, folder, origin), workers, begins
    ):
        tell(StudyStep(part, len(written), "done", section.seconds))
        written[part.id] = section
    others = [carried(found, origin) for found in sections_in(folder) if found.id not in written]
    everything = in_order([*written.values(), *others], parts)
    write_text(folder / "index.html", index_html(material, everything, folder))
    write_text(folder / "README.md", index_markdown(material.lm.name, everything))
    return [written[part.id] for part in parts]


def kept_section(folder: Path, part: Part, origin: Origin) -> WrittenSection | None:
    """Return the section of ``folder`` that computing ``part`` would write again; None without."""
    kept = read_section(folder / part.id)
    if kept is None or kept.key != section_key(origin, part):
        return None
    return kept if is_whole(kept, folder / part.id) else None


def compute_into(folder: Path, origin: Origin, material: Material, part: Part) -> WrittenSection:
    """Compute ``part`` and write it to ``folder``."""
    started = time.perf_counter()
    try:
        section = part.run(material)
    except NothingToShow as reason:
        section = Section(part.id, part.title, "", (), notes=(str(reason),))
    seconds = time.perf_counter() - started
    return write_section(section, folder / part.id, section_key(origin, part), seconds, origin)


def _computed(
    material: Material,
    parts: Sequence[Part],
    compute: Callable[[Material, Part], WrittenSection],
    workers: Workers | None,
    begins: Callable[[Part], None],
) -> Iterator[tuple[Part, WrittenSection]]:
    """Yield each part with its section: in order, or from several processes as they are done."""
    if workers is not None and min(workers.number, len(parts)) > 1:
        yield from in_processes(material, parts, compute, workers, begins)
        return
    for part in parts:
        begins(part)
        yield part, compute(material, part)


def in_order(written: Sequence[WrittenSection], parts: Sequence[Part]) -> list[WrittenSection]:
    """Sort sections by the order of ``parts``, then the others by name."""
    places = {part.id: number for number, part in enumerate(parts)}
    return sorted(written, key=lambda section: (places.get(section.id, len(places)), section.id))


def sections_in(folder: Path) -> list[WrittenSection]:
    """Read the sections that ``folder`` holds, in the order of their names."""
    sections = (read_section(path.parent) for path in sorted(folder.glob(f"*/{WORDS}")))
    return [section for section in sections if section is not None]


def refuse_another_model(folder: Path, origin: Origin) -> None:
    """Refuse a folder that holds a section of other weights.

    Raises:
        ValueError: for the first such section; one whose weights were not recorded is let pass.
    """
    for section in sections_in(folder):
        theirs = section.origin
        if theirs.weights not in ("", origin.weights):
            raise ValueError(
                f"{folder}: expected the study of {origin.model} (weights {origin.weights[:12]}), "
                f"and its section {section.id} is of {theirs.model} (weights "
                f"{theirs.weights[:12]}); name another folder"
            )


def carried(section: WrittenSection, origin: Origin) -> WrittenSection:
    """Return a section of an earlier run, which begins with what may set it apart from this one."""
    if section.origin == Origin():
        remark = (
            "This section was written by an earlier version, which recorded neither its model nor "
            "its cases: they may be others than those of the last run."
        )
    elif section.origin.basis != origin.basis:
        remark = (
            "This section is of an earlier run: its cases, settings or code are not the last's."
        )
    else:
        return section
    return replace(section, question=f"{remark} {section.question}".rstrip())


def origin_of(material: Material) -> Origin:
    """Return what all sections of ``material`` depend on."""
    digest = hashlib.sha256(repr(sorted(case.id for case in material.cases)).encode())
    digest.update(repr(sorted(hash_of(case) for case in material.cases)).encode())
    settings = {name: _content(value) for name, value in asdict(material.settings).items()}
    digest.update(repr(settings).encode())
    package = Path(kn_bench.__file__).parent
    # the code: the library below the study, and the study's own modules
    below = ("cases", "model", "editing", "localise", "measure")
    files = {path for name in below for path in (package / name).glob("**/*.py")}
    files |= {*(package / "study").glob("*.py"), *(package / "edits").glob("*.py")}
    digest.update(hash_files(sorted(files), package.parent).encode())
    return Origin(material.lm.name, material.lm.content_hash, digest.hexdigest())


def _content(value: object) -> object:
    """Return the hash of a file's bytes in place of its path, any other setting as it is."""
    if not isinstance(value, Path) or not value.is_file():
        return value
    with value.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def section_key(origin: Origin, part: Part) -> str:
    """Return the SHA-256 of all that a section depends on: its origin and its own code."""
    digest = hashlib.sha256(f"{origin.weights} {origin.basis} ".encode())
    digest.update(hash_files(sorted(part.sources), Path(kn_bench.__file__).parent.parent).encode())
    return digest.hexdigest()


def hash_of(case: object) -> str:
    """Return the SHA-256 of a case's content, the same in every process."""
    return hashlib.sha256(repr(case).encode()).hexdigest()
