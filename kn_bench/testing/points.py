"""What one test is about: the parameter that pytest hands to it."""

from __future__ import annotations

from dataclasses import dataclass

from kn_bench.cases.case import Case, Criterion
from kn_bench.editing.registry import MethodSpec
from kn_bench.measure.protocols import ONCE, Occasion
from kn_bench.results.rows import Key
from kn_bench.testing.node_ids import NodeId
from kn_bench.testing.sequences import PlannedSequence


@dataclass(frozen=True, slots=True)
class Point:
    """The parameter of one test: what is judged, of whom, on which cases, when they are asked.

    Attributes:
        sequence: the whole batch or sequence that the cases belong to; None under ``single``.
    """

    criterion: Criterion
    method: MethodSpec
    model: str
    cases: tuple[Case, ...]
    node_id: NodeId
    occasion: Occasion = ONCE
    sequence: PlannedSequence | None = None

    def key(self, case: Case) -> Key:
        """Return what identifies the verdict on one of its cases."""
        return Key(self.model, self.method.name, case.id, self.criterion, self.occasion)
