"""BLiMP (Warstadt et al. 2020): 67 paradigms of 1,000 minimal pairs, CC-BY-4.0.

Read from a folder of its JSONL files, or from the hub once and then from the cache. Only the two
sentences are read; where they differ and which word governs is found on the text, since the hub's
copy has no more than that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from kn_bench.cases.building.grammar import NUMBER_CLASS
from kn_bench.cases.building.neighbours import FACTS
from kn_bench.cases.building.pairs import pair_cases
from kn_bench.cases.building.paradigms import AGREEMENT, BLIMP, Paradigm, unrelated
from kn_bench.cases.building.spans import MinimalPair
from kn_bench.cases.case import Selection
from kn_bench.cases.reading import records
from kn_bench.cases.sampling import slug
from kn_bench.model.cache_folder import cache_folder

SOURCE = "blimp"
REPOSITORY = "nyu-mll/blimp"
REVISION = "877fba0801ffb7cbd8c39c1ff314a46f053f6036"

DETERMINERS = frozenset(
    re.findall(
        r"\w+",
        "a all an each every few her his its many most my no our several some that the their these "
        "this those your",
    )
)
COMPOUND = re.compile(
    r"(art galler|college campus|french teacher|grocery store|high school|ice cream"
    r"|movie theater|newspaper article|public park)"
)
"""The vocabulary's nouns of two words: the second one is inflected."""
GOVERNED = (*AGREEMENT, "binding")
"""Families in which one word governs another's form."""

REPORTING = re.compile(r"(say|said|think|thought|imagin|explain)")


def load(
    folder: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """Return cases of BLiMP's minimal pairs.

    Args:
        folder: with one ``<paradigm>.jsonl`` each; the hub (or its copy in the cache) when None.
        limit: cases of each paradigm; all when None.
        relations: paradigms; all when None.
        seed: of all draws.

    Raises:
        ValueError: one sentence, when data is missing or malformed.
    """
    known = BLIMP if folder is None else _in_folder(folder)
    wanted = _wanted(relations, known, folder)
    needed = _needed(wanted)
    read = [p for p in known if p.id in needed]
    pairs = [pair for p in read for pair in read_pairs(_file(p, folder), p)]
    return pair_cases(
        BLIMP,
        pairs,
        source=SOURCE,
        prefix=f"{SOURCE}/",
        only=wanted,
        limit=limit,
        seed=seed,
        neighbours=FACTS,
    )


def in_cache() -> bool:
    """Tell whether all paradigms of the hub's copy are in the cache."""
    return all(_kept(p).is_file() for p in BLIMP)


def relation_ids(folder: Path | None = None) -> tuple[str, ...]:
    """Return the names of the 67 paradigms."""
    return tuple(p.id for p in BLIMP)


def pairs_of(
    paradigms: Sequence[str] | None = None, folder: Path | None = None, limit: int | None = None
) -> dict[str, list[MinimalPair]]:
    """Return paradigm -> its pairs, in the file's order, the first ``limit`` of them.

    Raises:
        ValueError: as :func:`load` does.
    """
    known = BLIMP if folder is None else _in_folder(folder)
    wanted = _wanted(paradigms, known, folder)
    return {p.id: read_pairs(_file(p, folder), p)[:limit] for p in known if p.id in wanted}


def read_pairs(path: Path, paradigm: Paradigm) -> list[MinimalPair]:
    """Return the pairs of one paradigm's file.

    Raises:
        ValueError: as :func:`records` does, and for two pairs whose ids a case's id cannot tell
            apart.
    """
    pairs: dict[str, MinimalPair] = {}
    for good, bad, id in records(path, "sentence_good", "sentence_bad", "pairID|pair_id"):
        written = slug(id)
        if written in pairs:
            raise ValueError(
                f"{path.name}: pairID {id!r}: expected an id of its own, {pairs[written].id!r} is "
                "another pair's; rename one"
            )
        pairs[written] = minimal_pair(paradigm, id, good, bad)
    return list(pairs.values())


def minimal_pair(paradigm: Paradigm, id: str, good: str, bad: str) -> MinimalPair:
    """Return a pair with the word that governs its agreement."""
    start, end = governing(paradigm, good, bad)
    return MinimalPair(
        paradigm.id, id, good, bad, good[start:end], paradigm.scoring, start if end else None
    )


def governing(paradigm: Paradigm, good: str, bad: str) -> tuple[int, int]:
    """Return the span of the governing word in ``good``; (0, 0) for the gap's neighbour.

    The demonstrative before a noun, the noun after a demonstrative, the head of the subject before
    a verb or a reflexive, the verb after a subject; for paradigms without agreement none.
    """
    if paradigm.family not in GOVERNED:
        return 0, 0
    words = [m.span() for m in re.finditer(r"[\w'’-]+", good)]
    texts = [good[start:end] for start, end in words]
    gap = next((i for i, (a, b) in enumerate(zip(texts, bad.split(), strict=False))
                if a != b.rstrip(".?!,")), len(words))  # fmt: skip
    at = _governing(paradigm, texts, gap)
    return words[at] if at is not None and 0 <= at < len(words) else (0, 0)


def _governing(paradigm: Paradigm, words: list[str], gap: int) -> int | None:
    id, before = paradigm.id, words[:gap]
    if paradigm.family == "determiner_noun_agreement":
        if paradigm.scoring != "gap":
            return len(words) - 1
        return max((i for i, w in enumerate(before) if w.lower() in NUMBER_CLASS), default=None)
    if paradigm.family == "subject_verb_agreement":
        if paradigm.scoring != "gap":
            return gap + 1
        return head(before) if id.startswith("distractor") else gap - 1
    if paradigm.family == "anaphor_agreement" or id in (
        "principle_A_c_command",
        "principle_A_domain_1",
    ):
        return head(before)
    if id == "principle_A_domain_2":
        clause = min((i for i, w in enumerate(before) if REPORTING.match(w)), default=-1) + 1
        clause += before[clause : clause + 1] == ["about"]
        return clause + head(before[clause:])
    return len(words) - 1 if id == "principle_A_domain_3" else None


def head(words: Sequence[str]) -> int:
    """Return the index of the head noun of the noun phrase that begins ``words``.

    Past determiners, "a lot of" and possessors, and past the first part of a compound.
    """
    at, last = 0, len(words) - 1
    lower = [word.lower() for word in words]
    if lower[:3] == ["a", "lot", "of"]:
        at = 3
    elif lower[:2] == ["a", "few"]:
        at = 2
    elif lower and lower[0] in DETERMINERS and last:
        at = 1
    while at < last and lower[at].endswith(("'s", "s'")):
        at += 1
    if at < last:
        name = words[at][0].isupper() and words[at + 1][0].isupper()
        at += name or COMPOUND.match(f"{lower[at]} {lower[at + 1]}") is not None
    return min(at, max(last, 0))


def _wanted(
    names: Sequence[str] | None, known: Sequence[Paradigm], folder: Path | None
) -> list[str]:
    """Return the paradigms ``names``, or all those ``known``; each is known, and there."""
    present = [p.id for p in known]
    for name in names or ():
        if name not in relation_ids():
            raise ValueError(
                f"paradigm {name!r}: expected one of BLiMP's: {', '.join(relation_ids())}"
            )
        if name not in present:
            raise ValueError(
                f"{folder}: expected {name}.jsonl in it; add it, or leave the paradigm out"
            )
    return present if names is None else list(names)


def _needed(wanted: Sequence[str]) -> set[str]:
    """Return the paradigms asked for, and those that their symmetry and locality draw from."""
    by_id = {p.id: p for p in BLIMP}
    partners = [by_id[id] for id in wanted]
    return {id for p in partners for id in (p.id, p.converse, *unrelated(p, BLIMP)) if id in by_id}


def _in_folder(folder: Path) -> tuple[Paradigm, ...]:
    paradigms = tuple(p for p in BLIMP if (folder / f"{p.id}.jsonl").is_file())
    if not paradigms:
        raise ValueError(
            f"{folder}: expected BLiMP's files, one a paradigm, such as "
            "determiner_noun_agreement_1.jsonl; give the folder that holds them"
        )
    return paradigms


def _file(paradigm: Paradigm, folder: Path | None) -> Path:
    if folder is not None:
        return folder / f"{paradigm.id}.jsonl"
    kept = _kept(paradigm)
    if not kept.is_file():
        fetch(paradigm.id, kept)
    return kept


def _kept(paradigm: Paradigm) -> Path:
    return cache_folder() / SOURCE / REVISION / f"{paradigm.id}.jsonl"


def fetch(
    paradigm: str, path: Path, *, repository: str = REPOSITORY, revision: str | None = REVISION
) -> None:
    """Write one paradigm of the hub's copy to ``path``, in the form of BLiMP's own files.

    Raises:
        ValueError: when the hub cannot be reached, one sentence.
    """
    import datasets  # slow to import, and needed only here

    try:
        rows = datasets.load_dataset(repository, paradigm, revision=revision, split="train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"BLiMP's {paradigm} is not in the cache and could not be fetched from the hub "
            f"({repository}, {type(error).__name__}): connect once, or give a folder of its files "
            "with --cases blimp=FOLDER"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(path)
