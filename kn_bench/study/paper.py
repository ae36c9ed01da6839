"""Figures that Niu et al. (2024) publish, to stand beside one's own."""

from __future__ import annotations

from typing import NamedTuple

from kn_bench.cases.case import Criterion


class Published(NamedTuple):
    """A rate from the paper, in [0, 1]."""

    model: str
    method: str
    relation: str
    criterion: Criterion
    rate: float


PUBLISHED = (
    Published("GPT-2 XL", "rome", "P101", "reliability", 0.9982),
    Published("GPT-2 XL", "rome", "P101", "synonym", 0.5235),
)
