"""What a method must leave as it found it, besides the weights: compared, and put back.

    of each module    hooks, mode, children, parameters, plain attributes, requires_grad
    of the model      its config
    of the process    torch's default dtype, grad mode, precision of products, deterministic mode

A hook or a changed epsilon that outlives its method would change the numbers of every method after
it, with no sign of it anywhere. The random state is given to each method anew (:func:`own_random`):
what it draws depends on nothing that ran before, and nothing that runs after depends on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_PLAIN = (bool, int, float, str, tuple, type(None), torch.dtype)
_CHANGING = frozenset({"training", "max_seq_len_cached", "original_max_seq_len"})
"""Attributes that have a line of their own here, or that a forward pass may change."""


@dataclass(frozen=True)
class _Kept:
    """One module as it was."""

    module: nn.Module
    training: bool
    hooks: dict[str, dict[Any, Any]]
    members: dict[str, dict[str, Any]]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> _Kept:
        return cls(
            module,
            module.training,
            {name: dict(getattr(module, name)) for name in _HOOKS if hasattr(module, name)},
            {name: dict(getattr(module, name)) for name in ("_modules", "_parameters")},
            _attributes(module),
        )

    def put_back(self) -> Iterator[str]:
        module = self.module
        if module.training != self.training:
            module.training = self.training
            yield "mode (train, eval)"
        for name, hooks in self.hooks.items():
            if _replaced(getattr(module, name), hooks):
                yield "hooks"
        for name, members in self.members.items():
            if _replaced(getattr(module, name), members):
                yield "modules or parameters"
        now = _attributes(module)
        if now != self.attributes:
            changed = sorted(
                name
                for name in now.keys() | self.attributes.keys()
                if now.get(name) != self.attributes.get(name)
            )
            for name in now.keys() - self.attributes.keys():
                module.__dict__.pop(name, None)
            module.__dict__.update(self.attributes)
            yield f"attribute {', '.join(changed)} of {type(module).__name__}"


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the numbers and texts of a module, and a forward of its own, if it has one."""
    return {
        name: value
        for name, value in vars(module).items()
        if name == "forward"
        or (isinstance(value, _PLAIN) and not name.startswith("_") and name not in _CHANGING)
    }


def _replaced(now: Any, before: dict[Any, Any]) -> bool:
    """Put ``before`` back into ``now``; whether it differed, by identity."""
    same = now.keys() == before.keys() and all(now[key] is before[key] for key in before)
    if not same:
        now.clear()
        now.update(before)
    return not same


@dataclass(frozen=True)
class _Global:
    """A setting of the process."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], Any]


_GLOBALS = (
    _Global("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Global("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    _Global(
        "torch's precision of products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    _Global(
        "torch's deterministic mode",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    _Global("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
)


class Surroundings:
    """A model and its process as they are now, to be put back later.

    Args:
        hf: the Hugging Face model.
    """

    def __init__(self, hf: nn.Module) -> None:
        self._hf = hf
        self._modules = [_Kept.of(module) for module in hf.modules()]
        self._gradients = [(p, p.requires_grad) for p in hf.parameters()]
        self._config = deepcopy(vars(hf.config)) if hasattr(hf, "config") else {}
        self._globals = [setting.get() for setting in _GLOBALS]

    def put_back(self) -> tuple[str, ...]:
        """Restore everything; return what differed, each named once."""
        return tuple(dict.fromkeys(self._differences()))

    def _differences(self) -> Iterator[str]:
        for kept in self._modules:
            for what in kept.put_back():
                yield f"the model's {what}"
        for parameter, wanted in self._gradients:
            if parameter.requires_grad != wanted or parameter.grad is not None:
                parameter.requires_grad_(wanted)
                parameter.grad = None
                yield "requires_grad or gradients of the model's parameters"
        if self._config and repr(vars(self._hf.config)) != repr(self._config):
            vars(self._hf.config).clear()
            vars(self._hf.config).update(deepcopy(self._config))
            yield "the model's config"
        for setting, wanted in zip(_GLOBALS, self._globals, strict=True):
            if setting.get() != wanted:
                setting.set(wanted)
                yield setting.name


@contextmanager
def own_random(seed: int) -> Iterator[None]:
    """Seed the random states of torch, numpy and Python while open, and put them back."""
    python, old = random.getstate(), np.random.get_state()
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if used else ()
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(old)
