"""Types of settings with the values that they can have: msgspec checks what the user gives."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
"""Steps, ranks, sizes of batches: at least one."""
Rate = Annotated[float, Meta(gt=0)]
"""A step's size, a factor of a norm: above 0."""
Share = Annotated[float, Meta(ge=0, le=1)]
"""A part of a whole."""
