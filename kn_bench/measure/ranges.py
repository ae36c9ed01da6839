"""What values a recorded number can take, stated with its field and checked when it is read back.

A range stands in a dataclass field's metadata. Nothing is checked where rows are made: there the
numbers come from the measurement itself. What reads a file asks :func:`range_of` for each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass
from math import inf
from types import MappingProxyType
from typing import Any

_NAME = "range"


@dataclass(frozen=True, slots=True)
class Range:
    """The closed interval of the values that a field can have.

    Attributes:
        low, high: its ends; an infinite end is itself a value unless ``finite``.
        words: what is expected, for messages.
        finite: whether infinity is none of the values.
    """

    low: float
    high: float
    words: str
    finite: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.finite and abs(value) == inf)


def _metadata(of: Range) -> Mapping[str, Range]:
    return MappingProxyType({_NAME: of})


SHARE = _metadata(Range(0.0, 1.0, "a share from 0 to 1"))
DIFFERENCE = _metadata(Range(-1.0, 1.0, "a difference of probabilities, from -1 to 1"))
# float32 log-softmax may round log 1 to a little above 0, and once for each token of an answer
LOG_PROBABILITY = _metadata(Range(-inf, 1e-3, "a log-probability, at most 0"))
AT_LEAST_ZERO = _metadata(Range(0.0, inf, "a number that is not negative"))
SECONDS = _metadata(Range(0.0, inf, "a finite time that is not negative", finite=True))
COUNT = _metadata(Range(0, 2**53, "a count that is not negative"))
POSITIVE_COUNT = _metadata(Range(1, 2**53, "a positive count"))


def range_of(field: Field[Any]) -> Range | None:
    """Return the range of a dataclass field, or of its mapping's members; None if it has none."""
    return field.metadata.get(_NAME)
