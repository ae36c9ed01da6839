"""Facts that bring their own prompts, as CounterFact's do, become cases.

Where :mod:`kn_bench.cases.building.facts` knows a whole relation, a row knows itself; what it does
not bring (neighbours of the same relation, a background) is drawn from the other rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from sys import intern
from types import MappingProxyType
from typing import Any

from kn_bench.cases.building.fact_row import FactRow, LeftOut, Neighbour
from kn_bench.cases.building.neighbours import NEIGHBOURS, PAIRS, other_task
from kn_bench.cases.case import (
    Case,
    Criterion,
    EditRequest,
    Exclusion,
    Probe,
    Query,
    Selection,
)
from kn_bench.cases.normalise import words
from kn_bench.cases.sampling import draw, limited, slug, unique_slugs

BACKGROUND = 8
Background = tuple[tuple[Query, ...], ...]
REPEATED = "the same fact is listed again; its first copy is kept"
JOINED = "the same fact is listed again with other questions; its first copy asks them all"
OTHER_INVERSE = "the same fact is listed again with another inverse question"
CONDITION = "condition"
"""Kind of the portability probes that the unedited model has to answer for another to count; the id
of one is the other's with ``/condition/<n>`` after it."""
UNCONDITIONED = "unconditioned"
"""Kind of the generality probes of data without true answers: they count whatever the unedited
model answers."""


def row_cases(
    rows: Iterable[FactRow],
    *,
    source: str,
    limit: int | None = None,
    relations: Sequence[str] | None = None,
    seed: int = 0,
) -> Selection:
    """Return the cases of ``rows``: ``<source>/<relation>/<subject or id>``.

    Args:
        rows: all that the source has.
        source: recorded with each case, and the first part of the ids.
        limit: cases of each relation; all when None.
        relations: to keep; all when None.
        seed: of all draws.
    """
    by_relation: defaultdict[str, list[FactRow]] = defaultdict(list)
    for row in rows:
        by_relation[row.relation].append(row)
    cases: list[Case] = []
    excluded: list[Exclusion] = []
    for relation, members in by_relation.items():
        if relations is not None and relation not in relations:
            continue
        members, repeats = _without_repeats(members)
        ids = [f"{slug(source)}/{slug(relation)}/{name}" for name in _names(members)]
        excluded += [
            Exclusion(f"{slug(source)}/{slug(relation)}/{slug(row.id or row.subject)}", reason)
            for row, reason in repeats
        ]
        background_of = _backgrounds(members, relation)
        for i in limited(ids, limit, seed):
            row = _with_truth(members[i], members, ids[i], seed)
            problem = _problem(row)
            if problem:
                excluded.append(Exclusion(ids[i], problem, detail=repr(row.target_new)))
                continue
            truth = bool(members[i].target_true)
            try:
                background = background_of(row.subject)
                cases.append(_case(ids[i], row, members, background, source, seed, truth=truth))
            except ValueError as error:
                excluded.append(Exclusion(ids[i], "the request is malformed", detail=str(error)))
            else:
                excluded += [Exclusion(ids[i], o.reason, o.group, o.question) for o in row.left_out]
    return Selection(tuple(cases), tuple(excluded))


def _without_repeats(rows: Sequence[FactRow]) -> tuple[list[FactRow], list[tuple[FactRow, str]]]:
    """Return each fact once, with the questions of all its copies; and the copies.

    Rows with different new targets are different facts. Each copy is returned with the reason why
    it is not a case of its own.
    """
    first: dict[tuple[str, ...], FactRow] = {}
    repeats = []
    for row in rows:
        key = (row.subject, row.prompt, row.suffix, row.target_true, row.target_new)
        known = first.setdefault(key, row)
        if known is not row:
            first[key] = _with_questions(known, row)
            repeats.append((row, REPEATED if first[key] == known else JOINED))
    return list(first.values()), repeats


def _with_questions(row: FactRow, copy: FactRow) -> FactRow:
    """Return ``row`` with what ``copy``, the same fact, asks and accepts beyond it."""

    def both(name: str) -> Any:
        return tuple(dict.fromkeys((*getattr(row, name), *getattr(copy, name))))

    names = ("paraphrases", "synonyms", "neighbours", "aliases", "true_aliases", "portability")
    left_out = both("left_out")
    if copy.inverse is not None and row.inverse not in (None, copy.inverse):
        lost = LeftOut("symmetry", OTHER_INVERSE, copy.inverse.about_new.left)
        left_out = tuple(dict.fromkeys((*left_out, lost)))
    prompts = dict.fromkeys((*row.open_ended.prompts, *copy.open_ended.prompts))
    return row._replace(
        **{name: both(name) for name in names},
        inverse=row.inverse or copy.inverse,
        open_ended=row.open_ended._replace(prompts=tuple(prompts)),
        left_out=left_out,
    )


def _names(rows: Sequence[FactRow]) -> list[str]:
    """Return the last part of each case's id; the new target tells apart what nothing else does.

    Records that share their id and all that is named so far are told apart by the whole fact.
    """
    named = [(row.id or row.subject, row.target_true + row.prompt) for row in rows]
    for detail in (_target_of, _fact_of):
        times = Counter(named)
        named = [
            name if times[name] == 1 else (name[0], detail(row))
            for name, row in zip(named, rows, strict=True)
        ]
    return unique_slugs(named)


def _target_of(row: FactRow) -> str:
    return row.target_new


def _fact_of(row: FactRow) -> str:
    return "|".join((row.target_new, row.subject, row.prompt, row.suffix, row.target_true))


def _with_truth(row: FactRow, rows: Sequence[FactRow], id: str, seed: int) -> FactRow:
    """Return ``row`` with an answer to compare the new one with, where its data brings none.

    It is another record's answer, drawn by a seeded hash; what needs the true answer is not
    applicable to the case.
    """
    if row.target_true:
        return row
    drawn = draw(
        rows, 1, "distractor", seed, id,
        where=lambda other: _compared(other.target_new) != _compared(row.target_new),
    )  # fmt: skip
    return row._replace(target_true=drawn[0].target_new) if drawn else row


def _problem(row: FactRow) -> str:
    """Return why a fact cannot be edited, by the normalisation that verdicts use; else ""."""
    if not row.target_true:
        return "the data brings no true answer, and no other record to draw one from"
    new = {_compared(answer) for answer in (row.target_new, *row.aliases)}
    if not new.isdisjoint(map(_compared, (row.target_true, *row.true_aliases))):
        return "the new target is the true one, or one of its aliases, to a verdict"
    return ""


def _compared(answer: str) -> tuple[str, ...]:
    """Return what a verdict compares of an answer: its words, or all of it where it has none."""
    return words(answer) or (answer.strip(),)


def _backgrounds(rows: Sequence[FactRow], relation: str) -> Callable[[str], Background]:
    """Return what gives the background of a fact by its subject.

    All facts have the same, one tuple, but those whose subject is among the rows first drawn.
    """

    @lru_cache(maxsize=BACKGROUND + 1)
    def without(subject: str | None) -> Background:
        others = draw(
            rows, BACKGROUND, "background", relation, where=lambda row: row.subject != subject
        )
        return tuple(other.queries[:3] for other in others if other.target_true)

    first = {row.subject for row in draw(rows, BACKGROUND, "background", relation)}
    return lambda subject: without(subject if subject in first else None)


def _case(
    id: str,
    row: FactRow,
    rows: Sequence[FactRow],
    background: Background,
    source: str,
    seed: int,
    *,
    truth: bool,
) -> Case:
    queries = row.queries
    request = EditRequest(
        id=id,
        task="fact",
        relation=row.relation,
        subject=row.subject,
        prompt=row.prompt,
        suffix=row.suffix,
        target_true=row.target_true,
        target_new=row.target_new,
        queries=queries,
        background=background,
        true_is_known=truth,
    )
    unconditioned = "" if truth else UNCONDITIONED
    probes = (
        Probe(
            "reliability/0", "reliability", queries[0].cloze, row.target_new, row.target_true,
            aliases=row.aliases, rejected_aliases=row.true_aliases,
        ),
        *(
            Probe(intern(f"generality/{i}"), "generality", cloze, row.target_new, row.target_true,
                  kind=unconditioned, aliases=row.aliases, rejected_aliases=row.true_aliases)
            for i, cloze in enumerate(row.paraphrases)
        ),
        *_locality(id, row, rows, seed, truth=truth),
        *_symmetry(row),
        *(
            Probe(intern(f"synonym/prompt/{i}"), "synonym", s.cloze, s.target_new, s.target_true,
                  kind="prompt", aliases=_others_of(s.target_new, row),
                  rejected_aliases=_others_of(s.target_true, row))
            for i, s in enumerate(row.synonyms)
        ),
        *_portability(row),
    )  # fmt: skip
    missing = _missing(
        truth=truth,
        paraphrased=bool(row.paraphrases),
        inverted=row.inverse is not None,
        reworded=bool(row.synonyms),
    )
    return Case(request, probes, row.subject, source, missing, row.open_ended)


def _locality(
    id: str, row: FactRow, rows: Sequence[FactRow], seed: int, *, truth: bool
) -> Iterable[Probe]:
    answers = (row.target_true, row.target_new)
    brought = row.neighbours
    if truth and not any(n.kind == "same_relation" for n in brought):
        drawn = draw(
            rows,
            NEIGHBOURS,
            "same_relation",
            seed,
            id,
            where=lambda r: r.subject != row.subject and r.target_true not in answers,
        )
        brought += tuple(
            Neighbour(r.cloze, r.target_true, aliases=r.true_aliases)
            for r in drawn
            if r.target_true
        )
    counts: defaultdict[str, int] = defaultdict(int)
    for n in brought:
        probe = intern(f"locality/{n.kind}/{counts[n.kind]}")
        counts[n.kind] += 1
        # an answer that is the new target itself can still be told from the true one
        rejected = row.target_new if n.answer != row.target_new else row.target_true
        yield Probe(probe, "locality", n.cloze, n.answer, rejected, kind=n.kind, aliases=n.aliases,
                    rejected_aliases=_others_of(rejected, row))  # fmt: skip
    yield from other_task(PAIRS, seed, id)


def _others_of(target: str, row: FactRow) -> tuple[str, ...]:
    """Return what else counts as ``target``, if it is one of the row's two."""
    return {row.target_true: row.true_aliases, row.target_new: row.aliases}.get(target, ())


def _symmetry(row: FactRow) -> Iterable[Probe]:
    if row.inverse is None:
        return
    for kind, cloze in (("new_inverse", row.inverse.about_new),
                        ("old_inverse", row.inverse.about_true)):  # fmt: skip
        if cloze is not None:
            displaced = row.inverse.displaced or row.target_true
            id = intern(f"symmetry/{kind}/0")
            yield Probe(id, "symmetry", cloze, row.subject, displaced, kind=kind)


def _portability(row: FactRow) -> Iterable[Probe]:
    counts: defaultdict[str, int] = defaultdict(int)
    for question in row.portability:
        id = intern(f"portability/{slug(question.kind)}/{counts[question.kind]}")
        counts[question.kind] += 1
        answer, *aliases = question.answers
        yield Probe(id, "portability", question.cloze, answer, _other(row, answer),
                    kind=question.kind, aliases=tuple(aliases))  # fmt: skip
        for i, condition in enumerate(question.conditions):
            rejected = _other(row, condition.answer)
            asked = intern(f"{id}/condition/{i}")
            yield Probe(asked, "portability", condition.cloze, condition.answer, rejected,
                        kind=CONDITION, aliases=condition.aliases)  # fmt: skip


def _other(row: FactRow, answer: str) -> str:
    """Return the target that an answer can be told from."""
    return row.target_true if words(answer) != words(row.target_true) else row.target_new


@cache
def _missing(
    *, truth: bool, paraphrased: bool, inverted: bool, reworded: bool
) -> Mapping[Criterion, str]:
    """Return why criteria cannot be asked; one object for all cases that lack the same."""
    missing: dict[Criterion, str] = {}
    if not truth:
        missing["overturn"] = "the data brings no true answer"
    if not paraphrased:
        missing["generality"] = "the data brings no paraphrase"
    if not inverted:
        missing["symmetry"] = "the data brings no inverse question"
    if not reworded:
        missing["synonym"] = "the data brings no synonym"
    return MappingProxyType(missing)
