"""mPARAREL (Fierro and Søgaard 2022): PARAREL's relations, translated into many languages.

    FOLDER/patterns/de/P36.jsonl    {"pattern": "die hauptstadt von [X] ist [Y]", …}
    FOLDER/tuples/de/P36.jsonl      {"sub_label": "Kanada", "obj_label": "Ottawa", …}

A language is a source of its own: its facts never meet those of another. P36 and P1376 are each
other's inverse in every language, as in PARAREL. All patterns of a relation count as paraphrases,
since nothing here can tell a synonym in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kn_bench.cases.building.facts import fact_cases
from kn_bench.cases.building.neighbours import PAIRS
from kn_bench.cases.building.relations import Pattern, Relation
from kn_bench.cases.building.tables import Triple
from kn_bench.cases.case import Case, Exclusion, Selection
from kn_bench.cases.reading import records
from kn_bench.cases.sources import pararel

SOURCE = "mpararel"
PATTERNS, TUPLES = "patterns", "tuples"


def is_folder(path: Path) -> bool:
    """Tell whether ``path`` is a folder of mPARAREL, or that of one of its languages."""
    root = _root(path)
    return (root / PATTERNS).is_dir() and (root / TUPLES).is_dir()


def load(
    folder: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """Load the cases of a folder, language by language.

    Args:
        folder: with ``patterns/`` and ``tuples/``; or one language's folder in either of them.
        limit: cases of each relation of each language; all when None.
        relations: Wikidata ids, such as ``P36``; all when None.
        seed: of the sampling.

    Raises:
        ValueError: one sentence, when the folder lacks a language, or a line is not in the form.
    """
    if folder is None:
        return Selection(())
    cases: list[Case] = []
    excluded: list[Exclusion] = []
    for language in languages(folder):
        part = _of_language(_root(folder), language, limit, relations, seed)
        cases += part.cases
        excluded += part.exclusions
    return Selection(tuple(cases), tuple(excluded))


def languages(folder: Path) -> list[str]:
    """Return the languages at ``folder`` that have patterns and facts.

    Raises:
        ValueError: when there are none.
    """
    root = _root(folder)
    named = [folder.name] if root != folder else [path.name for path in root.glob(f"{TUPLES}/*")]
    whole = sorted(
        name for name in named if _ids(root, TUPLES, name) and _ids(root, PATTERNS, name)
    )
    if not whole:
        raise ValueError(
            f"{folder}: expected mPARAREL's folder, with {PATTERNS}/de/P36.jsonl and "
            f"{TUPLES}/de/P36.jsonl for German and so on; give that folder"
        )
    return whole


def relation_ids(folder: Path | None = None) -> tuple[str, ...]:
    """Return the relations with facts and patterns in any of the languages."""
    if folder is None:
        return ()
    root = _root(folder)
    return tuple(dict.fromkeys(id for name in languages(folder) for id in _with_facts(root, name)))


def _root(folder: Path) -> Path:
    """Return the whole data set's folder, given it or the folder of a language."""
    return folder.parent.parent if folder.parent.name in (PATTERNS, TUPLES) else folder


def _ids(root: Path, kind: str, language: str) -> list[str]:
    known = pararel.relation_ids()
    stems = {path.stem for path in (root / kind / language).glob("*.jsonl")}
    return [id for id in known if id in stems]


def _with_facts(root: Path, language: str) -> list[str]:
    patterned = _ids(root, PATTERNS, language)
    return [id for id in _ids(root, TUPLES, language) if id in patterned]


def _of_language(
    root: Path, language: str, limit: int | None, relations: Sequence[str] | None, seed: int
) -> Selection:
    prefix = f"{SOURCE}/{language.replace('-', '_')}/"
    excluded: list[Exclusion] = []
    tables = []
    for id in _ids(root, PATTERNS, language):
        patterns = []
        for (text,) in records(root / PATTERNS / language / f"{id}.jsonl", "pattern"):
            try:
                patterns.append(Pattern(text, family=id))
            except ValueError:
                reason = "the translated pattern lost the place of its subject or answer"
                excluded.append(Exclusion(f"{prefix}{id}", reason, detail=text))
        inverse, partners = pararel.related(id)
        tables.append(Relation(id, tuple(patterns), inverse=inverse, partners=partners))
    facts = []
    for id in _with_facts(root, language):
        path = root / TUPLES / language / f"{id}.jsonl"
        for subject, object in records(path, "sub_label", "obj_label"):
            if subject.strip() and object.strip():
                facts.append(Triple(id, subject.strip(), object.strip()))
            else:
                reason = "the fact lacks its subject or object in this language"
                excluded.append(Exclusion(f"{prefix}{id}", reason, detail=f"{subject}, {object}"))
    selection = fact_cases(
        tables,
        facts,
        source=f"{SOURCE}-{language}",
        prefix=prefix,
        only=[id for id in _with_facts(root, language) if relations is None or id in relations],
        limit=limit,
        seed=seed,
        neighbours=PAIRS,
    )
    return Selection(selection.cases, (*selection.exclusions, *excluded))
