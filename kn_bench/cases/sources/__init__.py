"""Where cases come from, by name: what ``--cases`` takes.

embedded                  the package's own facts and grammar
real-world                of these, what is about the real world
blimp, pararel            from the hub, the pinned files, or the cache
blimp=FOLDER, ...         from a folder of their files
mpararel=FOLDER           all languages of a folder; FOLDER/tuples/de for one
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from kn_bench.cases.case import Case, Selection, by_label
from kn_bench.cases.reading import without_collecting
from kn_bench.cases.sources import blimp, embedded, forms, jsonl, mpararel, pararel
from kn_bench.cases.sources.records import names_of, read_records


class Load(Protocol):
    """What a source's module offers: its cases, from ``path`` or from where it knows."""

    def __call__(
        self,
        path: Path | None = None,
        /,
        *,
        limit: int | None = None,
        relations: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Selection: ...


class RelationIds(Protocol):
    """The relations and paradigms of a source (of ``path``)."""

    def __call__(self, path: Path | None = None, /) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One source of cases.

    Attributes:
        load: its cases.
        relation_ids: its relations and paradigms.
        path: what stands after ``name=``: ``FOLDER``, ``FILE``, or "" where nothing may.
        needs_path: whether it has no place of its own.
        in_cache: for what is fetched when first asked for: whether that has been done.
    """

    load: Load
    relation_ids: RelationIds
    path: str = ""
    needs_path: bool = False
    in_cache: Callable[[], bool] = lambda: True


def _embedded(
    path: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    return embedded.load(only=relations, limit=limit, seed=seed)


def _real_world(
    path: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    return embedded.load(only=relations, limit=limit, seed=seed, real=True)


def _embedded_ids(path: Path | None = None) -> Sequence[str]:
    return [r.id for r in embedded.relations()] + [p.id for p in embedded.paradigms()]


LOOKED_AT = 1000
"""The records that show a file's form: a file may hold millions."""
SOURCES = {
    "embedded": Source(_embedded, _embedded_ids),
    "real-world": Source(_real_world, _embedded_ids),
    "blimp": Source(blimp.load, blimp.relation_ids, "FOLDER", in_cache=blimp.in_cache),
    "pararel": Source(pararel.load, pararel.relation_ids, "FOLDER", in_cache=pararel.in_cache),
    "mpararel": Source(mpararel.load, mpararel.relation_ids, "FOLDER", needs_path=True),
    **{
        name: Source(partial(forms.load, source=name), forms.relation_ids, "FILE", needs_path=True)
        for name in forms.SOURCES
    },
    "jsonl": Source(jsonl.load, jsonl.relation_ids, "PATH", needs_path=True),
}
"""The sources by name. A new data set is one module and one line here."""


def load(
    spec: str,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """Return the cases that ``spec`` names.

    Args:
        spec: a name, ``name=path`` or a path.
        limit: cases of each relation or paradigm, drawn by a seeded hash of the case's id, so that
            a larger limit contains every smaller one; all when None.
        relations: relations and paradigms to keep; all when None or empty. Those that only other
            sources have are passed over.
        seed: of all draws.

    Raises:
        ValueError: one sentence, for an unknown source or relation, or data that cannot be read.
    """
    source, path = parse(spec)
    # a file's relations are known only once it is read, so they are asked for only where needed
    wanted = _wanted(relations, source.relation_ids(path)) if relations else None
    if wanted == []:
        return Selection(())
    with without_collecting():
        return source.load(path, limit=limit, relations=wanted, seed=seed)


def load_all(
    specs: Sequence[str],
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Case]:
    """Return the cases of several sources, each source once; see :func:`load`.

    Raises:
        ValueError: as :func:`load`, and when two sources have a case of the same id.
    """
    cases = [
        case
        for spec in dict.fromkeys(specs)
        for case in load(spec, limit=limit, relations=relations, seed=seed).cases
    ]
    return list(by_label(cases).values())


def content_hash(cases: Sequence[Case]) -> str:
    """Return SHA-256 over all that ``cases`` hold: what a run's manifest says of its data."""
    total = hashlib.sha256()
    for case in cases:
        total.update(repr(case).encode())
        if any(case.open_ended):  # of the other cases the hash is what it was without the field
            total.update(repr(case.open_ended).encode())
    return total.hexdigest()


def parse(spec: str) -> tuple[Source, Path | None]:
    """Return the source that ``spec`` names, and the path it is to read, if any.

    Raises:
        ValueError: for an unknown name, a missing path, or one that does not exist.
    """
    name, equals, path = spec.partition("=")
    source = SOURCES.get(name)
    if source is None or (equals and not source.path):
        return _recognised(spec)
    if not equals and source.needs_path:
        raise ValueError(
            f"--cases {name}: expected a path, {name} has no data of its own; give "
            f"--cases {name}={source.path}"
        )
    given = _existing(path, spec) if equals else None
    if given is not None and source.path == "FILE" and given.is_dir():
        raise ValueError(
            f"--cases {spec}: expected a file, it is a folder; give each of its files, --cases "
            f"{name}=FILE"
        )
    return source, given


def _recognised(spec: str) -> tuple[Source, Path]:
    """Return a bare path, by what it holds."""
    if not spec or ("/" not in spec and "." not in spec and not _exists(Path(spec))):
        raise ValueError(f"--cases {spec!r}: expected {allowed()}")
    name, equals, _ = spec.partition("=")
    if equals and "/" not in name and not _exists(Path(spec)):
        if name in SOURCES:
            raise ValueError(
                f"--cases {spec}: expected no path, {name} has data of its own; give --cases {name}"
            )
        raise ValueError(
            f"--cases {spec}: expected a source before '=', {name!r} is none; give {allowed()}"
        )
    path = _existing(spec, spec)
    if (path / "patterns").is_dir() and (path / "facts").is_dir():
        return SOURCES["pararel"], path
    if mpararel.is_folder(path):
        return SOURCES["mpararel"], path
    if any((path / f"{id}.jsonl").is_file() for id in blimp.relation_ids()):
        return SOURCES["blimp"], path
    if path.is_dir():
        return SOURCES["jsonl"], path
    # what is wrong, the source itself says
    fields = names_of(read_records(path, wrong=[], first=LOOKED_AT))
    form = forms.form_of(fields)
    if form is not None:
        return SOURCES[form.source], path
    names = {name.lower() for name in fields}
    if "text" in names and not names & {*jsonl.FACT_FIELDS, *jsonl.PAIR_FIELDS}:
        raise ValueError(
            f"--cases {spec}: expected facts or minimal pairs, and it holds texts (fields "
            f"{', '.join(fields)}); give it by --corpus {spec}, the text that second "
            "moments are taken over"
        )
    return SOURCES["jsonl"], path


def _existing(path: str, spec: str) -> Path:
    existing = Path(path)
    if not path or not _exists(existing):
        raise ValueError(f"--cases {spec}: expected a file or folder that exists; give {allowed()}")
    return existing.expanduser()


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long, the home of nobody
        return False


def allowed() -> str:
    """Return what ``--cases`` takes, as part of a sentence."""
    bare = [name for name, source in SOURCES.items() if not source.needs_path]
    with_path = [f"{name}={source.path}" for name, source in SOURCES.items() if source.path]
    return f"{', '.join([*bare, *with_path])}, or a file of facts or minimal pairs"


def _wanted(relations: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return those of ``relations`` that this source has, each once."""
    elsewhere = all_relation_ids()
    for relation in relations:
        if relation not in known and relation not in elsewhere:
            raise ValueError(
                f"relation or paradigm {relation!r}: expected one of "
                + ", ".join(dict.fromkeys([*known, *elsewhere]))
            )
    return [relation for relation in dict.fromkeys(relations) if relation in known]


def all_relation_ids() -> tuple[str, ...]:
    """Return the relations and paradigms of all sources that need no path from the user."""
    ids = (id for s in SOURCES.values() if not s.needs_path for id in s.relation_ids())
    return tuple(dict.fromkeys(ids))
