"""Which cases form a sequence, in which order, and which of their probes other edits disturb.

A sequence is sampled by seed from the cases of one task that fit the model. Further sequences use
the remaining cases; when too few remain, all are shuffled anew. So K sequences of N edits from N
cases are K orders of the same cases, and from many cases they are K different samples. Under a
protocol of one step the order means nothing, so such batches never share a case.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kn_bench.cases.case import RUN_ON, Case, Exclusion, Task
from kn_bench.cases.sampling import stable_hash
from kn_bench.measure.encoded import EncodedCase
from kn_bench.measure.protocols import Protocol

EDITED = "its subject is edited by another case in the same model"
_WORD = re.compile(rf"(?=\w)[{RUN_ON}]|[^\W{RUN_ON}]+")


class TooFewCases(ValueError):  # noqa: N818 - named as the sentence reads
    """A protocol needs more cases than there are."""


@dataclass(frozen=True)
class Drawn:
    """The sequences of one model.

    Attributes:
        sequences: the cases of each, in order.
        put_apart: number of requests left for another sequence because they contradict one that
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
        cases: cases of one task.
        fits: whether a case fits the model; called once per case, and for as few as needed.
        allow_conflicts: allow contradicting requests in a sequence, see :func:`conflict_key`.

    Raises:
        TooFewCases: if a sequence cannot be filled, of one step without a case of another.
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
        if len(chosen) < protocol.edits and (protocol.steps > 1 or not sequences):
            left = sorted(cases, key=lambda case: stable_hash(seed, shuffles, case.id))
            shuffles += 1
            chosen, rest, apart = _taken(left, protocol.edits, suits, allow_conflicts)
        if len(chosen) < protocol.edits:
            if sequences:
                raise TooFewCases(_too_many(protocol, count, len(sequences), sum(known.values())))
            raise TooFewCases(_too_few(protocol, len(chosen), apart))
        sequences.append(tuple(chosen))
        left, put_apart = rest, put_apart + apart
    return Drawn(tuple(sequences), put_apart)


def _taken(
    cases: Sequence[Case], n: int, suits: Callable[[Case], bool], allow_conflicts: bool
) -> tuple[list[Case], list[Case], int]:
    """Split off the first ``n`` suitable cases that do not contradict each other.

    Returns:
        The chosen cases, the others, and how many of these contradict a chosen one.
    """
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


def _too_many(protocol: Protocol, count: int, batches: int, n: int) -> str:
    apart = batches < n // protocol.edits
    beside = " (some contradict each other: --allow-conflicts lets them meet)" if apart else ""
    return (
        f"--sequences {count}: expected at most {batches}, as the {n} cases that fit make "
        f"{batches} of {protocol.edits} with no case in two{beside}; ask for fewer, or raise "
        "--limit"
    )


def conflict_key(case: Case) -> Hashable:
    """Return what contradicting requests have in common.

    For facts it is subject and relation. For pairs it is the text around the answer: two pairs with
    the same determiner request the same thing, not opposite ones.
    """
    request = case.request
    return request.relation, request.subject if case.task == "fact" else request.cloze


def refuse_conflicts(cases: Iterable[Case]) -> None:
    """Refuse cases that cannot all be edited in one model, see :func:`conflict_key`.

    Raises:
        ValueError: one sentence that names two of them.
    """
    first: dict[Hashable, Case] = {}
    for case in cases:
        other = first.setdefault(conflict_key(case), case)
        if other is not case:
            shared = "subject and relation" if case.task == "fact" else "text around the answer"
            raise ValueError(
                f"{other.id} and {case.id}: expected requests that can be met by one model, and "
                f"both have the same {shared}; leave one of them out, name the relation of each "
                "where these are two facts, or add --allow-conflicts"
            )


def by_task(cases: Iterable[Case]) -> dict[Task, list[Case]]:
    """Group cases by task; a sequence has cases of one task."""
    tasks: dict[Task, list[Case]] = {}
    for case in cases:
        tasks.setdefault(case.task, []).append(case)
    return tasks


# -- locality ----------------------------------------------------------------------------------


def without_edited_neighbours(
    encoded: Sequence[EncodedCase], sequence: Sequence[Case]
) -> list[EncodedCase]:
    """Exclude locality probes about subjects that another case of the sequence edits.

    A probe is about a subject if its text contains the subject as whole words.
    """
    editors: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for case in sequence:
        editors[words_of(case.request.subject)].add(case.id)
    longest = max(map(len, editors), default=0)
    return [_spared(each, editors, longest) for each in encoded]


def _spared(
    encoded: EncodedCase, editors: Mapping[tuple[str, ...], set[str]], longest: int
) -> EncodedCase:
    kept, excluded = [], list(encoded.exclusions)
    for probe in encoded.probes:
        cloze = probe.probe.cloze
        if probe.probe.criterion == "locality" and _others(
            words_of(f"{cloze.left} {cloze.right}"), editors, longest, encoded.case.id
        ):
            excluded.append(Exclusion(encoded.case.id, EDITED, probe.probe.id))
        else:
            kept.append(probe)
    return EncodedCase(encoded.case, tuple(kept), tuple(excluded))


def _others(
    words: tuple[str, ...], editors: Mapping[tuple[str, ...], set[str]], longest: int, case: str
) -> bool:
    """Return whether the text contains a subject that another case edits."""
    return any(
        editors.get(words[start : start + length], set()) - {case}
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    )


def mentions(text: str, subjects: Iterable[str]) -> bool:
    """Return whether ``text`` contains one of ``subjects`` as whole words."""
    editors = {words_of(subject): {subject} for subject in subjects}
    return _others(words_of(text), editors, max(map(len, editors), default=0), "")


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text, without case and punctuation.

    In a script that does not separate words, each character is taken for one.
    """
    return tuple(_WORD.findall(text.casefold()))
