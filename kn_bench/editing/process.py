"""The settings of the process and the code that a model runs, as they are now, to be put back.

settings    torch's default dtype and device, inference and grad mode, autocast, precision,
            deterministic mode, and number of threads; Python's recursion limit
hooks       those that torch calls for every module
code        functions of the model's classes, of the modules that define them, and of torch
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every_module

CODE = (FunctionType, BuiltinFunctionType, MethodType, classmethod, staticmethod, property)
"""What does something when it is called or read; beside it classes hold numbers and texts."""
_CASTING = ("cpu", "cuda")
_ENTERED = threading.local()
"""Modes that a thread never leaves. Torch sets them in no other way, and leaves what is dropped."""


@dataclass(frozen=True)
class _Setting:
    """A setting of the process."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], Any]


def _autocast() -> tuple[Any, ...]:
    kinds = ((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _CASTING)
    return _autocast_depth(), torch.is_autocast_cache_enabled(), *kinds


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _set_autocast(wanted: tuple[Any, ...]) -> None:
    depth, cached, *kinds = wanted
    torch.clear_autocast_cache()
    now = _autocast_depth()
    for _ in range(now - depth):
        torch.autocast_decrement_nesting()
    for _ in range(depth - now):
        torch.autocast_increment_nesting()
    torch.set_autocast_cache_enabled(cached)
    for device, (enabled, dtype) in zip(_CASTING, kinds, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _set_default_device(device: torch.device) -> None:
    # given the CPU by name, torch would pass every call through a mode of its own
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _set_inference_mode(enabled: bool) -> None:
    mode = torch.inference_mode(enabled)
    mode.__enter__()
    _ENTERED.modes = (*getattr(_ENTERED, "modes", ()), mode)


_SETTINGS = (
    # first: what puts the others back needs the stack
    _Setting("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("torch's default device", torch.get_default_device, _set_default_device),
    # before the grad mode, which goes with it
    _Setting("torch's inference mode", torch.is_inference_mode_enabled, _set_inference_mode),
    _Setting("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("torch's autocast", _autocast, _set_autocast),
    _Setting(
        "torch's precision of products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    _Setting(
        "torch's deterministic mode",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    _Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
)


def refuse_changed_settings() -> None:
    """Refuse what a module set when it was imported: no method could be blamed for it, or spared.

    Raises:
        ValueError: one sentence, naming every such setting.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    changed = {
        "torch.set_grad_enabled(False)": not torch.is_grad_enabled(),
        "torch.autocast": any(map(torch.is_autocast_enabled, _CASTING)),
        f"torch.set_default_dtype({dtype})": dtype != torch.float32,
        f"torch.set_default_device({str(device)!r})": device.type != "cpu",
    }
    if any(changed.values()):
        names = " and ".join(name for name, differs in changed.items() if differs)
        raise ValueError(
            f"{names}: expected torch's own settings before a method runs; a conftest or plug-in "
            "changed them when it was imported: set them within the method, and back"
        )


class _Code:
    """The functions of one class or module."""

    def __init__(self, owner: type | ModuleType) -> None:
        self.owner = owner
        self.functions = {n: value for n, value in vars(owner).items() if isinstance(value, CODE)}
        self.names = frozenset(vars(owner))

    @cached_property
    def _inherited(self) -> frozenset[str]:
        bases = self.owner.__mro__[1:] if isinstance(self.owner, type) else ()
        return frozenset(name for base in bases for name in vars(base))

    def put_back(self) -> Iterator[str]:
        now = vars(self.owner)
        for name, function in self.functions.items():
            if now.get(name) is not function:
                setattr(self.owner, name, function)
                yield f"{self.owner.__name__}.{name}"
        if len(now) > len(self.names):
            # what is new to a class may hide what it inherits; another name changes nothing
            for name in self._inherited.intersection(now) - self.names:
                if isinstance(now[name], CODE):
                    delattr(self.owner, name)
                    yield f"{self.owner.__name__}.{name}"


class Process:
    """The process as it is now, as far as it concerns a model.

    Args:
        hf: the Hugging Face model.
    """

    def __init__(self, hf: nn.Module) -> None:
        self._settings = [setting.get() for setting in _SETTINGS]
        tables = (value for name, value in vars(every_module).items() if name.startswith("_global"))
        self._hooks = [(table, dict(table)) for table in tables if isinstance(table, dict)]
        self._code = [_Code(owner) for owner in _owners(type(module) for module in hf.modules())]

    def put_back(self) -> Iterator[str]:
        """Restore everything; yield what differed."""
        for setting, wanted in zip(_SETTINGS, self._settings, strict=True):
            if setting.get() != wanted:
                setting.set(wanted)
                yield setting.name
        for table, hooks in self._hooks:
            if replaced(table, hooks):
                yield "torch's hooks of all modules"
        changed = [name for code in self._code for name in code.put_back()]
        if changed:
            yield f"the code of {', '.join(changed)}"


def _owners(classes: Iterable[type]) -> dict[type | ModuleType, None]:
    """Return the classes with those they inherit from, and the modules that define them."""
    inherited = [c for kind in dict.fromkeys(classes) for c in kind.__mro__ if c is not object]
    modules = [sys.modules[c.__module__] for c in inherited if c.__module__ in sys.modules]
    return dict.fromkeys([*inherited, *modules, nn.functional, torch, torch.Tensor])


def replaced(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Put ``before`` back into ``now``; whether it differed, by identity."""
    same = now.keys() == before.keys() and all(now[key] is before[key] for key in before)
    if not same:
        now.clear()
        now.update(before)
    return not same
