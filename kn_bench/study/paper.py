"""Rates published by Niu et al. (2024), to compare measured ones with."""

from __future__ import annotations

from typing import NamedTuple

from kn_bench.cases.case import Criterion


class Published(NamedTuple):
    """A published rate, in [0, 1]."""

    model: str
    method: str
    relation: str
    criterion: Criterion
    rate: float


PUBLISHED = (
    Published("GPT-2 XL", "rome", "P101", "reliability", 0.9982),
    Published("GPT-2 XL", "rome", "P101", "synonym", 0.5235),
)
