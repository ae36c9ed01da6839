"""Run the sections of a study into a folder; keep those already there that are still valid."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import kn_bench
from kn_bench.results.files import write_text
from kn_bench.results.manifest import hash_files
from kn_bench.study.html import index_html
from kn_bench.study.markdown import index_markdown
from kn_bench.study.material import Material
from kn_bench.study.page import NothingToShow, Section
from kn_bench.study.writing import WrittenSection, read_section, write_section


@dataclass(frozen=True)
class Part:
    """A section to run.

    Attributes:
        id: name of the section and its folder.
        title: title shown while it runs.
        run: computes the section.
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
        number: number of sections before it.
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
    tell: Callable[[StudyStep], None] = lambda _: None,
    again: bool = False,
) -> list[WrittenSection]:
    """Run ``parts`` into ``folder`` and write its ``index.html`` and ``README.md``.

    Keep sections written earlier from the same model, cases, settings and code.

    Args:
        tell: called with every progress report.
        again: recompute all sections.
    """
    written = []
    for number, part in enumerate(parts):
        key = section_key(material, part)
        kept = None if again else read_section(folder / part.id)
        if kept is not None and kept.key == key:
            tell(StudyStep(part, number, "kept", kept.seconds))
            written.append(kept)
            continue
        tell(StudyStep(part, number, "begins"))
        started = time.perf_counter()
        try:
            section = part.run(material)
        except NothingToShow as reason:
            section = Section(part.id, part.title, "", (), notes=(str(reason),))
        seconds = time.perf_counter() - started
        written.append(write_section(section, folder / part.id, key, seconds))
        tell(StudyStep(part, number, "done", seconds))
    done = {section.id for section in written}
    on_disk = (read_section(path.parent) for path in sorted(folder.glob("*/section.json")))
    others = [section for section in on_disk if section is not None and section.id not in done]
    everything = in_order([*written, *others], parts)
    write_text(folder / "index.html", index_html(material, everything, folder))
    write_text(folder / "README.md", index_markdown(material.lm.name, everything))
    return written


def in_order(written: Sequence[WrittenSection], parts: Sequence[Part]) -> list[WrittenSection]:
    """Sort sections by the order of ``parts``, then the others by name."""
    places = {part.id: number for number, part in enumerate(parts)}
    return sorted(written, key=lambda section: (places.get(section.id, len(places)), section.id))


def section_key(material: Material, part: Part) -> str:
    """Return the SHA-256 of all that a section depends on: weights, cases, settings and code."""
    digest = hashlib.sha256(material.lm.content_hash.encode())
    digest.update(repr(sorted(case.id for case in material.cases)).encode())
    digest.update(repr(sorted(hash_of(case) for case in material.cases)).encode())
    digest.update(repr(asdict(material.settings)).encode())
    package = Path(kn_bench.__file__).parent
    # the code: the library below the study, the study's own modules and this section's
    below = ("cases", "model", "editing", "localise", "measure")
    files = {path for name in below for path in (package / name).glob("**/*.py")}
    files |= {*(package / "study").glob("*.py"), *part.sources, *(package / "edits").glob("*.py")}
    digest.update(hash_files(sorted(files), package.parent).encode())
    return digest.hexdigest()


def hash_of(case: object) -> str:
    """Return the SHA-256 of a case's content, the same in every process."""
    return hashlib.sha256(repr(case).encode()).hexdigest()
