"""Numbers that JSON has no form for, in the header of a saved edit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class NonFinite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number that JSON has no form for."""

    number: Literal["nan", "inf", "-inf"]


Stored = bool | int | float | str | None | NonFinite


def stored(values: Mapping[str, Any]) -> dict[str, Stored]:
    """Return values as JSON holds them; a numpy or torch scalar is unpacked."""
    return {str(name): _scalar(value) for name, value in values.items()}


def _scalar(value: Any) -> Stored:
    value = value.item() if hasattr(value, "item") else value
    return finite(value) if isinstance(value, float) else value


def finite(value: float) -> float | NonFinite:
    """Return a number as JSON holds it."""
    if math.isfinite(value):
        return value
    return NonFinite("nan" if math.isnan(value) else "inf" if value > 0 else "-inf")


def restored(values: Mapping[str, Stored]) -> dict[str, Any]:
    """Return what :func:`stored` was given."""
    return {name: number(v) if isinstance(v, NonFinite) else v for name, v in values.items()}


def number(value: float | NonFinite) -> float:
    """Return what :func:`finite` was given."""
    return float(value.number) if isinstance(value, NonFinite) else float(value)
