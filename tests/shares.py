"""Tests with many like parameters: some of them run each time, the rest by ``make slow``."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], *, fast: Iterable[Any]) -> list[Any]:
    """Return ``values`` as parameters of a test, all but those among ``fast`` marked as slow.

    Raises:
        ValueError: for one of ``fast`` that is not among them: nothing would run in its place.
    """
    values, fast = list(values), list(fast)
    unknown = [value for value in fast if value not in values]
    if unknown:
        raise ValueError(f"{unknown}: expected some of {values}")
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]
