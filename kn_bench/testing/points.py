"""What one test is about (the parameter that pytest hands to it), and what one unit asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pytest

from kn_bench.cases.case import Case, Criterion, Task
from kn_bench.cases.sampling import slug
from kn_bench.editing.registry import MethodSpec
from kn_bench.measure.protocols import ONCE, Occasion
from kn_bench.results.rows import Key
from kn_bench.testing.node_ids import NodeId, model_slug
from kn_bench.testing.sequences import PlannedSequence

_MARKS: dict[Task, tuple[pytest.MarkDecorator]] = {
    "fact": (pytest.mark.facts,),
    "pair": (pytest.mark.pairs,),
}
"""No marks for methods and models: -k finds them, and each mark goes with every report."""
_slug, _model_slug = cache(slug), cache(model_slug)


class Point(NamedTuple):
    """The parameter of one test: what is judged, of whom, on which cases, when they are asked.

    Attributes:
        label: of the cases in test ids.
        sequence: the whole batch or sequence that the cases belong to; None under ``single``.
    """

    criterion: Criterion
    method: MethodSpec
    model: str
    cases: tuple[Case, ...]
    label: str
    occasion: Occasion = ONCE
    sequence: PlannedSequence | None = None

    @property
    def node_id(self) -> NodeId:
        """What the test's id says; not kept, since a million of them take 100 MB."""
        method, model = _slug(self.method.name), _model_slug(self.model)
        return NodeId(self.criterion, method, model, self.label, self.occasion.slug)

    @property
    def id(self) -> str:
        """The parameter's id: what a unit has in common first."""
        _, method, model, label, occasion = self.node_id
        return f"{method}-{model}-{occasion}-{label}" if occasion else f"{method}-{model}-{label}"

    @property
    def marks(self) -> tuple[pytest.MarkDecorator]:
        """What its test is marked with."""
        return _MARKS[self.cases[0].task]

    def key(self, case: Case) -> Key:
        """Return what identifies the verdict on one of its cases."""
        return Key(self.model, self.method.name, case.id, self.criterion, self.occasion)


@dataclass(frozen=True, slots=True)
class Work:
    """What one unit asks for.

    Attributes:
        method: edits.
        model: name of the model that is edited.
        cases: of the unit; of a sequence all of them, in the order of editing.
        sequence: which one; None under ``single``.
    """

    method: MethodSpec
    model: str
    cases: tuple[Case, ...]
    sequence: PlannedSequence | None = None
