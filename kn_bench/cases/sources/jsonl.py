"""Your own facts and minimal pairs: one JSON object a line.

A fact needs four fields:

    {"subject": "Canada", "prompt": "The capital of {} is",
     "target_true": "Ottawa", "target_new": "Paris"}

and may have

    relation     "P36"; the file's name when missing
    id           name in test ids; the subject when missing
    suffix       text after the answer; "." when missing ("" after a question)
    paraphrases  ["The seat of government of {} is", "[Y] is the capital of {}."]: generality;
                 the answer's place is [Y], or the end
    synonyms     [{"prompt": "{} is ruled from", "target_true": "Ottawa", "target_new": "Paris"}];
                 a text alone keeps the targets
    neighbours   [{"prompt": "The capital of France is", "answer": "Paris"}]: locality; drawn from
                 the other facts of the relation when missing
    inverse      {"prompt": "{} is the capital of", "displaced": "France"}: symmetry; {} is either
                 target, displaced is whose the new target is now
    aliases      ["City of Paris"]: further names of target_new that count as it

A minimal pair needs ``good`` and ``bad``, and may have ``paradigm``, ``agreeing`` (the word that
governs; the gap's neighbour when missing), ``scoring`` (gap, two_prefix, sentence) and ``id``:

    {"good": "He sold this book.", "bad": "He sold this books.", "agreeing": "this"}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from kn_bench.cases.building.neighbours import FACTS
from kn_bench.cases.building.pairs import pair_cases
from kn_bench.cases.building.paradigms import Paradigm
from kn_bench.cases.building.rows import FactRow, Inverse, Neighbour, Synonym, row_cases
from kn_bench.cases.building.spans import MinimalPair
from kn_bench.cases.case import Case, Cloze, Exclusion, Scoring, Selection
from kn_bench.cases.reading import lines_of, parse_object

FACT_FIELDS = (
    "subject", "prompt", "target_true", "target_new", "relation", "id", "suffix", "paraphrases",
    "synonyms", "neighbours", "inverse", "aliases",
)  # fmt: skip
PAIR_FIELDS = ("good", "bad", "paradigm", "agreeing", "scoring", "id")

Row = FactRow | MinimalPair


def load(
    path: Path | None = None,
    *,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """The cases of a JSONL file, or of all those in a folder.

    Args:
        path: the file or folder.
        limit: cases of each relation and paradigm; all when None.
        relations: relations and paradigms to keep; all when None.
        seed: of all draws.

    Raises:
        ValueError: one sentence, naming the first line that is wrong and how many are.
    """
    cases: list[Case] = []
    excluded: list[Exclusion] = []
    for file in files(path):
        rows = read(file)
        facts = [row for row in rows if isinstance(row, FactRow)]
        pairs = [row for row in rows if isinstance(row, MinimalPair)]
        paradigms = [Paradigm(name, name) for name in dict.fromkeys(p.paradigm for p in pairs)]
        for part in (
            row_cases(facts, source=file.stem, limit=limit, relations=relations, seed=seed),
            pair_cases(
                paradigms,
                pairs,
                source=file.stem,
                prefix=f"{file.stem}/",
                only=[p.id for p in paradigms if relations is None or p.id in relations],
                limit=limit,
                seed=seed,
                neighbours=FACTS,
            ),
        ):
            cases += part.cases
            excluded += part.exclusions
    return Selection(tuple(cases), tuple(excluded))


def relation_ids(path: Path | None = None) -> tuple[str, ...]:
    """The relations and paradigms of the file or folder."""
    rows = (row for file in files(path) for row in read(file))
    return tuple(dict.fromkeys(r.relation if isinstance(r, FactRow) else r.paradigm for r in rows))


def files(path: Path | None) -> list[Path]:
    """The JSONL files at ``path``."""
    if path is None:
        return []
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not found:
        raise ValueError(f"{path} holds no .jsonl file; give a file of facts, one object a line")
    return found


def read(path: Path) -> list[Row]:
    """The facts and pairs of a file.

    Raises:
        ValueError: when any line is wrong.
    """
    rows, problems = _read(path)
    if problems:
        more = f" (and {len(problems) - 1} more lines are wrong)" if len(problems) > 1 else ""
        raise ValueError(f"{path.name}, {problems[0]}{more}")
    if not rows:
        raise ValueError(f"{path.name} is empty; give one fact or minimal pair a line")
    return rows


def problems(path: Path) -> list[str]:
    """What is wrong with a file, a sentence a line, each beginning with the line's number."""
    return _read(path)[1]


def _read(path: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    wrong = []
    for number, line in lines_of(path):
        where = f"line {number}"
        try:
            rows.append(_row(parse_object(line, where), path.stem, number))
        except ValueError as error:
            wrong.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
    return rows, wrong


def _row(entry: dict[str, Any], stem: str, number: int) -> Row:
    if "good" in entry or "bad" in entry:
        _only(entry, PAIR_FIELDS)
        scoring: Scoring = entry.get("scoring", "gap")
        if scoring not in get_args(Scoring):
            raise ValueError(f"scoring is {scoring!r}; it may be {', '.join(get_args(Scoring))}")
        return MinimalPair(
            _text(entry, "paradigm", stem), _text(entry, "id", str(number)),
            _text(entry, "good"), _text(entry, "bad"), _text(entry, "agreeing", ""), scoring,
        )  # fmt: skip
    _only(entry, FACT_FIELDS)
    return _fact(entry, stem)


def _fact(entry: dict[str, Any], stem: str) -> FactRow:
    subject, prompt = _text(entry, "subject"), _text(entry, "prompt")
    true, new = _text(entry, "target_true"), _text(entry, "target_new")
    if true == new:
        raise ValueError(f"target_new is target_true ({true!r}): there is nothing to edit")
    prompt, suffix = with_place(prompt, subject), entry.get("suffix")
    if suffix is None:
        suffix = "" if prompt.endswith("?") else "."
    if not isinstance(suffix, str):
        raise ValueError(f"suffix is {suffix!r}; it must be a text, and may be empty")
    inverse = entry.get("inverse")
    return FactRow(
        relation=_text(entry, "relation", stem),
        subject=subject,
        prompt=prompt,
        target_true=true,
        target_new=new,
        suffix=suffix,
        id=_text(entry, "id", ""),
        paraphrases=tuple(cloze_of(text, subject) for text in _texts(entry, "paraphrases")),
        synonyms=tuple(_synonym(one, subject, new, true) for one in _list(entry, "synonyms")),
        neighbours=tuple(_neighbour(one) for one in _list(entry, "neighbours")),
        inverse=None if inverse is None else _inverse(inverse, new, true),
        aliases=tuple(_texts(entry, "aliases")),
    )


def with_place(prompt: str, subject: str) -> str:
    """``prompt`` with ``{}`` for the subject, where it may stand in full.

    Raises:
        ValueError: when the subject is not in it, or its place is not clear.
    """
    named = prompt if "{}" in prompt else prompt.replace(subject, "{}")
    if named.count("{}") != 1:
        what = "more than once" if named.count("{}") else "not at all"
        raise ValueError(
            f"the subject {subject!r} stands {what} in the prompt {prompt!r}; mark its place by "
            "one {}"
        )
    return named


def cloze_of(text: str, subject: str = "") -> Cloze:
    """``text`` with the answer at ``[Y]``, or at its end."""
    left, gap, right = text.replace("{}", subject).partition("[Y]")
    if gap:
        return Cloze(left.rstrip(), right.lstrip())
    return Cloze(left.rstrip(), "" if left.rstrip().endswith("?") else ".")


def _synonym(one: object, subject: str, new: str, true: str) -> Synonym:
    if isinstance(one, str):
        return Synonym(cloze_of(one, subject), new, true)
    entry = _object(one, "synonyms", ("prompt", "target_true", "target_new"))
    cloze = cloze_of(_text(entry, "prompt"), subject)
    return Synonym(cloze, _text(entry, "target_new", new), _text(entry, "target_true", true))


def _neighbour(one: object) -> Neighbour:
    entry = _object(one, "neighbours", ("prompt", "answer"))
    return Neighbour(cloze_of(_text(entry, "prompt")), _text(entry, "answer"))


def _inverse(one: object, new: str, true: str) -> Inverse:
    entry = _object(one, "inverse", ("prompt", "displaced"))
    prompt = _text(entry, "prompt")
    if prompt.count("{}") != 1:
        raise ValueError(f"inverse: the prompt {prompt!r} must hold {{}} once, for the target")
    return Inverse(cloze_of(prompt, new), cloze_of(prompt, true), _text(entry, "displaced"))


def _object(one: object, field: str, fields: Sequence[str]) -> dict[str, Any]:
    if not isinstance(one, dict):
        raise ValueError(f"{field}: {one!r} is no object with {' and '.join(fields)}")
    _only(one, fields)
    return one


def _only(entry: dict[str, Any], fields: Iterable[str]) -> None:
    for name in entry:
        if name not in fields:
            raise ValueError(f"there is no field {name!r}; there are {', '.join(fields)}")


def _text(entry: dict[str, Any], field: str, default: str | None = None) -> str:
    found = entry.get(field, default)
    if found is None:
        raise ValueError(f"the field {field!r} is missing")
    if not isinstance(found, str) or (not found.strip() and default is None):
        raise ValueError(f"{field} is {found!r}; it must be a text that is not empty")
    return found.strip()


def _texts(entry: dict[str, Any], field: str) -> list[str]:
    return [_text({field: one}, field) for one in _list(entry, field)]


def _list(entry: dict[str, Any], field: str) -> list[Any]:
    found = entry.get(field, [])
    if not isinstance(found, list):
        raise ValueError(f"{field} is {found!r}; it must be a list")
    return found
