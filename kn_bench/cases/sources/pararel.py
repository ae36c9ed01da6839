"""PARAREL (Elazar et al. 2021) with LAMA's T-REx facts: 39 relations, 329 patterns, MIT.

Read from a folder with ``patterns/P36.jsonl`` and ``facts/P36.jsonl``, or fetched once from the
pinned files and checked. What relates the relations to each other, and the rewordings that PARAREL
does not have, are in ``pararel_relations.toml``.

There are facts of two more relations without patterns: P31 serves nothing, P527 (has part) asks for
the inverse of P361 in words of ours.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kn_bench.cases.building.facts import fact_cases
from kn_bench.cases.building.neighbours import PAIRS
from kn_bench.cases.building.relations import Pattern, Relation, Rewording
from kn_bench.cases.building.tables import Triple
from kn_bench.cases.case import Exclusion, Selection
from kn_bench.cases.downloads import checksums, fetch, kept
from kn_bench.cases.reading import records

SOURCE = "pararel"
COMMIT = "cb5554678457beb5ac163d888f1ce8cf174b3f0b"
BASE_URL = f"https://raw.githubusercontent.com/yanaiela/pararel/{COMMIT}/data/"
FOLDERS = {"patterns": "pattern_data/graphs_json", "facts": "trex_lms_vocab"}
"""Our name of each of the two folders -> its place in the repository."""

FACTS_ALONE = ("P31", "P527")


def load(
    folder: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """Return cases of PARAREL's facts.

    Args:
        folder: with ``patterns/`` and ``facts/``; the pinned files (or the cache) when None.
        limit: cases of each relation; all when None.
        relations: Wikidata ids; all when None.
        seed: of all draws.

    Raises:
        ValueError: one sentence, when data is missing or malformed.
    """
    known = [id for id in relation_ids() if _is_there(id, folder)]
    wanted = known if relations is None else list(relations)
    if not wanted:
        raise ValueError(
            f"{folder}: expected PARAREL's files, facts/P36.jsonl and patterns/P36.jsonl and so on "
            "for each relation; give the folder that holds them"
        )
    needed = [id for id in _needed(wanted) if id in wanted or _is_there(id, folder)]
    tables = [read_relation(id, folder) for id in needed]
    facts = [fact for id in needed for fact in read_facts(id, folder)]
    selection = fact_cases(
        tables,
        facts,
        source=SOURCE,
        prefix=f"{SOURCE}/",
        only=wanted,
        limit=limit,
        seed=seed,
        neighbours=PAIRS,
    )
    facts_alone = [
        Exclusion(f"{SOURCE}/{id}", "PARAREL has facts but no patterns for the relation")
        for id in FACTS_ALONE
        if relations is None and _is_there(id, folder)
    ]
    return Selection(selection.cases, (*selection.exclusions, *facts_alone))


def in_cache() -> bool:
    """Tell whether all the pinned files are in the cache."""
    return all(kept(SOURCE, name).is_file() for name in checksums(SOURCE))


def relation_ids(folder: Path | None = None) -> tuple[str, ...]:
    """Return the ids of the 39 relations."""
    return tuple(id for id in _related() if id not in FACTS_ALONE)


def related(id: str) -> tuple[str, tuple[str, ...]]:
    """Return a relation's inverse ("" for none) and the relations that locality asks about."""
    entry = _related()[id]
    return entry.get("inverse", ""), tuple(entry["partners"].split())


def read_relation(id: str, folder: Path | None = None) -> Relation:
    """Return a relation with PARAREL's patterns, or ours where it lacks them or a rewording."""
    entry = _related()[id]
    patterns = [Pattern(text) for text in entry.get("patterns", ())]
    if id not in FACTS_ALONE:
        path = _file("patterns", id, folder)
        patterns += [_pattern(text, path) for (text,) in records(path, "pattern")]
    return Relation(
        id=id,
        patterns=tuple(patterns),
        rewordings=tuple(_rewording(reworded) for reworded in entry.get("rewordings", ())),
        synonyms=MappingProxyType(_tables().get("synonyms", {}).get(id, {})),
        inverse=related(id)[0],
        partners=related(id)[1],
    )


def read_facts(id: str, folder: Path | None = None) -> list[Triple]:
    """Return the facts of one relation's file."""
    path = _file("facts", id, folder)
    facts = [Triple(id, s.strip(), o.strip()) for s, o in records(path, "sub_label", "obj_label")]
    if not all(fact.subject and fact.object for fact in facts):
        raise ValueError(
            f"{path.name}: expected a subject and an object in every fact; remove what lacks one"
        )
    return facts


def _pattern(text: str, path: Path) -> Pattern:
    try:
        return Pattern(text)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _rewording(entry: Mapping[str, Any]) -> Rewording:
    answers = _tables()["answers"][entry["answers"]] if "answers" in entry else {}
    return Rewording(Pattern(entry["pattern"]), MappingProxyType(answers))


def _needed(wanted: Iterable[str]) -> list[str]:
    """Return the relations asked for, and those that their symmetry and locality draw from."""
    needed: dict[str, None] = {}
    for id in wanted:
        if id not in relation_ids():
            raise ValueError(
                f"relation {id!r}: expected one of PARAREL's: {', '.join(relation_ids())}"
            )
        inverse, partners = related(id)
        needed |= dict.fromkeys([id, inverse or id, *partners])
    return list(needed)


def _is_there(id: str, folder: Path | None) -> bool:
    return folder is None or (folder / "facts" / f"{id}.jsonl").is_file()


def _file(kind: str, id: str, folder: Path | None) -> Path:
    if folder is not None:
        return folder / kind / f"{id}.jsonl"
    return fetch(SOURCE, f"{kind}/{id}.jsonl", f"{BASE_URL}{FOLDERS[kind]}/{id}.jsonl")


@cache
def _tables() -> dict[str, Any]:
    text = resources.files("kn_bench.cases").joinpath("pararel_relations.toml").read_text("utf-8")
    return tomllib.loads(text)


def _related() -> dict[str, Any]:
    relations: dict[str, Any] = _tables()["relations"]
    return relations
