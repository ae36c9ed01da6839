"""What a method must leave as it found it, besides the weights: compared, and put back.

    of each module    class, hooks, mode, children, parameters, buffers, plain attributes
    of a parameter    dtype, device, requires_grad
    of the model      its config, the attributes of LanguageModel and Tokens
    of the process    settings, hooks and code (kn_bench.editing.process)
    its answers       the logits of one text, to rounding

A hook or a changed epsilon that outlives its method would change the numbers of every method after
it, with no sign of it anywhere. The answers show what none of the other lines does. The random
state is given to each method anew (:func:`own_random`): what it draws depends on nothing that ran
before, and nothing that runs after depends on it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kn_bench.editing.process import Process, replaced
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loading_tokens import SENTENCE

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_MEMBERS = {
    "_modules": "modules or parameters",
    "_parameters": "modules or parameters",
    "_buffers": "buffers",
}
_PLAIN = (bool, int, float, str, tuple, type(None), torch.dtype)
_OWN_CODE = (FunctionType, MethodType, partial)
_CHANGING = frozenset({"training", "max_seq_len_cached", "original_max_seq_len"})
"""Attributes that have a line of their own here, or that a forward pass may change."""
_CHOSEN_LATER = frozenset({"corpus"})
"""Attributes of a LanguageModel that the first method to need them may choose."""


ROUNDING, COARSEST = 1000, 0.1
"""How many times the dtype's resolution, and what share of the largest logit, logits may move."""


class AnswersDifferError(RuntimeError):
    """A method has changed what a model answers, in a way that nothing here undoes."""


@dataclass(frozen=True)
class _Kept:
    """One module as it was."""

    module: nn.Module
    kind: type
    training: bool
    hooks: dict[str, dict[Any, Any]]
    members: dict[str, dict[str, Any]]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> _Kept:
        return cls(
            module,
            type(module),
            module.training,
            {name: dict(getattr(module, name)) for name in _HOOKS if hasattr(module, name)},
            {name: dict(getattr(module, name)) for name in _MEMBERS},
            _attributes(module),
        )

    def put_back(self) -> Iterator[str]:
        module = self.module
        if type(module) is not self.kind:
            module.__class__ = self.kind
            yield f"class of a {self.kind.__name__}"
        if module.training != self.training:
            module.training = self.training
            yield "mode (train, eval)"
        for name, hooks in self.hooks.items():
            if replaced(getattr(module, name), hooks):
                yield "hooks"
        for name, members in self.members.items():
            if replaced(getattr(module, name), members):
                yield _MEMBERS[name]
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
    """Return the numbers and texts of a module, and functions of its own, if it has any."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _OWN_CODE)
        or (isinstance(value, _PLAIN) and not name.startswith("_") and name not in _CHANGING)
    }


class _Attributes:
    """The attributes of one of our own objects, and what its lists hold."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._kept = dict(vars(owner))
        self._lists = [(v, list(v)) for v in self._kept.values() if isinstance(v, list)]
        self._cached = {
            name
            for kind in type(owner).__mro__
            for name, value in vars(kind).items()
            if isinstance(value, cached_property)
        }

    def put_back(self) -> Iterator[str]:
        now = vars(self._owner)
        changed = [
            name
            for name, value in self._kept.items()
            if now.get(name, self) is not value and name not in _CHOSEN_LATER
        ]
        added = [name for name in now if name not in self._kept and name not in self._cached]
        for name in changed:
            now[name] = self._kept[name]
        for name in added:
            del now[name]
        for held, wanted in self._lists:
            if [id(part) for part in held] != [id(part) for part in wanted]:
                held[:] = wanted
                changed += [name for name, value in self._kept.items() if value is held]
        if changed or added:
            names = ", ".join(sorted({*changed, *added}))
            yield f"attribute {names} of {type(self._owner).__name__}"


class Surroundings:
    """A model and its process as they are now, to be put back later.

    Args:
        lm: the model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._hf: nn.Module = lm.hf
        self._modules = [_Kept.of(module) for module in self._hf.modules()]
        self._parameters = [(p, p.dtype, p.device, p.requires_grad) for p in self._hf.parameters()]
        self._config = deepcopy(vars(self._hf.config)) if hasattr(self._hf, "config") else {}
        self._objects = [_Attributes(lm), _Attributes(lm.tokens)]
        self._process = Process(self._hf)
        self._text = lm.tokens.encode(SENTENCE).ids
        self._answered = self._answers()

    def put_back(self) -> tuple[str, ...]:
        """Restore everything; return what differed, each named once."""
        process = list(self._process.put_back())  # first, as the rest runs under its settings
        return tuple(dict.fromkeys([*self._differences(), *process]))

    def _differences(self) -> Iterator[str]:
        for ours in self._objects:
            yield from ours.put_back()
        for kept in self._modules:
            for what in kept.put_back():
                yield f"the model's {what}"
        yield from self._parameters_put_back()
        if self._config and repr(vars(self._hf.config)) != repr(self._config):
            vars(self._hf.config).clear()
            vars(self._hf.config).update(deepcopy(self._config))
            yield "the model's config"

    def _parameters_put_back(self) -> Iterator[str]:
        for parameter, dtype, device, wanted in self._parameters:
            if parameter.dtype != dtype:
                yield "the model's parameters (dtype)"
            if parameter.device != device:
                yield "the model's parameters (device)"
            parameter.data = parameter.data.to(device, dtype)
            if parameter.requires_grad != wanted or parameter.grad is not None:
                parameter.requires_grad_(wanted)
                parameter.grad = None
                yield "requires_grad or gradients of the model's parameters"

    def check_answers(self) -> None:
        """Refuse a model that answers otherwise than it did, though all of the above is put back.

        Raises:
            AnswersDifferError: one sentence.
        """
        before = self._answered
        # a machine need not compute the same twice to the bit
        rounding = min(ROUNDING * torch.finfo(self._lm.dtype).eps, COARSEST)
        atol = rounding * float(before.abs().nan_to_num().max())
        try:
            same = torch.allclose(self._answers(), before, rtol=0, atol=atol, equal_nan=True)
        except Exception:  # of whatever was changed
            same = False
        if not same:
            raise AnswersDifferError(
                f"{self._lm.name}: expected the answers that it gave before any method ran, and it "
                "gives others with the same weights and modules: a method has changed something "
                "that cannot be put back; measure it in a run of its own"
            )

    @torch.no_grad()
    def _answers(self) -> Tensor:
        last = self._lm.tensor([[len(self._text) - 1]])
        return self._lm.forward(self._lm.tensor([self._text]), last).float().cpu()


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
