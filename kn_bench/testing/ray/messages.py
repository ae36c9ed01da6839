"""What the pytest process and its actors send each other, as MessagePack with its types checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from kn_bench.cases.case import Case
from kn_bench.measure.measurement import UnitResult

T = TypeVar("T")


@dataclass(frozen=True)
class Hello:
    """What a worker is told first.

    Attributes:
        arguments: pytest's.
        folder: where pytest was started.
        sys_path: where modules are found.
        worker_config: packed, see :func:`kn_bench.testing.worker_config.pack`.
        models: names, by slug.
        sample: cases of one test: it shows a criterion that the session asks for.
        name: of the worker.
    """

    arguments: list[str]
    folder: str
    sys_path: list[str]
    worker_config: dict[str, str | int]
    models: dict[str, str]
    sample: tuple[Case, ...]
    name: str


@dataclass(frozen=True)
class UnitWork:
    """A unit to be computed; ``sequence`` is its number, None under ``single``."""

    method: str
    model: str
    cases: tuple[Case, ...]
    sequence: int | None = None


@dataclass(frozen=True)
class UnitDone:
    """A unit's result and its seconds, or why the worker could not even try."""

    result: UnitResult | None
    seconds: str = ""
    failure: str = ""


def encode(message: object) -> bytes:
    """Return ``message`` as MessagePack; NaN and infinity stay what they are."""
    return msgspec.msgpack.encode(message, enc_hook=_builtin)


def decode(kind: type[T], data: bytes) -> T:
    """Return the message of type ``kind`` that :func:`encode` made."""
    return msgspec.msgpack.decode(data, type=kind)


def _builtin(value: Any) -> Any:
    if hasattr(value, "item"):  # a numpy or torch scalar
        return value.item()
    if isinstance(value, Mapping):  # one that cannot be written to, such as a case's
        return dict(value)
    raise NotImplementedError(type(value).__name__)
