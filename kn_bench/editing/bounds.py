"""Types of settings with the values that they can have: msgspec checks what the user gives."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
"""Steps, ranks, sizes of batches: at least one."""
Whole = Annotated[int, Meta(ge=0)]
"""How many, which may be none."""
Rate = Annotated[float, Meta(gt=0)]
"""A step's size, a factor of a norm: above 0."""
Share = Annotated[float, Meta(ge=0, le=1)]
"""A part of a whole."""
Dropped = Annotated[float, Meta(ge=0, lt=1)]
"""A part that is left out: never the whole."""
Weight = Annotated[float, Meta(ge=0)]
"""Weights, ridges, decays, margins, losses: not below 0, which is none of it."""
Lengths = tuple[tuple[Count, Whole], ...]
"""(tokens, how many) of the generated contexts; () for none of them."""
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""A seed that torch takes."""
