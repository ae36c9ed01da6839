"""Which cases form a sequence, in which order; and which probes others of it have edited.

A sequence is drawn by seed from the cases of one task that fit the model. Further sequences go on
with the cases that are left; when too few are, all are shuffled anew. So of N cases K sequences of
N are K orders of the same cases, and of many cases K different draws.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kn_bench.cases.case import Case, Exclusion, Task
from kn_bench.cases.sampling import stable_hash
from kn_bench.measure.encoded import EncodedCase
from kn_bench.measure.protocols import Protocol

EDITED = "its subject is edited by another case of the sequence"
_WORD = re.compile(r"\w+")


class TooFewCases(ValueError):  # noqa: N818 - named as the sentence reads
    """A protocol asks for more edits than there are cases for."""


@dataclass(frozen=True)
class Drawn:
    """The sequences of one model.

    Attributes:
        sequences: the cases of each, in order.
        put_apart: how many requests were left for another sequence since they contradict one that
            was drawn.
    """

    sequences: tuple[tuple[Case, ...], ...]
    put_apart: int = 0


def draw_sequences(
    cases: Sequence[Case],
    protocol: Protocol,
    count: int,
    *,
    seed: int,
    fits: Callable[[Case], bool],
    allow_conflicts: bool = False,
) -> Drawn:
    """Draw ``count`` sequences of ``protocol``.

    Args:
        cases: of one task.
        fits: whether a case fits the model; asked once a case, of as few as are needed.
        allow_conflicts: let requests meet that ask for the same thing, see :func:`conflict_key`.

    Raises:
        TooFewCases: when a sequence cannot be filled.
    """
    known: dict[str, bool] = {}

    def suits(case: Case) -> bool:
        if case.id not in known:
            known[case.id] = fits(case)
        return known[case.id]

    sequences: list[tuple[Case, ...]] = []
    put_apart = shuffles = 0
    left: list[Case] = []
    while len(sequences) < count:
        chosen, rest, apart = _taken(left, protocol.edits, suits, allow_conflicts)
        if len(chosen) < protocol.edits:
            left = sorted(cases, key=lambda case: stable_hash(seed, shuffles, case.id))
            shuffles += 1
            chosen, rest, apart = _taken(left, protocol.edits, suits, allow_conflicts)
        if len(chosen) < protocol.edits:
            raise TooFewCases(_too_few(protocol, len(chosen), apart))
        sequences.append(tuple(chosen))
        left, put_apart = rest, put_apart + apart
    return Drawn(tuple(sequences), put_apart)


def _taken(
    cases: Sequence[Case], n: int, suits: Callable[[Case], bool], allow_conflicts: bool
) -> tuple[list[Case], list[Case], int]:
    """The first ``n`` cases that suit and do not contradict each other; the rest; how many did."""
    chosen: list[Case] = []
    rest: list[Case] = []
    seen: set[Hashable] = set()
    apart = 0
    for place, case in enumerate(cases):
        if len(chosen) == n:
            return chosen, [*rest, *cases[place:]], apart
        if not suits(case):
            continue
        if conflict_key(case) in seen and not allow_conflicts:
            apart += 1
            rest.append(case)
            continue
        seen.add(conflict_key(case))
        chosen.append(case)
    return chosen, rest, apart


def _too_few(protocol: Protocol, n: int, apart: int) -> str:
    beside = f" ({apart} more contradict those: --allow-conflicts lets them meet)" if apart else ""
    return (
        f"--protocol {protocol}: expected at least {protocol.edits} cases that fit, and there are "
        f"{n}{beside}; ask for fewer edits, or raise --limit"
    )


def conflict_key(case: Case) -> Hashable:
    """What two requests share that contradict each other.

    Of facts subject and relation. Of pairs the text around the answer: two pairs with the same
    determiner ask for the same, not for opposite things.
    """
    request = case.request
    return request.relation, request.subject if case.task == "fact" else request.cloze


def by_task(cases: Iterable[Case]) -> dict[Task, list[Case]]:
    """The cases of each task; a sequence is of one task."""
    tasks: dict[Task, list[Case]] = {}
    for case in cases:
        tasks.setdefault(case.task, []).append(case)
    return tasks


# -- locality ----------------------------------------------------------------------------------


def without_edited_neighbours(
    encoded: Sequence[EncodedCase], sequence: Sequence[Case]
) -> list[EncodedCase]:
    """The cases without locality probes about what another case of the sequence edits.

    A probe is about a subject when its text holds it, as whole words.
    """
    editors: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for case in sequence:
        editors[words_of(case.request.subject)].add(case.id)
    longest = max(map(len, editors), default=0)
    return [_spared(one, editors, longest) for one in encoded]


def _spared(
    one: EncodedCase, editors: Mapping[tuple[str, ...], set[str]], longest: int
) -> EncodedCase:
    kept, excluded = [], list(one.exclusions)
    for encoded in one.probes:
        cloze = encoded.probe.cloze
        if encoded.probe.criterion == "locality" and _others(
            words_of(f"{cloze.left} {cloze.right}"), editors, longest, one.case.id
        ):
            excluded.append(Exclusion(one.case.id, EDITED, encoded.probe.id))
        else:
            kept.append(encoded)
    return EncodedCase(one.case, tuple(kept), tuple(excluded))


def _others(
    words: tuple[str, ...], editors: Mapping[tuple[str, ...], set[str]], longest: int, case: str
) -> bool:
    """Whether the text names a subject that another case edits."""
    return any(
        editors.get(words[start : start + length], set()) - {case}
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    )


def mentions(text: str, subjects: Iterable[str]) -> bool:
    """Whether ``text`` holds one of ``subjects`` as whole words."""
    editors = {words_of(subject): {subject} for subject in subjects}
    return _others(words_of(text), editors, max(map(len, editors), default=0), "")


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, without case and punctuation."""
    return tuple(_WORD.findall(text.casefold()))
