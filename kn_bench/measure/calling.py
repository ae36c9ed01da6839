"""A method's call for many cases: what it fails at one of them does not take the others with it.

all cases -> fails -> halves -> fail -> ... -> the cases that fail alone; the others together
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kn_bench.cases.case import Case
from kn_bench.editing.edit import Edit, NotApplicable
from kn_bench.editing.faults import UnitTimeoutError, is_fault, reason_of, told
from kn_bench.editing.method import edit_cases
from kn_bench.editing.surroundings import own_random
from kn_bench.editing.validation import checked
from kn_bench.model.language_model import LanguageModel

LEAVE_ALONE = "a method must return its edit as a value and leave the model alone"


class Made(NamedTuple):
    """What a method made of one case.

    Attributes:
        outcome: the validated edit, why none applies, or what went wrong.
        seconds: wall time of the call, divided by the number of its cases.
        raised: the call ended by an error or a refusal, whichever of its cases it was for.
    """

    outcome: Edit | NotApplicable | str
    seconds: float
    raised: bool


@dataclass(frozen=True)
class Caller:
    """Calls one method on one model.

    Attributes:
        name: name of the method.
        method: the method, bound to the model.
        model: the model.
        seed: of the random state that every call begins with.
        put_back: restores the model and the process; returns what was changed.
    """

    name: str
    method: object
    model: LanguageModel
    seed: int
    put_back: Callable[[], tuple[str, ...]]

    def made(self, cases: Sequence[Case]) -> list[Made]:
        """Return what the method makes of each case, in at most four calls a case.

        The cases at which a call fails, or is refused, are found by halving. The others are then
        asked together, so that they are edited as they would be without those.
        """
        first = self._halved(cases)
        raised = {place: made for place, made in enumerate(first) if made.raised}
        if not raised or len(raised) == len(cases):
            return first
        del first  # the edits are made again, and may be as large as the model
        others = iter(self._halved([c for place, c in enumerate(cases) if place not in raised]))
        return [raised[place] if place in raised else next(others) for place in range(len(cases))]

    def _halved(self, cases: Sequence[Case]) -> list[Made]:
        """Call the method once for all cases; where that raises, call it again for each half."""
        together = self._called(cases)
        if len(cases) == 1 or not together[0].raised:
            return together
        middle = len(cases) // 2
        return [*self._halved(cases[:middle]), *self._halved(cases[middle:])]

    def _called(self, cases: Sequence[Case]) -> list[Made]:
        started = time.perf_counter()
        returned, failure = self._returned(cases)
        raised = failure is not None
        left = self.put_back()  # also after an error: the next call is not to pay for it
        if left and not isinstance(failure, str):
            raised = False
            failure = f"{self.name} changed {' and '.join(left)} while editing; {LEAVE_ALONE}"
        seconds = (time.perf_counter() - started) / len(cases)
        if failure is not None:
            return [Made(failure, seconds, raised)] * len(cases)
        try:
            outcomes = checked(returned, len(cases), self.model, self.name)
        except ValueError as error:
            outcomes = [str(error)] * len(cases)
        return [Made(outcome, seconds, raised) for outcome in outcomes]

    def _returned(self, cases: Sequence[Case]) -> tuple[Any, NotApplicable | str | None]:
        """Return what the method returns, or why it does not."""
        try:
            with own_random(self.seed):
                return edit_cases(self.method, cases), None
        except NotApplicable as reason:
            return None, NotApplicable(reason_of(reason))  # without the frames that it came through
        except BaseException as error:  # a plug-in's own code: the run goes on
            if not is_fault(error) or isinstance(error, UnitTimeoutError):
                raise  # the time limit is over: a method that hangs would not be ended again
            return None, f"{self.name} failed while editing: {told(error)}"
