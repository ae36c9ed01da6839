"""Settings of methods: a frozen dataclass each, filled from presets and from ``--set``.

Later ones win:

    the dataclass's own defaults       what the paper says of every model
    defaults_for(lm)                   what follows from the model's shape
    editing/presets/*.toml             published or measured settings of known models
    --preset FILE                      the user's own, or those that `kn-bench tune` wrote
    --set METHOD.PARAMETER=VALUE       one value
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import msgspec

from kn_bench.editing.presets import Preset, builtin_presets, preset_for

if TYPE_CHECKING:
    from kn_bench.editing.edit import Notes
    from kn_bench.model.language_model import LanguageModel

_ASSIGNMENT = re.compile(r"(?P<method>[A-Za-z0-9_.-]+)\.(?P<parameter>\w+)=(?P<value>.*)", re.S)
_WORD = re.compile(r"[\w.{}-]+")


class SettingError(ValueError):
    """A setting that no method has, or of the wrong type; one sentence."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all methods' settings.

    Attributes:
        settings_from: where the values come from; recorded with every edit, never set by hand.
    """

    settings_from: str = field(default="published defaults", metadata={"fixed": True})

    @classmethod
    def defaults_for(cls, lm: LanguageModel) -> dict[str, Any]:
        """Return what follows from the shape of ``lm``, where no preset says otherwise."""
        return {}

    def check(self, lm: LanguageModel) -> None:
        """Raise SettingError for values that ``lm`` cannot have."""
        for name in LAYERS:
            layer = _outside(getattr(self, name, None), lm.n_layers)
            if layer is not None:
                raise SettingError(
                    f"layer {layer}: {lm.name} has layers 0 to {lm.n_layers - 1}; set others"
                )


def refuse_modules(lm: LanguageModel, parameter: str, names: Iterable[str]) -> None:
    """Raise SettingError for the first name that is not of a linear module of ``lm``."""
    from kn_bench.model.modules import linear_modules

    known = linear_modules(lm.hf)
    for name in names:
        if name not in known:
            raise SettingError(
                f"{parameter} {name!r}: expected a linear module of {lm.name} below its output "
                "layer; name another"
            )


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One ``--set METHOD.PARAMETER=VALUE``, or a value of another option.

    Attributes:
        method, parameter, value: what is set.
        text: the option's text, as the user gave it.
        option: its name, for messages.
    """

    method: str
    parameter: str
    value: Any
    text: str
    option: str = "--set"

    @property
    def as_given(self) -> str:
        """The option as it was given."""
        return f"{self.option} {self.text!r}"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user chose beyond the built-in presets.

    Attributes:
        assignments: values of ``--set``, in the order given.
        presets: contents of ``--preset`` files, in the order given.
    """

    assignments: tuple[Assignment, ...] = ()
    presets: tuple[Preset, ...] = ()


def parse_assignment(text: str) -> Assignment:
    """Read ``memit.v_lr=0.1``; the value as in TOML, or a bare word.

    Raises:
        SettingError: for another form.
    """
    match = _ASSIGNMENT.fullmatch(text)
    if not match:
        raise SettingError(
            f"--set {text!r}: expected METHOD.PARAMETER=VALUE, such as memit.v_lr=0.1"
        )
    value = parse_value(match["value"])
    return Assignment(match["method"], match["parameter"], value, text)


def parse_value(text: str) -> Any:
    """Read a value as in TOML, or ``none``, or a bare word, or a list of bare words."""
    text = text.strip()
    if text.lower() == "none":
        return None
    for spelled in (text, f"[{text}]" if "," in text else text):  # 0,1 is taken for [0,1]
        try:
            return tomllib.loads(f"value = {spelled}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    words = [word.strip() for word in text.removeprefix("[").removesuffix("]").split(",")]
    # a shell takes the quotes of ["q_proj"] away
    is_list = text.startswith("[") or len(words) > 1
    return words if is_list and all(map(_WORD.fullmatch, words)) else text


def parameters(cls: type[Settings]) -> dict[str, Any]:
    """Return name -> type of what can be set."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls) if not f.metadata.get("fixed")}


def check_assignment(assignment: Assignment, cls: type[Settings] | None) -> Any:
    """Return the value of ``assignment`` in its parameter's type.

    Raises:
        SettingError: for a method without settings, an unknown parameter, or another type.
    """
    if cls is None:
        raise SettingError(
            f"{assignment.as_given}: expected a method with parameters, {assignment.method} "
            "has none; leave it out"
        )
    try:
        return _typed(assignment.parameter, assignment.value, cls, assignment.method)
    except SettingError as error:
        raise SettingError(f"{assignment.as_given}: {error}") from None


def _typed(name: str, value: Any, cls: type[Settings], method: str) -> Any:
    """Return a value in its parameter's type: None is the word where that is one of the choices."""
    known = parameters(cls)
    if name not in known:
        raise SettingError(
            f"{method} has no parameter {name!r}; expected one of {', '.join(sorted(known))}"
        )
    if value is None and "none" in get_args(known[name]):
        value = "none"
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{method}.{name} is {value}: expected a finite number")
    try:
        # text too: TOML has no tuples, and a bare 1 is a float's value as well
        typed = msgspec.convert(value, known[name])
    except msgspec.ValidationError as error:
        hint = get_type_hints(cls)[name]
        wanted = str(hint) if "[" in str(hint) else getattr(hint, "__name__", str(hint))
        raise SettingError(
            f"{method}.{name} is of type {wanted.replace('typing.', '')}: {_lower(str(error))}"
        ) from None
    # an update is shared out over the layers from the first to the last
    if name == "layers" and typed is not None and not _is_ascending(typed):
        raise SettingError(
            f"{method}.layers is {list(typed)}: expected one layer or several, ascending, each once"
        )
    return typed


def _is_ascending(layers: Sequence[int]) -> bool:
    """Return whether there are layers, and each lies above the one before it."""
    return len(layers) > 0 and all(below < above for below, above in pairwise(layers))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].replace("`", "")


def settings_for(method: str, cls: type[S], lm: LanguageModel, choices: Choices | None = None) -> S:
    """Return the settings of ``method`` for ``lm``.

    Raises:
        SettingError: for values that the method or the model cannot have, one sentence.
    """
    choices = choices or Choices()
    values: dict[str, Any] = dict(cls.defaults_for(lm))
    source = values.pop("settings_from", "published defaults")
    for presets in (builtin_presets(), choices.presets):
        preset = preset_for(method, lm.name, presets)
        if preset is not None:
            values |= {n: _typed(n, v, cls, method) for n, v in preset.values.items()
                       if not preset.inherited or n in parameters(cls)}  # fmt: skip
            source = f"{preset.origin} for {preset.model}"
    own = [assignment for assignment in choices.assignments if assignment.method == method]
    values |= {assignment.parameter: check_assignment(assignment, cls) for assignment in own}
    if own:
        source += "; set: " + ", ".join(sorted({assignment.parameter for assignment in own}))
    missing = [f.name for f in fields(cls) if f.name not in values and _required(f)]
    if missing:
        raise SettingError(
            f"{method} on {lm.name} has no value for {', '.join(missing)}: give "
            + " ".join(f"--set {method}.{name}=VALUE" for name in missing)
        )
    settings = cls(**values, settings_from=source)
    try:
        settings.check(lm)
    except SettingError as error:
        raise SettingError(f"{method} on {lm.name}: {error}") from None
    return settings


LAYERS = ("layer", "layers")
"""The parameters that name layers of the model."""


def _outside(value: Any, depth: int) -> int | None:
    """Return the first layer in ``value``, one or several or None, that is not below ``depth``."""
    layers = value if isinstance(value, list | tuple) else [value]
    return next((n for n in layers if n is not None and not 0 <= n < depth), None)


def _required(declared: Any) -> bool:
    return declared.default is MISSING and declared.default_factory is MISSING


def recorded(settings: Settings) -> Notes:
    """Return what is recorded with every edit: the source, and what differs from the defaults."""
    changed = [
        f"{f.name}={_shown(getattr(settings, f.name))}"
        for f in fields(settings)
        if not f.metadata.get("fixed") and getattr(settings, f.name) != f.default
    ]
    return {"settings_from": settings.settings_from, "settings": " ".join(changed)}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_preset(preset: Preset, method: str, cls: type[Settings] | None) -> None:
    if cls is None:
        return
    for name, value in preset.values.items():
        try:
            _typed(name, value, cls, method)
        except SettingError as error:
            raise SettingError(f"--preset {preset.origin}: {error}") from None


def checked_choices(
    sets: Iterable[str],
    presets: Sequence[Preset],
    methods: Mapping[str, type[Settings] | None],
) -> Choices:
    """Return the user's choices, every one of them valid for one of ``methods``.

    Args:
        sets: texts of ``--set``.
        presets: contents of ``--preset`` files.
        methods: name -> settings class of the methods that are measured.

    Raises:
        SettingError: one sentence, for the first that is not.
    """
    assignments = tuple(map(parse_assignment, sets))
    for assignment in assignments:
        if assignment.method not in methods:
            raise SettingError(
                f"{assignment.as_given}: {assignment.method!r} is not among the methods of "
                f"this run ({', '.join(methods)}); name it with --method"
            )
        check_assignment(assignment, methods[assignment.method])
    for preset in presets:
        for method in preset.methods:
            _check_preset(preset, method, methods.get(method))
    return Choices(assignments, tuple(presets))
