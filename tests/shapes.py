"""The shapes in annotations, checked at run time in the tests (jaxtyping and beartype).

jaxtyping's own import hook decorates every function, nested ones at every call of the outer one: it
made importing six times slower. This one decorates only what has a shape in its signature, once,
when its module has been executed and before anything is imported from it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping
from beartype import beartype

CHECKED = ("kn_bench.model", "kn_bench.editing", "kn_bench.localise", "kn_bench.measure")
"""The packages whose functions work on tensors."""

_NAME = re.compile(r"[A-Za-z_]\w*")


def check_shapes(packages: Sequence[str] = CHECKED) -> None:
    """Check the modules of ``packages`` that are imported from now on.

    Raises:
        RuntimeError: when one with shapes is imported already: it would go unchecked.
    """
    early = [
        name
        for name, module in list(sys.modules.items())
        if name.startswith(tuple(packages))
        and any(getattr(v, "__module__", "") == "jaxtyping" for v in vars(module).values())
    ]
    if early:
        raise RuntimeError(f"imported before shapes were to be checked: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(tuple(packages)))


class _Finder(MetaPathFinder):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(self.packages):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == module.__name__:
                setattr(module, name, _checked(value, vars(module)))


def _checked(value: Any, names: dict[str, Any]) -> Any:
    """``value``, a function or class of the module with these names, with its shapes checked."""
    if isinstance(value, FunctionType):
        return _checked_function(value, names)
    if isinstance(value, type):
        for name, member in list(vars(value).items()):
            if isinstance(member, FunctionType) and (name != "__init__" or is_dataclass(value)):
                setattr(value, name, _checked_function(member, names))
            elif isinstance(member, property) and isinstance(member.fget, FunctionType):
                setattr(value, name, property(_checked_function(member.fget, names)))
    return value


def _checked_function(function: FunctionType, names: dict[str, Any]) -> Any:
    if hasattr(function, "__wrapped__"):  # a context manager or a cache: no longer what it says
        return function
    shaped = {
        name: hint
        for name, hint in function.__annotations__.items()
        if _has_shape(hint, names)
        and not (name == "return" and inspect.isgeneratorfunction(function))
    }
    if not shaped:
        return function
    # the other annotations are mypy's to check: here tests may pass stand-ins
    function.__annotations__ = shaped
    return jaxtyping.jaxtyped(function, typechecker=beartype)


def _has_shape(hint: Any, names: dict[str, Any]) -> bool:
    if not isinstance(hint, str):
        return "jaxtyping" in repr(hint)
    return any("jaxtyping" in repr(names.get(name)) for name in _NAME.findall(hint))
