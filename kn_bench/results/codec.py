"""Frozen dataclasses to JSON text and back, with their types checked on the way in.

Infinity is no JSON: +-inf is written as +-1e30 and read back as infinite (the log-probability of
what a look-up edit rules out is -inf). NaN is refused: it is never a result.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kn_bench.measure.ranges import Range, range_of
from kn_bench.results.files import StoreError

T = TypeVar("T")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
INFINITE = 1e30
"""Stands for infinity in JSON; no log-probability, KL or norm of a finite model comes near."""


class FormatError(ValueError):
    """A stored text does not hold what it should; one sentence says what."""


def _refuse_constant(name: str) -> None:
    raise FormatError(f"it holds {name}, which is no JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"field {twice!r} stands in it twice")
    return members


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_once_each)
"""Refuses NaN and Infinity, and a repeated key, of which only the last value would count."""


def encode(value: object, indent: int | None = None) -> str:
    """Return JSON text of a dataclass or of builtins, on one line unless ``indent`` is given.

    Raises:
        ValueError: for NaN, naming the field.
    """
    if indent is not None:
        return json.dumps(plain(value), ensure_ascii=False, indent=indent)
    try:
        text = _FAST.encode(value)
        text.encode()  # a lone surrogate has no UTF-8
    except (ValueError, TypeError):
        return _FAST.encode(plain(value))
    return text


def _members(value: Any) -> Any:
    """Return what the encoder cannot write by itself, one level deep."""
    if is_dataclass(value):
        return members(value)
    return dict(value) if isinstance(value, Mapping) else plain(value)


def members(value: Any) -> dict[str, Any]:
    """Return name -> value of the fields of a dataclass, its members as they are."""
    names, read = _reader(type(value))  # type: ignore[arg-type]
    return dict(zip(names, read(value), strict=True))


@lru_cache(maxsize=256)
def _reader(cls: type) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """Return names of the fields, and what reads them all at once, in a third of the time."""
    names = _names(cls)
    if len(names) == 1:
        return names, lambda value: (getattr(value, names[0]),)
    return names, attrgetter(*names) if names else lambda value: ()


_FAST = json.JSONEncoder(
    default=_members, allow_nan=False, ensure_ascii=False, separators=(",", ":")
)
"""Three times as fast as :func:`plain`, but infinity and odd text must go through that."""


def plain(value: Any, where: str = "") -> Any:
    """Return ``value`` in exact builtins: dataclasses and mappings as dict, numpy unpacked."""
    kind = type(value)
    if kind is bool or kind is int or value is None:
        return value
    if isinstance(value, str):
        # a lone surrogate has no UTF-8, and would break the log and the pipe between workers
        return str(value) if value.isascii() else value.encode("utf-8", "replace").decode()
    if kind is float:
        return _finite(value, where)
    if is_dataclass(value):
        return {name: plain(getattr(value, name), name) for name in _names(kind)}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [plain(item, where) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a numpy or torch scalar
        return plain(value.item(), where)
    raise TypeError(f"{where or 'value'} is a {kind.__name__}, which has no JSON form")


@lru_cache(maxsize=256)
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def _finite(value: float, where: str) -> float:
    if math.isnan(value):
        raise ValueError(f"{where or 'value'} is NaN: nothing that was measured can be NaN")
    return max(-INFINITE, min(INFINITE, value))


def decode(cls: type[T], text: str | bytes, *, source: str = "text", newest: int = 0) -> T:
    """Return the ``cls`` that ``text`` (as bytes: UTF-8) holds.

    Args:
        newest: for what has a ``format``, the newest one that is known.

    Raises:
        FormatError: when it holds something else, in one sentence that begins with ``source``.
        StoreError: when it is of a newer format.
    """
    try:
        raw = parsed(text)
        written = raw.get("format") if newest and isinstance(raw, dict) else None
        if type(written) is int and written > newest:
            raise StoreError(
                f"{source} was written by a newer kn_bench (format {written}): update kn_bench"
            )
        return build(cls, raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source} holds no {cls.__name__}: {error}") from None


def parsed(text: str | bytes) -> Any:
    """Return the JSON value of ``text``.

    Raises:
        ValueError: when it is no JSON, or no UTF-8, or holds what UTF-8 cannot.
        RecursionError: when it is nested too deeply.
    """
    text = text if isinstance(text, str) else text.decode()
    value = _STRICT.decode(text)
    if _SURROGATE.search(text):  # escaped, it may be half of a pair
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds a lone surrogate, which is no text") from None
    return value


def build(cls: type[T], raw: object, ignore: frozenset[str] = frozenset()) -> T:
    """Return ``cls`` from parsed JSON; keys in ``ignore`` are passed over.

    Raises:
        FormatError: for a missing, unknown or ill-typed field, naming it.
    """
    if not isinstance(raw, dict):
        raise FormatError(f"expected an object, found {_kind(raw)}")
    specs = _specs(cls)  # type: ignore[arg-type]
    if unknown := raw.keys() - specs.keys() - ignore:
        raise FormatError(f"unknown field {min(unknown)!r}")
    values = {}
    for name, (hint, required, within) in specs.items():
        if name in raw:
            values[name] = value = _typed(hint, raw[name], name)
            if within is not None and value is not None:
                _check(value, within, name)
        elif required:
            raise FormatError(f"field {name!r} is missing")
    return cls(**values)


@lru_cache(maxsize=256)
def _specs(cls: type) -> dict[str, tuple[Any, bool, Range | None]]:
    """Return field name -> (type, required, range)."""
    hints = get_type_hints(cls)
    return {
        field.name: (
            hints[field.name],
            field.default is MISSING and field.default_factory is MISSING,
            range_of(field),
        )
        for field in fields(cls)
    }


def _check(value: Any, within: Range, name: str) -> None:
    """Refuse a number, or one of a list or mapping, that is out of its range."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(item, within, f"{name}.{key}")
    elif isinstance(value, tuple):
        for item in value:
            _check(item, within, name)
    elif value not in within:
        raise FormatError(f"field {name!r} holds {value!r}: expected {within.words}")


def _typed(hint: Any, raw: Any, name: str) -> Any:
    """Return ``raw`` as a ``hint``."""
    if hint is float:
        if type(raw) in (float, int):
            return _unclamped(_as_float(raw, name))
    elif hint in (str, int, bool, NoneType):
        if type(raw) is hint:
            return raw
    elif is_dataclass(hint):
        return build(hint, raw)  # type: ignore[arg-type]
    else:
        return _composed(hint, raw, name)
    raise FormatError(f"field {name!r} holds {_kind(raw)}, not {hint.__name__}")


def _composed(hint: Any, raw: Any, name: str) -> Any:
    """Return ``raw`` as a union, literal, tuple or mapping."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(args, raw, name)
    if origin is Literal:
        if raw in args:
            return raw
        raise FormatError(f"field {name!r} holds {raw!r}, not one of {', '.join(map(repr, args))}")
    if origin is tuple:
        if isinstance(raw, list):
            return tuple(_typed(args[0], item, name) for item in raw)
        raise FormatError(f"field {name!r} holds {_kind(raw)}, not a list")
    if isinstance(raw, dict):
        items = {key: _typed(args[1], item, f"{name}.{key}") for key, item in raw.items()}
        return items if origin is dict else MappingProxyType(items)
    raise FormatError(f"field {name!r} holds {_kind(raw)}, not an object")


def _one_of(hints: tuple[Any, ...], raw: Any, name: str) -> Any:
    """Return the member of a union with exactly the type of ``raw``, else the first that fits."""
    for hint in hints:
        if type(raw) is hint:
            return _unclamped(raw) if hint is float else raw
    error = None
    for hint in hints:
        try:
            return _typed(hint, raw, name)
        except FormatError as failure:
            error = error or failure
    raise error or FormatError(f"field {name!r} holds {_kind(raw)}")


def _as_float(value: float, name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise FormatError(f"field {name!r} holds a number too large to be a result") from None
    return number


def _unclamped(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= INFINITE else value


def _kind(raw: object) -> str:
    """Return what a JSON value is, for messages."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        NoneType: "null",
        bool: "a truth value",
    }
    return names.get(type(raw), "a number")
