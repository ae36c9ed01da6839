"""The built-in methods, ``kn_bench.edits.*``: what their source says, and the methods themselves.

The files import torch. To read what they declare costs milliseconds where importing them costs
seconds and 300 MB: who collects tests, or names methods, needs no more.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kn_bench.editing.registry import Kind, bind, declared, marked

if TYPE_CHECKING:
    from kn_bench.model.language_model import LanguageModel


def files() -> list[Path]:
    """Return the files of ``kn_bench.edits``, without importing them."""
    import kn_bench

    folder = Path(kn_bench.__file__).parent / "edits"
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


def module_names() -> list[str]:
    """Return the names of their modules, without importing them."""
    return list(map(_module_name, files()))


def modules() -> list[ModuleType]:
    """Import the modules; imports torch."""
    return list(map(importlib.import_module, module_names()))


def names() -> dict[str, str]:
    """Return name -> ``file:line`` of each method."""
    return {spec.name: spec.origin for spec in marked(unimported())}


def on_request() -> set[str]:
    """Return the methods that are measured only when they are named."""
    return {spec.name for spec in marked(unimported()) if not spec.by_default}


def templates() -> set[str]:
    """Return the methods that are nothing without an argument."""
    return {spec.name for spec in marked(unimported()) if spec.takes}


def kinds() -> dict[str, Kind]:
    """Return the kind of model that each method is defined for."""
    return {spec.name: spec.models for spec in marked(unimported())}


def shares() -> dict[str, str]:
    """Return what each method has in common with others, of those that do."""
    return {spec.name: spec.shares for spec in marked(unimported()) if spec.shares}


@cache
def unimported() -> ModuleType:
    """Return a module of the methods by what their source says; the first edit imports their file.

    They have their presets, and no class of settings that ``--set`` could be checked by.
    """
    module = ModuleType("kn_bench.edits, not imported")
    for file in files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", []):
                name = _decorated_name(call)
                if name:
                    given = _keywords(call)
                    vars(module)[name] = declared(
                        _imported_later(_module_name(file), name),
                        name,
                        f"{file}:{call.lineno}",
                        models=given.get("models") or "any",
                        by_default=given.get("by_default") is not False,
                        takes=given.get("argument") or "",
                        shares=given.get("shares") or "",
                    )
    return module


def _module_name(file: Path) -> str:
    return f"kn_bench.edits.{file.stem}"


def _imported_later(module: str, name: str) -> Callable[[LanguageModel], Any]:
    def make(language_model: LanguageModel) -> Any:
        specs = marked(importlib.import_module(module))
        return bind(next(spec for spec in specs if spec.name == name), language_model)

    return make


def _keywords(call: ast.Call) -> dict[str | None, Any]:
    """Return ``{"models": "causal"}`` of ``@edit_method("rome", models="causal")``."""
    return {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}


def _decorated_name(call: ast.expr) -> str | None:
    """Return ``rome`` of ``@edit_method("rome")``."""
    if not isinstance(call, ast.Call) or not call.args:
        return None
    function, name = call.func, call.args[0]
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called != "edit_method" or not isinstance(name, ast.Constant):
        return None
    return name.value if isinstance(name.value, str) else None
