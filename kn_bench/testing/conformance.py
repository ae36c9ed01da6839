"""What a method must keep to, checked in one test of its author's::

    from kn_bench.testing.conformance import complaints
    from my_method import mine

    def test_mine_conforms():
        assert not complaints(mine)

Whatever kind of edit a method returns, it is judged by what it does: two edits are the same when
the edited models answer the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kn_bench.cases.case import Case
from kn_bench.editing.registry import bind, marked_spec
from kn_bench.measure.engine import Engine
from kn_bench.measure.measurement import CaseResult, Measurement

if TYPE_CHECKING:
    from kn_bench.model.language_model import LanguageModel

TOLERANCE = 1e-4
"""In nats: what another batch may change in float32 by rounding."""
RELATIONS = ("P36", "P101", "determiner_noun_agreement_1")


def complaints(
    make: Callable[..., Any],
    *,
    model: str | LanguageModel = "",
    cases: Sequence[Case] | None = None,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """Return what is wrong with a method, a sentence each; nothing, when the list is empty.

    Checked are: that every edit is valid; that the same requests get the same edits again; that an
    edit depends on its own request alone, not on the others, nor on their order; that the method
    leaves the model and the random state alone; and that it remembers nothing from call to call
    but what it declares: an attribute ``state`` that names the attributes which may change. A
    method that declares some must have ``reset()``, after which it is as new.

    Args:
        make: the function that ``@edit_method`` decorates: given a model, it returns the method.
        model: what to check it on; by default the smallest embedded model of its kind.
        cases: what to edit; by default a few facts and minimal pairs.
        tolerance: by how much, in nats, log-probabilities may differ.
    """
    spec = marked_spec(make)
    name = spec.name if spec else getattr(make, "__name__", "the method")
    masked = spec is not None and spec.models == "masked"
    bench = _Bench(
        name, _bind(make), _model(model or ("tiny-bert" if masked else "tiny-gpt2")), tolerance
    )
    return list(bench.complaints(list(cases) if cases is not None else _cases()))


def _bind(make: Callable[..., Any]) -> Callable[[LanguageModel], Any]:
    """Return ``make`` as a function of the model, whether it asks for it or not."""
    spec = marked_spec(make)
    if spec is not None:
        return lambda model: bind(spec, model)
    if "language_model" in inspect.signature(make).parameters:
        return lambda model: make(language_model=model)
    return lambda model: make()


def _model(model: str | LanguageModel) -> LanguageModel:
    from kn_bench.model.loading import load_model

    return load_model(model) if isinstance(model, str) else model


def _cases() -> list[Case]:
    from kn_bench.cases import sources

    selection = sources.load("embedded", limit=1, relations=RELATIONS)
    return list(selection.cases)


@dataclasses.dataclass
class _Bench:
    """One method on one model."""

    name: str
    make: Callable[[LanguageModel], Any]
    model: LanguageModel
    tolerance: float

    def complaints(self, cases: list[Case]) -> Iterator[str]:
        self.engine = Engine(self.model)
        before = _surroundings(self.model)
        try:
            method = self.make(self.model)
            kept = _state(method)
            first = self._measured(method, cases)
        except Exception as error:  # the author's code may raise anything
            yield f"{self.name} fails: {type(error).__name__}: {error}"
            return
        yield from self._changed(before, _surroundings(self.model))
        yield from _unusable(self.name, first)
        yield from self._other_runs(first, cases)
        yield from self._remembered(method, kept, first, cases)

    def _measured(self, method: Any, cases: Sequence[Case]) -> dict[str, CaseResult]:
        return self.engine.measure(self.name, method, cases).results

    def _other_runs(self, first: Mapping[str, CaseResult], cases: list[Case]) -> Iterator[str]:
        again = self._measured(self.make(self.model), cases)
        if difference := self._difference(first, again):
            yield f"{self.name} is not deterministic: the same requests again, and {difference}"
            return
        turned = self._measured(self.make(self.model), cases[::-1])
        if difference := self._difference(first, turned):
            yield f"{self.name} depends on the order of the requests: reversed, {difference}"
        alone = self._measured(self.make(self.model), cases[:1])
        if difference := self._difference({cases[0].id: first[cases[0].id]}, alone):
            yield (
                f"{self.name} depends on the other requests: {cases[0].id} alone, and {difference}"
            )

    def _remembered(
        self,
        method: Any,
        kept: Mapping[str, str],
        first: Mapping[str, CaseResult],
        cases: list[Case],
    ) -> Iterator[str]:
        declared = set(getattr(method, "state", ()))
        now = _state(method)
        changed = {name for name in kept.keys() | now.keys() if kept.get(name) != now.get(name)}
        for attribute in sorted(changed - declared):
            yield (
                f"{self.name} changes its attribute {attribute!r} while editing and does not "
                f"declare it: add it to the attribute state, a tuple of names"
            )
        if declared:
            if not hasattr(method, "reset"):
                yield f"{self.name} declares state ({', '.join(sorted(declared))}) but no reset()"
                return
            method.reset()
        if difference := self._difference(first, self._measured(method, cases)):
            when = "after reset()" if declared else "asked a second time"
            yield f"{self.name} remembers earlier requests: {when}, {difference}"

    def _difference(self, ours: Mapping[str, CaseResult], theirs: Mapping[str, CaseResult]) -> str:
        """Return the first case whose edited model answers otherwise, in a clause; "" for none."""
        for case, result in ours.items():
            for measured, again in zip(
                result.measurements, theirs[case].measurements, strict=False
            ):
                gap = _gap(measured, again)
                if gap > self.tolerance:
                    return (
                        f"{case} answers {measured.probe} otherwise (by {gap:.2g} nats; allowed "
                        f"are {self.tolerance:g})"
                    )
            if len(result.measurements) != len(theirs[case].measurements):
                return f"{case} has {len(theirs[case].measurements)} measurements, not " + str(
                    len(result.measurements)
                )
        return ""

    def _changed(self, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
        for what, value in before.items():
            if after[what] != value:
                yield f"{self.name} changes {what}; a method leaves it as it was"


def _unusable(name: str, results: Mapping[str, CaseResult]) -> Iterator[str]:
    yield from dict.fromkeys(result.error for result in results.values() if result.error)
    reasons = {result.not_applicable for result in results.values()}
    if "" not in reasons:
        yield f"{name} applies to none of the cases: {'; '.join(sorted(reasons))}"


def _gap(ours: Measurement, theirs: Measurement) -> float:
    """Return by how much two edited models differ in one probe, in nats."""
    pairs = (
        (ours.after.log_prob_expected, theirs.after.log_prob_expected),
        (ours.after.log_prob_rejected, theirs.after.log_prob_rejected),
        (ours.kl, theirs.kl),
    )
    return max(_distance(a, b) for a, b in pairs)


def _distance(a: float, b: float) -> float:
    """Return |a - b|: 0 between two infinities or two NaN, infinite between NaN and a number."""
    if math.isnan(a) or math.isnan(b):
        return 0.0 if math.isnan(a) and math.isnan(b) else math.inf
    return 0.0 if a == b else abs(a - b)


def _surroundings(model: LanguageModel) -> dict[str, object]:
    """Return what a method must leave alone, in comparable form."""
    modules = list(model.hf.modules())
    return {
        "the model's parameters": model.parameter_hash(),
        "requires_grad of the parameters": [p.requires_grad for p in model.hf.parameters()],
        "the model's hooks": [_hooks(module) for module in modules],
        "the model's mode (train, eval)": [module.training for module in modules],
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": _numpy_state(),
        "Python's random state": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
    }


def _numpy_state() -> tuple[bytes, int]:
    _, keys, position, *_ = np.random.get_state(legacy=True)
    return np.asarray(keys).tobytes(), int(position)


def _hooks(module: torch.nn.Module) -> tuple[int, ...]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return tuple(len(getattr(module, name)) for name in names)


def _state(method: Any) -> dict[str, str]:
    """Return attribute -> a digest of what it holds, of everything but the model."""
    from kn_bench.model.language_model import LanguageModel

    return {
        name: digest(value)
        for name, value in _attributes(method)
        if not isinstance(value, LanguageModel | torch.nn.Module)
    }


def _attributes(method: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(method, "__dict__", {}).items()
    for cls in type(method).__mro__:
        for name in getattr(cls, "__slots__", ()):
            if hasattr(method, name):
                yield name, getattr(method, name)


def digest(value: Any) -> str:
    """Hash contents at any depth: equal for equal ones; unknown objects count by identity."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"
    if isinstance(value, np.ndarray):
        return digest(torch.from_numpy(value))
    if isinstance(value, Mapping):
        return repr([(digest(key), digest(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return repr([digest(item) for item in value])
    if isinstance(value, set | frozenset):
        return repr(sorted(map(digest, value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return repr([(field.name, digest(getattr(value, field.name))) for field in fields])
    if isinstance(value, str | bytes | int | float | bool | None):
        return repr(value)
    return f"{type(value).__name__} {id(value)}"
