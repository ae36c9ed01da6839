"""One fact of a data set, with all that the data asks about it: what its readers give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kn_bench.cases.case import Cloze, OpenEnded, Query


class Neighbour(NamedTuple):
    """A question whose answer an edit is to leave alone.

    Attributes:
        cloze, answer: the question and its true answer.
        kind: of locality: ``same_relation``, ``same_object``, ``other_relation``.
        aliases: further true answers.
    """

    cloze: Cloze
    answer: str
    kind: str = "same_relation"
    aliases: tuple[str, ...] = ()


class Synonym(NamedTuple):
    """The edited prompt in other words, with what the two targets are called there."""

    cloze: Cloze
    target_new: str
    target_true: str


class Inverse(NamedTuple):
    """The inverse question, asked about either target, and who the new target belonged to.

    ``about_true`` is None and ``displaced`` empty where the data asks about the new target alone.
    """

    about_new: Cloze
    about_true: Cloze | None
    displaced: str


class Condition(NamedTuple):
    """A question that the unedited model has to answer, its answer and further names of that."""

    cloze: Cloze
    answer: str
    aliases: tuple[str, ...] = ()


class LeftOut(NamedTuple):
    """A question that the data brings and that cannot be asked.

    Attributes:
        group: what it would be asked for, such as ``portability/Reasoning``.
        reason: why it is not, as in :class:`~kn_bench.cases.case.Exclusion`.
        question: its text.
    """

    group: str
    reason: str
    question: str


@dataclass(frozen=True, slots=True)
class Portability:
    """A question whose answer should follow from the edit.

    Attributes:
        kind: the data set's own name for it, such as ``Subject_Aliasing``.
        cloze: the question.
        answers: the answer, then its aliases.
        conditions: what the unedited model has to answer for the question to count.
    """

    kind: str
    cloze: Cloze
    answers: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()


class FactRow(NamedTuple):
    """One fact to be edited, with all that its data set asks about it.

    ``prompt`` and ``suffix`` hold ``{}`` once, or not at all where the subject is not named; see
    :class:`~kn_bench.cases.case.EditRequest`. ``target_true`` is empty where the data brings none;
    ``true_aliases`` are further true answers, none of which may be the new one. ``left_out`` holds
    the questions that the data brings and that cannot be asked.
    """

    relation: str
    subject: str
    prompt: str
    target_true: str
    target_new: str
    suffix: str = "."
    id: str = ""
    paraphrases: tuple[Cloze, ...] = ()
    synonyms: tuple[Synonym, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    inverse: Inverse | None = None
    aliases: tuple[str, ...] = ()
    true_aliases: tuple[str, ...] = ()
    portability: tuple[Portability, ...] = ()
    open_ended: OpenEnded = OpenEnded()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def cloze(self) -> Cloze:
        """The edited prompt with its subject."""
        return Cloze.parse(
            self.prompt.replace("{}", self.subject), self.suffix.replace("{}", self.subject)
        )

    @property
    def queries(self) -> tuple[Query, ...]:
        """The edited prompt and its paraphrases, with the true answer."""
        return tuple(Query(c, self.target_true) for c in (self.cloze, *self.paraphrases))
