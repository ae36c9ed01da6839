"""What ``@edit_method`` takes: anything else is refused where it is written, in one sentence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def refuse_name(name: Any) -> None:
    """Raise ValueError if ``name`` is not a method's name, but the decorated function, say."""
    if not isinstance(name, str):
        raise ValueError(
            f"edit_method: expected a name, and it has {_called(name)}; write "
            '@edit_method("name") above the function'
        )
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"edit_method({name!r}): expected a name of letters, digits, '_', '.' and '-'"
        )


def refuse_settings(name: str, settings: Any) -> None:
    """Raise ValueError if ``settings`` is not a class of settings."""
    if settings is not None and not _is_settings(settings):
        raise ValueError(
            f"edit_method({name!r}): settings={_called(settings)}: expected a frozen dataclass "
            "that inherits kn_bench.editing.settings.Settings"
        )


def _called(value: object) -> str:
    """Return what a value is called, with its type where it has no name."""
    return getattr(value, "__qualname__", "") or f"a {type(value).__name__}"


def _is_settings(value: object) -> bool:
    return isinstance(value, type) and is_dataclass(value) and hasattr(value, "defaults_for")


def refuse_function(name: str, function: Callable[..., Any]) -> None:
    """Raise ValueError if ``function`` does not return a method when it is called."""
    if isinstance(function, type):
        kind = "a class"
    elif not inspect.isfunction(inspect.unwrap(function)):
        kind = f"a {type(function).__name__}"
    elif inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        kind = "an async function"
    elif any(p.kind is p.POSITIONAL_ONLY for p in inspect.signature(function).parameters.values()):
        kind = "a function with parameters before '/', which cannot be given by name"
    else:
        return
    raise ValueError(
        f"edit_method({name!r}): {_called(function)} is {kind}: expected a function that returns "
        "the method; write one that takes language_model"
    )
