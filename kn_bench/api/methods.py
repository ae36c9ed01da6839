"""Editing methods by name, bound to a model, without pytest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, overload

from kn_bench.api.arguments import check_requests
from kn_bench.cases.case import EditRequest, Query
from kn_bench.editing import builtin, registry
from kn_bench.editing.edit import Edit, Method, NotApplicable
from kn_bench.editing.faults import told
from kn_bench.editing.method import edit_each
from kn_bench.editing.provenance import Provenance, Scalar, settings_of
from kn_bench.editing.registry import MethodSpec, Registry, RegistryError
from kn_bench.editing.validation import checked
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loaded import check_model
from kn_bench.model.source import dtype_name

ENTRY_POINTS = "kn_bench.methods"
MethodName = str | Callable[..., Any]
"""A registered name, or a function that ``@edit_method`` decorates."""


def methods() -> tuple[str, ...]:
    """Return the names of all editing methods: the built-in ones and those of installed packages.

    Examples:
        >>> import kn_bench as kn
        >>> "rome" in kn.methods()
        True
    """
    return tuple(registered().methods)


def method(name: MethodName, model: LanguageModel) -> BoundMethod:
    """Bind an editing method to a model.

    Args:
        name: a name that :func:`methods` lists, ``checkpoint:FOLDER``, or a function decorated by
            ``@edit_method``.
        model: what to edit; it stays as it is.

    Raises:
        TypeError: for a model that is not loaded.
        ValueError: for an unknown name, a pattern that names several methods, or a function that
            is not decorated or needs fixtures that only pytest has.
        NotApplicable: for a method that is not defined for this kind of model.

    Examples:
        >>> import kn_bench as kn
        >>> rome = kn.method("rome", kn.load_model("tiny-gpt2"))
        >>> rome.name, rome.settings["layer"]
        ('rome', 0)
    """
    check_model(model)
    spec = _spec(name)
    if reason := spec.not_defined_for(model.tokens.kind):
        raise NotApplicable(reason)
    refuse_fixtures(spec)
    if spec.check is not None:
        spec.check(spec.argument, model.name, dtype_name(model.dtype))
    bound = registry.bind(spec, model)
    return BoundMethod(spec.name, model, bound)


@dataclass(frozen=True)
class BoundMethod:
    """An editing method bound to one model.

    Attributes:
        name: of the method.
        model: what it edits.
        inner: the object that the method's author wrote.

    Examples:
        >>> import kn_bench as kn
        >>> kn.method("none", kn.load_model("tiny-gpt2")).provenance.method
        'none'
    """

    name: str
    model: LanguageModel
    inner: Method

    @overload
    def edit(self, requests: EditRequest) -> Edit: ...

    @overload
    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]: ...

    def edit(
        self, requests: EditRequest | Sequence[EditRequest]
    ) -> Edit | list[Edit | NotApplicable]:
        """Make the edits of ``requests``; the model is left alone.

        Args:
            requests: one, or several, each edited on its own.

        Returns:
            The edit of one request; of several a list, with a NotApplicable in place of an edit
            that the method is not defined for.

        Raises:
            NotApplicable: when the method is not defined for the model, or for the one request.
            TypeError: for anything but edit requests.
            ValueError: when what the method returned is not an edit of this model, or while another
                thread uses the model.
        """
        alone = not isinstance(requests, Iterable) or isinstance(requests, str)
        several: list[Any] = [requests] if alone else [*requests]  # type: ignore[misc]
        check_requests(several)
        asked = [with_queries(request) for request in several]
        edits: list[Edit | NotApplicable] = []
        with self.model.held.block():
            returned = edit_each(self.inner, asked)
        for edit in checked(returned, len(asked), self.model, self.name):
            if isinstance(edit, str):
                raise ValueError(edit)
            edits.append(edit)
        if not alone:
            return edits
        (only,) = edits
        if isinstance(only, NotApplicable):
            raise only
        return only

    @property
    def settings(self) -> dict[str, Scalar]:
        """Return the method's hyperparameters by name; ``{}`` where it does not show them."""
        return settings_of(self.inner)

    @property
    def provenance(self) -> Provenance:
        """Return what :func:`kn_bench.save_edit` records of an edit that this method made."""
        return Provenance(
            model=self.model.name,
            model_hash=self.model.content_hash,
            method=self.name,
            settings=self.settings,
            dtype=dtype_name(self.model.dtype),
        )


def with_queries(request: EditRequest) -> EditRequest:
    """Return ``request`` with a query to locate neurons by: its own prompt where it has none."""
    if request.queries:
        return request
    return replace(request, queries=(Query(request.cloze, request.target_true),))


def _spec(name: MethodName) -> MethodSpec:
    if not isinstance(name, str):
        spec = registry.marked_spec(name)
        if spec is None:
            raise ValueError(
                f"{getattr(name, '__name__', name)!r}: expected a method's name, or a function "
                "decorated by @kn_bench.edit_method"
            )
        return spec
    try:
        chosen = registered().select([name])
    except RegistryError as error:
        raise ValueError(str(error)) from None
    if len(chosen) > 1:
        several = ", ".join(spec.name for spec in chosen)
        raise ValueError(f"{name!r}: expected the name of one method; give one of {several}")
    return chosen[0]


def refuse_fixtures(spec: MethodSpec) -> None:
    """Refuse a method that asks for what only pytest has.

    Raises:
        ValueError: one sentence that names it.
    """
    fixtures = set(inspect.signature(spec.function).parameters) - {"language_model", "settings"}
    if fixtures:
        raise ValueError(
            f"{spec.name}: expected a method that takes language_model and settings alone, and it "
            f"also takes {', '.join(sorted(fixtures))}; measure it by pytest, which has those "
            "fixtures"
        )


def registered() -> Registry:
    """Return the methods of kn_bench.edits and of installed packages.

    Raises:
        ValueError: for a package whose methods cannot be imported.
    """
    known = Registry()
    for module in builtin.modules():
        known.add(module)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            loaded = entry.load()
        except Exception as error:  # a third party's module may raise anything
            raise ValueError(
                f"{ENTRY_POINTS}, {entry.name} = {entry.value!r}: expected a module with methods, "
                f"and importing it raised {told(error)}; correct its package, or remove it"
            ) from error
        # `module:function` names one method, `module` all of its methods
        known.add(loaded if inspect.ismodule(loaded) else _Only(loaded))
    known.check()
    return known


class _Only:
    """Holds one method, as a module holds several."""

    def __init__(self, function: object) -> None:
        self.function = function
