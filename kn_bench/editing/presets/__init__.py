"""Presets: settings of methods for known models, as TOML; one loader for the package's and yours.

methods = ["memit", "memit-seq"]   which methods the file is for
base = "rome"                      optional: whose presets are taken first, where they fit

[models."gpt2-xl"]                 by the beginning of a model's name, its organisation left out
source = "..."                     where the numbers come from
layers = [13, 14, 15, 16, 17]      parameters of the methods' settings; "none" as for ``--set``

[[models."gpt2-xl".curve]]         optional: the sweep that chose them, a table a point
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any


class PresetError(ValueError):
    """A file that is no preset; one sentence."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of some methods for one model.

    Attributes:
        methods: names of the methods.
        model: the beginning of the model's name.
        values: parameter -> value, as TOML has them; None for "none".
        source: where the numbers come from.
        origin: the file's name.
        base: whose presets are taken first; "" for none.
        inherited: whether parameters that a method does not have are passed over.
        curve: the sweep that chose the values, a mapping a point.
        path: the file.
    """

    methods: tuple[str, ...]
    model: str
    values: Mapping[str, Any]
    source: str
    origin: str
    base: str = ""
    inherited: bool = False
    curve: tuple[Mapping[str, Any], ...] = field(default=())
    path: Path = Path()


def read_presets(path: Path) -> tuple[Preset, ...]:
    """Return the presets of a TOML file.

    Raises:
        PresetError: when it cannot be read or has another form.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PresetError(f"--preset {path}: expected a TOML file of presets; {error}") from None
    methods, models = raw.get("methods"), raw.get("models")
    if not isinstance(methods, list) or not methods or not isinstance(models, dict):
        raise PresetError(
            f'--preset {path}: expected methods = ["NAME"] and a table [models."NAME"]; '
            "`kn-bench tune` writes such a file"
        )
    presets = []
    for model, table in models.items():
        if not isinstance(table, dict):
            raise PresetError(f"--preset {path}: expected a table [models.{model!r}]")
        values = {n: _read(v) for n, v in table.items() if n not in ("source", "curve")}
        presets.append(
            Preset(
                tuple(map(str, methods)),
                str(model).lower(),
                values,
                str(table.get("source", "")),
                path.name,
                str(raw.get("base", "")),
                curve=tuple(table.get("curve", ())),
                path=path,
            )
        )
    return tuple(presets)


def _read(value: Any) -> Any:
    """Return a value of a table: TOML has no word for none."""
    return None if isinstance(value, str) and value.lower() == "none" else value


@cache
def builtin_presets() -> tuple[Preset, ...]:
    """Return the presets that come with the package."""
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return tuple(preset for file in files for preset in read_presets(file))


def preset_for(method: str, model: str, presets: Sequence[Preset]) -> Preset | None:
    """Return the preset of ``method`` for the longest beginning of ``model``'s name, or None.

    Presets for the same beginning, of several files, are joined: the values of later ones win. A
    preset with a base is joined to what the base says of the model.
    """
    name = model.rstrip("/").rsplit("/", 1)[-1].partition("@")[0].lower()
    own = [p for p in presets if method in p.methods]
    fitting = [p for p in own if name.startswith(p.model)]
    longest = max((len(p.model) for p in fitting), default=0)
    chosen = _joined([p for p in fitting if len(p.model) == longest])
    base = next((p.base for p in own if p.base), "")
    inherited = preset_for(base, model, presets) if base else None
    if inherited is None or (chosen and len(inherited.model) < len(chosen.model)):
        return chosen
    if chosen is None:
        return replace(inherited, inherited=True)
    return replace(chosen, values={**inherited.values, **chosen.values}, inherited=True)


def _joined(presets: Sequence[Preset]) -> Preset | None:
    """Return presets of one method and model as one; None for none."""
    if not presets:
        return None
    values = {name: value for preset in presets for name, value in preset.values.items()}
    origin = " and ".join(preset.origin for preset in presets)
    return replace(presets[-1], values=values, origin=origin)


def used(
    presets: Sequence[Preset], methods: Sequence[str], models: Sequence[str]
) -> dict[tuple[str, str], Preset]:
    """Return what ``presets`` say of each method on each model, where they say anything."""
    pairs = [(method, model) for method in methods for model in models]
    return {pair: preset for pair in pairs if (preset := preset_for(*pair, presets)) is not None}


def refuse_unused(presets: Sequence[Preset], methods: Sequence[str], models: Sequence[str]) -> None:
    """Refuse a file of which nothing would be used: a name in it may be misspelt.

    Args:
        presets: those in the files that the user gave.
        methods, models: names of those that are measured.

    Raises:
        PresetError: for the first such file.
    """
    chosen = used(presets, methods, models)
    for path in dict.fromkeys(preset.path for preset in presets):
        own = [preset for preset in presets if preset.path == path]
        others = [preset for preset in presets if preset.path != path]
        if chosen != used(others, methods, models):
            continue
        if used(own, methods, models):
            raise PresetError(
                f"--preset {own[0].origin}: expected a preset that is used, and another file names "
                "each of its models by a longer beginning; leave one of them out"
            )
        named = ", ".join(dict.fromkeys(name for p in own for name in p.methods))
        fitting = ", ".join(dict.fromkeys(preset.model for preset in own))
        raise PresetError(
            f"--preset {own[0].origin}: expected a preset of a method and a model of this run "
            f"({', '.join(methods)} on {', '.join(models)}), and it has {named} on {fitting}; "
            "correct the names, or leave it out"
        )
