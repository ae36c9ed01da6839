"""Registering methods: ``@edit_method`` marks a function, and a :class:`Registry` finds it.

    built in            kn_bench.edits.*
    conftest, -p        any plug-in module that pytest registers
    installed package   the entry point group ``kn_bench.methods``

There is no global list: a :class:`Registry` belongs to one pytest session and is filled as plug-ins
are registered. The function itself stays a plain function, callable without pytest.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kn_bench.cases.sampling import slug
from kn_bench.editing.registering import refuse_function, refuse_name, refuse_settings

if TYPE_CHECKING:
    from kn_bench.editing.settings import Choices, Settings
    from kn_bench.model.language_model import LanguageModel

Kind = Literal["causal", "masked", "any"]
KINDS: tuple[Kind, ...] = ("causal", "masked", "any")
_MARK = "__kn_bench_method__"

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[str, str, str], None]
"""(argument, model's name, dtype of its weights) -> None, or a ValueError of one sentence."""


class RegistryError(Exception):
    """Methods that cannot be told apart, found or named; one sentence."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """What ``@edit_method`` says of a method.

    Attributes:
        name: as in ``--method`` and on the board.
        models: the kind of model it is defined for.
        function: the fixture function, which returns the method bound to a model.
        origin: ``file:line`` of the function.
        by_default: whether it is measured when no ``--method`` is named.
        settings: dataclass of its parameters, which presets and ``--set`` fill; None for none.
        takes: what is to be named after a colon, ``FOLDER`` of ``checkpoint:FOLDER``; "" for
            nothing.
        check: refuses, by a ValueError, an argument that does not suit a model, by its name and
            dtype.
        shares: what its edits have in common with those of other methods; "" for nothing.
        argument: what was named.
    """

    name: str
    models: Kind
    function: Callable[..., Any]
    origin: str
    by_default: bool = True
    settings: type[Settings] | None = None
    takes: str = ""
    check: Check | None = None
    shares: str = ""
    argument: str = ""

    def not_defined_for(self, kind: str) -> str:
        """Return why the method cannot edit a model of ``kind``, causal or masked; "" if it can."""
        return "" if self.models in ("any", kind) else only_defined_for(self.name, self.models)

    def given(self, argument: str) -> MethodSpec:
        """Return the method for one argument, called after its last part.

        Raises:
            RegistryError: for an empty argument.
        """
        # on another machine the same folder may lie elsewhere
        name = PurePath(argument).name
        if not name:
            raise RegistryError(f"{self.name}: expected {self.name}:{self.takes}; name one")
        function, parameters = self.function, inspect.signature(self.function).parameters

        def with_argument(**fixtures: Any) -> Any:
            return function(argument=argument, **fixtures)

        left = [parameter for key, parameter in parameters.items() if key != "argument"]
        with_argument.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
        with_argument.__doc__ = function.__doc__
        name = f"{self.name}:{name}"
        return replace(self, name=name, function=with_argument, takes="", argument=argument)

    @property
    def fixture(self) -> str:
        """Return the name of its fixture; the space in it rules out a clash with a user's."""
        return f"edit_method {self.name}"


def edit_method(
    name: str,
    *,
    models: Kind = "any",
    by_default: bool = True,
    settings: type[Settings] | None = None,
    argument: str = "",
    check: Check | None = None,
    shares: str = "",
) -> Callable[[F], F]:
    """Register the decorated function as an editing method.

    The function is used as a pytest fixture: it receives fixtures by name, above all
    ``language_model``, and returns an object with ``edit(requests) -> list[Edit]``. It is called
    once for each few dozen cases, so what it returns should be cheap to make.

    Args:
        name: as in ``--method`` and on the board: letters, digits, ``_``, ``.`` and ``-``.
        models: ``causal``, ``masked`` or ``any``: on other models its tests are skipped.
        by_default: whether it is measured when no ``--method`` is named.
        settings: a frozen dataclass of parameters. The function then asks for ``settings`` too and
            receives one filled from presets, ``--preset`` and ``--set``.
        argument: what is to be named after a colon (``--method checkpoint:FOLDER``), for the help.
            The function then asks for ``argument`` too.
        check: called before a run with the argument, the name of each model and the dtype that it
            is loaded in; raises ValueError.
        shares: a name for what takes most of the time and is the same for several methods, such as
            located neurons: methods that share it edit the same cases in the same process.

    Raises:
        ValueError: for a name, a kind of model or a share that cannot be.

    Examples:
        >>> import kn_bench as kn
        >>> class Whisper:
        ...     def edit(self, requests):
        ...         return [kn.PromptEdit(f"{r.subject} is special.") for r in requests]
        >>> @kn.edit_method("whisper")
        ... def whisper(language_model):
        ...     return Whisper()
        >>> fact = kn.EditRequest(subject="Canada", prompt="The capital of {} is",
        ...                       target_true="Ottawa", target_new="Rome")
        >>> kn.method(whisper, kn.load_model("tiny-gpt2")).edit(fact)
        PromptEdit(notes={}, prefix='Canada is special.')
    """
    refuse_name(name)
    if models not in KINDS:
        raise ValueError(
            f"edit_method({name!r}): models={models!r}: expected one of {', '.join(KINDS)}"
        )
    if not isinstance(shares, str):
        raise ValueError(f"edit_method({name!r}): shares={shares!r}: expected a name")

    refuse_settings(name, settings)

    def mark(function: F) -> F:
        refuse_function(name, function)
        return declared(
            function,
            name,
            _origin(function),
            models=models,
            by_default=by_default,
            settings=settings,
            takes=argument,
            check=check,
            shares=shares,
        )

    return mark


def declared(function: F, name: str, origin: str, *, models: Kind = "any", **given: Any) -> F:
    """Mark ``function`` as a method that is declared at ``origin``."""
    setattr(function, _MARK, MethodSpec(name, models, function, origin, **given))
    return function


def failing(name: str, reason: str, origin: str) -> Callable[[], Any]:
    """Return a method that stands in for one that cannot be had: it raises ``reason``."""

    def fail() -> Any:
        raise ImportError(reason)

    return declared(fail, name, origin)


def _origin(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def marked(plugin: object) -> Iterator[MethodSpec]:
    """Yield the methods among the attributes of a plug-in."""
    for value in list(getattr(plugin, "__dict__", {}).values()):
        spec = marked_spec(value)
        if spec is not None:
            yield spec


def marked_spec(function: object) -> MethodSpec | None:
    """Return what ``@edit_method`` recorded for ``function``; None where it was not used."""
    try:
        spec = vars(function).get(_MARK)
    except TypeError:
        return None
    # by type: `pytest.mark` and mocks answer to every attribute
    return spec if isinstance(spec, MethodSpec) else None


class Registry:
    """The methods of one session, by name, in the order they were found."""

    def __init__(self) -> None:
        self.methods: dict[str, MethodSpec] = {}
        self.templates: dict[str, MethodSpec] = {}
        """Methods that are nothing without an argument."""
        self.doubled: list[tuple[MethodSpec, MethodSpec]] = []

    def add(self, plugin: object) -> list[MethodSpec]:
        """Take in what ``plugin`` marks, and return what is new."""
        new = []
        for spec in marked(plugin):
            known = self._alike(spec)
            if known is None:
                (self.templates if spec.takes else self.methods)[spec.name] = spec
                new += [] if spec.takes else [spec]
            elif known.function is not spec.function:
                self.doubled.append((known, spec))
        return new

    def _alike(self, spec: MethodSpec) -> MethodSpec | None:
        """Return a method with the same test ids: of that name, or of another."""
        known = self.methods | self.templates
        same = (s for n, s in known.items() if slug(n) == slug(spec.name))
        return known.get(spec.name) or next(same, None)

    def check(self) -> None:
        """Raise RegistryError for methods that share a name, or the form of it in test ids."""
        for first, second in self.doubled:
            raise RegistryError(doubled(first.name, first.origin, second.name, second.origin))

    def select(self, names: Sequence[str]) -> list[MethodSpec]:
        """Return the methods that ``names`` name; when there are none, those by default.

        Raises:
            RegistryError: for a name that is not known, naming those that are.
        """
        if not names:
            return [spec for spec in self.methods.values() if spec.by_default]
        return [self.methods[name] for name in expand(self.fill(names), self.methods)]

    def fill(self, names: Sequence[str]) -> list[str]:
        """Take in the methods that ``names`` give an argument, and return what all are called.

        Raises:
            RegistryError: for a missing argument, or two that would be called the same.
        """
        called = []
        for name in names:
            template, colon, argument = name.partition(":")
            if template in self.templates:
                spec = self.templates[template].given(argument if colon else "")
                known = self.methods.get(spec.name) or self._alike(spec) or spec
                if known.argument != spec.argument:
                    raise RegistryError(
                        f"--method {template}:{known.argument} and --method {name} have the same "
                        f"name in test ids: measure them in two runs"
                    )
                self.methods[spec.name] = spec
                name = spec.name
            called.append(name)
        return called


def expand(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the methods that ``names`` name: ``all``, patterns such as ``memit*``, plain names.

    Raises:
        RegistryError: for a name or pattern that names none of ``known``.
    """
    known = list(known)
    chosen: dict[str, None] = {}
    for name in names:
        pattern = "*" if name == "all" else name
        fitting = fnmatch.filter(known, pattern) if is_pattern(name) else [name]
        if not fitting or not set(fitting) <= set(known):
            raise RegistryError(unknown_method(name, known))
        chosen.update(dict.fromkeys(fitting))
    return list(chosen)


def is_pattern(name: str) -> bool:
    """Return whether ``name`` may name several methods; what follows a colon is a path."""
    pattern, _, _ = name.partition(":")
    return name == "all" or any(character in pattern for character in "*?[")


def bind(
    spec: MethodSpec, lm: LanguageModel, choices: Choices | None = None, **fixtures: Any
) -> Any:
    """Return the method of ``spec`` on ``lm``, made without pytest.

    Args:
        choices: beyond the built-in presets.
        fixtures: what else its function asks for, by name.

    Raises:
        ValueError: for a function that yields its method, which only pytest can end.
    """
    from kn_bench.editing.settings import settings_for

    if inspect.isgeneratorfunction(inspect.unwrap(spec.function)):
        raise ValueError(
            f"{spec.name}: expected a function that returns its method, and this one yields it, as "
            "fixtures with a teardown do; measure it by pytest"
        )

    given = {"language_model": lm, **fixtures}
    if spec.settings is not None:
        given["settings"] = settings_for(spec.name, spec.settings, lm, choices)
    asked = inspect.signature(spec.function).parameters
    return spec.function(**{name: value for name, value in given.items() if name in asked})


def unknown_method(name: str, known: Iterable[str]) -> str:
    """Return the sentence on a method that nobody registered."""
    return f"unknown method {name!r}; known: {', '.join(sorted(known)) or 'none'}"


def doubled(name: str, origin: str, other: str, of_other: str) -> str:
    """Return the sentence on two methods that share a name, or the form of it in test ids."""
    alike = f" or {name!r}, the same in a test id" * (name != other)
    places = f"{origin} and {of_other}" if origin != of_other else f"{origin}, two functions"
    return f"two methods are called {other!r}{alike}: {places}; rename one of them"


def refuse_double(known: Mapping[str, str], name: str, origin: str) -> None:
    """Raise RegistryError when another origin in ``known`` claims ``name``, or its test ids."""
    for other, of_other in known.items():
        if slug(other) == slug(name) and (other, of_other) != (name, origin):
            raise RegistryError(doubled(other, of_other, name, origin))


def only_defined_for(name: str, kind: Kind) -> str:
    """Return the reason for which the method ``name`` has no edit on models of the other kind."""
    return f"{name} is defined for {kind} models only"
