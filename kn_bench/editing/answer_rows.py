"""Methods without a subject: a request is one text, its prompt with the answer, to be learnt.

AnswerMethod       what they share: reading requests, refusing those that cannot be asked
TunedWeights       those that tune weights on any number of texts at once
SideMemories       those that keep what they learn beside a module, and go on from it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from kn_bench.cases.case import EditRequest
from kn_bench.editing.edit import DenseEdit, MemoryEdit, NotApplicable
from kn_bench.editing.finetuning import TunedRow
from kn_bench.editing.method import State
from kn_bench.editing.settings import Settings
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.progress import stepwise
from kn_bench.model.tokens import Tokens

S = TypeVar("S", bound=Settings)


class AnswerMethod(Generic[S]):
    """A method on one model that is given prompts with their answers.

    Attributes:
        called: what it is called where it is refused.
        teacher_forced: each answer token is predicted from those before it; else all of them are
            predicted at the prompt's last position.
        closed: the end-of-text token is to follow the answer.
    """

    called: ClassVar[str]
    teacher_forced: bool = True
    closed: bool = False

    def __init__(self, lm: LanguageModel, settings: S) -> None:
        self.lm = lm
        self.settings = settings

    def refusals(self, requests: Sequence[EditRequest]) -> list[NotApplicable | None]:
        """Return why the method is not defined for a request, or None.

        Raises:
            NotApplicable: on a masked model.
        """
        return [row if isinstance(row, NotApplicable) else None for row in self._rows(requests)]

    def _rows(self, requests: Sequence[EditRequest]) -> list[TunedRow | NotApplicable]:
        if not self.lm.is_causal:
            raise NotApplicable(f"{self.called} is defined here for causal models")
        return [
            tuned_row(
                request, self.lm.tokens, teacher_forced=self.teacher_forced, closed=self.closed
            )
            for request in requests
        ]

    def _rows_of_all(self, requests: Sequence[EditRequest]) -> list[TunedRow]:
        """Return a row for every request; raise NotApplicable where one has none."""
        rows = []
        for row in self._rows(requests):
            if isinstance(row, NotApplicable):
                raise row
            rows.append(row)
        return rows


class TunedWeights(AnswerMethod[S]):
    """A method that tunes weights, for one request or for many together."""

    called = "fine-tuning"

    def edit(self, requests: Sequence[EditRequest]) -> list[DenseEdit | NotApplicable]:
        """Return the change of weights of each request, tuned by itself.

        Raises:
            NotApplicable: on a masked model, or where a package is missing.
        """
        rows = self._rows(requests)
        edits = iter(self._tune_each([row for row in rows if isinstance(row, TunedRow)]))
        return [row if isinstance(row, NotApplicable) else next(edits) for row in rows]

    def edit_together(self, requests: Sequence[EditRequest]) -> DenseEdit:
        """Return one change of weights for all ``requests``.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        return self._tune(self._rows_of_all(requests))

    def _tune(self, rows: Sequence[TunedRow]) -> DenseEdit:
        """Return the change of weights that teaches all ``rows``."""
        raise NotImplementedError

    def _tune_each(self, rows: Sequence[TunedRow]) -> list[DenseEdit]:
        """Return one change of weights a row, none knowing of the others."""
        return [self._tune([row]) for row in stepwise(self.lm.progress, "editing, request", rows)]


class SideMemories(AnswerMethod[S]):
    """A method with a memory beside a module, whose tensors are the state of a sequence."""

    def edit(self, requests: Sequence[EditRequest]) -> list[MemoryEdit | NotApplicable]:
        """Return one memory a request, each with nothing else in it.

        Raises:
            NotApplicable: on a masked model.
        """
        both = list(zip(requests, self._rows(requests), strict=True))
        return [
            row if isinstance(row, NotApplicable) else self._learn([(request, row)], {})[0]
            for request, row in stepwise(self.lm.progress, "editing, request", both)
        ]

    def begin(self) -> State:
        """Return an empty memory."""
        return {}

    def edit_together(
        self, requests: Sequence[EditRequest], state: State
    ) -> tuple[MemoryEdit, dict[str, Tensor]]:
        """Return a memory with all edits so far, and its tensors as the state.

        Raises:
            NotApplicable: on a masked model, or when it is not defined for one of the requests.
        """
        return self._learn(list(zip(requests, self._rows_of_all(requests), strict=True)), state)

    def _learn(
        self, pairs: Sequence[tuple[EditRequest, TunedRow]], state: State
    ) -> tuple[MemoryEdit, dict[str, Tensor]]:
        """Add ``pairs`` to the memory of ``state``, which is empty at first."""
        raise NotImplementedError


def tuned_row(
    request: EditRequest, tokens: Tokens, *, teacher_forced: bool, closed: bool = False
) -> TunedRow | NotApplicable:
    """Return the prompt with its answer, encoded whole, or why that cannot be.

    Args:
        closed: the end-of-text token, where the model has one, is to follow the answer.
    """
    cloze = request.cloze
    if not cloze.answer_is_last:
        return NotApplicable("text follows the answer: a causal model cannot be asked for it")
    start = len(cloze.left) + len(cloze.gap_space)
    encoding = tokens.encode(cloze.left + cloze.gap_space + request.target_new)
    at = [i for i, (a, b) in enumerate(encoding.offsets) if b > start and a < b]
    if not at or encoding.offsets[at[0]][0] < len(cloze.left):
        return NotApplicable("the answer shares a token with the prompt")
    targets = encoding.ids[at[0] : at[-1] + 1]
    if closed and tokens.eos_id is not None:
        ids, reads = encoding.ids[: at[-1] + 1], tuple(range(at[0] - 1, at[-1] + 1))
        return TunedRow(ids, reads, (*targets, tokens.eos_id))
    if teacher_forced:
        return TunedRow(encoding.ids[: at[-1]], tuple(range(at[0] - 1, at[-1])), targets)
    return TunedRow(encoding.ids[: at[0]], (at[0] - 1,) * len(targets), targets)
