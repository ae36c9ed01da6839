"""Methods as fixtures of a pytest session: the built-in ones, and those of installed packages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kn_bench.editing import builtin, registry
from kn_bench.editing.registry import MethodSpec, RegistryError

if TYPE_CHECKING:
    import pytest

    from kn_bench.editing.settings import Choices, Settings
    from kn_bench.testing.options import Options

ENTRY_POINTS = "kn_bench.methods"
GIVEN = frozenset({"language_model", "settings", "request"})
"""What a method's function may always ask for; for ``settings`` where it has any."""


def fixtures_of(
    specs: Iterable[MethodSpec], name: str, settings_of: Callable[[pytest.FixtureRequest], Settings]
) -> ModuleType:
    """Return a module that holds the fixtures of ``specs``.

    Registered as a plug-in of its own it makes them visible to every test; a fixture in a conftest
    would be visible beside that conftest only, and the suites may lie elsewhere.

    Args:
        settings_of: the settings of the method of the test at hand.
    """
    import pytest  # a method's file is usable without it

    module = ModuleType(name)
    for number, spec in enumerate(specs):
        setattr(
            module, f"method_{number}", pytest.fixture(name=spec.fixture)(_given(spec, settings_of))
        )
    return module


def _given(
    spec: MethodSpec, settings_of: Callable[[pytest.FixtureRequest], Settings]
) -> Callable[..., Any]:
    """Return the function of ``spec``, its settings read from the session.

    Not a fixture of its own called ``settings``: other plug-ins have one, and a suite of the user's
    need not know of it.
    """
    asked = inspect.signature(spec.function).parameters
    if spec.settings is None or "settings" not in asked:
        return spec.function

    def make(request: pytest.FixtureRequest, **fixtures: Any) -> Any:
        return spec.function(settings=settings_of(request), **fixtures)

    names = ["request", *(name for name in asked if name not in ("settings", "request"))]
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # pytest's way
    make.__doc__ = spec.function.__doc__
    return make


def refuse_unknown_fixtures(
    specs: Iterable[MethodSpec], manager: pytest.PytestPluginManager
) -> None:
    """Refuse a method whose function asks for what no plug-in or conftest of this session offers.

    Every one of its tests would be an error with a traceback.

    Raises:
        RegistryError: one sentence that says what there is.
    """
    names: set[str] | None = None
    for spec in specs:
        asked = inspect.signature(spec.function).parameters.values()
        required = [
            p.name
            for p in asked
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        given = GIVEN if spec.settings is not None else GIVEN - {"settings"}
        if set(required) <= given:
            continue
        names = names if names is not None else _fixture_names(manager)
        unknown = [name for name in required if name not in given and name not in names]
        if unknown == ["settings"]:
            raise RegistryError(
                f"the method {spec.name} asks for settings ({spec.origin}), and has none: name "
                "their dataclass by @edit_method(..., settings=...)"
            )
        if unknown:
            raise RegistryError(
                f"the method {spec.name} asks for {', '.join(unknown)} ({spec.origin}), and there "
                "is no such fixture: name the loaded model language_model"
            )


def _fixture_names(manager: pytest.PytestPluginManager) -> set[str]:
    """Return the names of the fixtures of all plug-ins and conftests that are loaded."""
    names = set()
    for plugin in manager.get_plugins():
        for attribute, value in list(getattr(plugin, "__dict__", {}).items()):
            try:
                marker = vars(value).get("_fixture_function_marker")
            except TypeError:
                continue
            if marker is not None:
                names.add(marker.name or attribute)
    return names


def load_builtin(manager: pytest.PytestPluginManager) -> None:
    """Import ``kn_bench.edits.*`` and register them as plug-ins; imports torch."""
    for module in builtin.modules():
        if not manager.is_registered(module):
            manager.register(module, module.__name__)


def declare_builtin(manager: pytest.PytestPluginManager) -> None:
    """Register the built-in methods by what their source says; the first edit imports them.

    Where ``-p`` has named one of their files that is imported already, and they all are.
    """
    if any(map(manager.has_plugin, builtin.module_names())):
        load_builtin(manager)
        return
    module = builtin.unimported()
    if not manager.is_registered(module):
        manager.register(module, module.__name__)


def load_entry_points(manager: pytest.PytestPluginManager) -> None:
    """Register what installed packages offer under ``kn_bench.methods``.

    One that cannot be imported becomes a method whose tests are errors that say so: the others
    still run, and the session does not end as if nothing were missing.
    """
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        name = f"kn_bench method {entry.name} = {entry.value}"
        if manager.has_plugin(name):
            continue
        module = _loaded(entry)
        if not manager.is_registered(module):  # two of them may name one module
            manager.register(module, name)


def _loaded(entry: metadata.EntryPoint) -> ModuleType:
    """Return a module with what ``entry`` offers, or with a method that says why it offers none."""
    module = ModuleType(entry.name)
    try:
        offered = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a third party's module may raise anything, and exit or skip
        problem = f"cannot be imported: {type(error).__name__}: {error}"
        module.__dict__["broken"] = _broken(entry, problem)
        return module
    if isinstance(offered, ModuleType) and any(registry.marked(offered)):
        return offered
    if registry.marked_spec(offered):
        module.__dict__[entry.name] = offered  # module:function names one method of the module
    else:
        problem = "is no method: expected a function with @edit_method, or a module that has one"
        module.__dict__["broken"] = _broken(entry, problem)
    return module


def _broken(entry: metadata.EntryPoint, problem: str) -> Callable[..., Any]:
    origin = f"the entry point {entry.name} = {entry.value} of {ENTRY_POINTS}"
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", entry.name)
    return registry.failing(name, f"{origin} {problem}", origin)


def choices_of(options: Options, methods: Iterable[MethodSpec]) -> Choices:
    """Return what ``--set`` and ``--preset`` say of ``methods``.

    Raises:
        SettingError: for what is not valid; the controller has refused it before.
    """
    from kn_bench.editing.presets import read_presets
    from kn_bench.editing.settings import checked_choices

    presets = [preset for file in options.presets for preset in read_presets(file)]
    return checked_choices(options.sets, presets, {m.name: m.settings for m in methods})


def code_hash(origins: Iterable[str]) -> str:
    """Return SHA-256 of the benchmark's own source and of the files of methods (``file:line``)."""
    import kn_bench
    from kn_bench.results.manifest import hash_files

    package = Path(kn_bench.__file__).parent
    files = {path for path in package.rglob("*.py") if "__pycache__" not in path.parts}
    files.update(package.rglob("*.toml"))
    files.update(builtin.files())
    files.update(Path(origin.rpartition(":")[0]) for origin in origins)
    return hash_files(sorted(file for file in files if file.is_file()), package.parent)
