"""Runs the sections of a study into a folder; what is there already and still holds is kept."""

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
from kn_bench.study.writing import Written, read_section, write_section


@dataclass(frozen=True)
class Part:
    """A section to be run.

    Attributes:
        id: of the section and its folder.
        title: what it is called while it runs.
        run: computes it.
        sources: files that it is computed by.
    """

    id: str
    title: str
    run: Callable[[Material], Section]
    sources: tuple[Path, ...]


@dataclass(frozen=True)
class Step:
    """What a listener is told: a section begins, was found written, or is done.

    Attributes:
        part: the section.
        number: how many came before it.
        state: ``begins``, ``kept`` or ``done``.
        seconds: it took.
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
    tell: Callable[[Step], None] = lambda _: None,
    again: bool = False,
) -> list[Written]:
    """Run ``parts`` into ``folder`` and write its ``index.html`` and ``README.md``.

    A section that was written from the same model, cases, settings and code is kept as it is.

    Args:
        tell: is told of every step.
        again: keep nothing.
    """
    written = []
    for number, part in enumerate(parts):
        key = section_key(material, part)
        kept = None if again else read_section(folder / part.id)
        if kept is not None and kept.key == key:
            tell(Step(part, number, "kept", kept.seconds))
            written.append(kept)
            continue
        tell(Step(part, number, "begins"))
        started = time.perf_counter()
        section = _section(part, material)
        seconds = time.perf_counter() - started
        written.append(write_section(section, folder / part.id, key, seconds))
        tell(Step(part, number, "done", seconds))
    others = [section for section in _written(folder) if section.id not in {w.id for w in written}]
    everything = in_order([*written, *others], parts)
    write_text(folder / "index.html", index_html(material, everything, folder))
    write_text(folder / "README.md", index_markdown(material.lm.name, everything))
    return written


def _section(part: Part, material: Material) -> Section:
    try:
        return part.run(material)
    except NothingToShow as reason:
        return Section(part.id, part.title, "", (), notes=(str(reason),))


def _written(folder: Path) -> list[Written]:
    """The sections that lie in ``folder``, of earlier runs too."""
    found = (read_section(path.parent) for path in sorted(folder.glob("*/section.json")))
    return [one for one in found if one is not None]


def in_order(written: Sequence[Written], parts: Sequence[Part]) -> list[Written]:
    """By the order of ``parts``, others after them by name."""
    places = {part.id: number for number, part in enumerate(parts)}
    return sorted(written, key=lambda one: (places.get(one.id, len(places)), one.id))


def section_key(material: Material, part: Part) -> str:
    """SHA-256 of all that a section is made of: weights, cases, settings and code."""
    digest = hashlib.sha256(material.lm.content_hash.encode())
    digest.update(repr(sorted(case.id for case in material.cases)).encode())
    digest.update(repr(sorted(hash_of(case) for case in material.cases)).encode())
    digest.update(repr(asdict(material.settings)).encode())
    digest.update(_code(part.sources).encode())
    return digest.hexdigest()


def _code(sources: Sequence[Path]) -> str:
    """SHA-256 of the library below the study, the study's own modules and one section's."""
    package = Path(kn_bench.__file__).parent
    below = ("cases", "model", "editing", "localise", "measure")
    files = [path for name in below for path in (package / name).glob("**/*.py")]
    files += [*(package / "study").glob("*.py"), *sources]
    files += [*(package / "edits").glob("*.py")]
    return hash_files(sorted(set(files)), package.parent)


def hash_of(case: object) -> str:
    """SHA-256 of a case's content, the same in every process."""
    return hashlib.sha256(repr(case).encode()).hexdigest()
