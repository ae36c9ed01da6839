"""Tests that are whole pytest items only while they run: a million of them fit in memory.

A :class:`pytest.Function` takes some 4 KB with its keywords, marks, request and call specification,
all of which can be made again from the test's parameter. Collection asks for little of it (names,
ids, marks), so a :class:`SuiteTest` keeps the parameter and computes that little; whatever else is
asked of it makes it whole first, and after its run it is cut back. To other plug-ins it is the
Function that it would have been.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kn_bench.testing.node_ids import UnitKey

if TYPE_CHECKING:
    from kn_bench.testing.points import Point

UNIT = pytest.StashKey[UnitKey]()
PARAMETER = "verdict"


class Template(NamedTuple):
    """What the tests of one suite have in common.

    Attributes:
        function: one of them, made by pytest.
        prefix: of their node ids.
        marks: of the function itself.
        scopes: of their parameter.
    """

    function: pytest.Function
    prefix: str
    marks: tuple[pytest.Mark, ...]
    scopes: Mapping[str, object]


class LightSpecification:
    """A test's call specification: what orders tests by their fixtures, and the rest when asked."""

    __slots__ = ("_arg2scope", "_test")

    def __init__(self, test: SuiteTest) -> None:
        self._test, self._arg2scope = test, test.template.scopes

    @property
    def params(self) -> dict[str, Point]:
        return {PARAMETER: self._test.point}

    @property
    def indices(self) -> dict[str, int]:
        return {PARAMETER: self._test.index}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._test.specification(), name)


class _WhileLight:
    """The attribute ``callspec`` of a test that is not whole; of one that is, its own comes first.

    Every test is asked for it four times, once for each scope of fixtures.
    """

    def __get__(self, test: SuiteTest, owner: type) -> LightSpecification:
        return LightSpecification(test)


class SuiteTest(pytest.Function):
    """A test of ours: the parameter ``point``, and all the rest when it is asked for."""

    callspec: Any = _WhileLight()
    cls = None  # suites are functions of modules
    __slots__ = ("_given_name", "_whole", "index", "point", "template", "unit")

    def __init__(self, parent: Any, template: Template, point: Point, index: int) -> None:
        self._whole = False
        self._given_name = ""
        self.template, self.point, self.index = template, point, index
        self.unit: UnitKey | None = None
        self.parent = parent
        self.config, self.session, self.path = parent.config, parent.session, parent.path

    @property
    def nodeid(self) -> str:
        return f"{self.template.prefix}[{self.point.id}]"

    @property
    def id(self) -> Any:
        parent: Any = self.parent
        function = parent.id.child(self.template.function.originalname)
        return function.with_params(self.point.id)  # what nodeid is the text of; pytest 8 has none

    @property
    def name(self) -> str:
        return self._given_name or f"{self.template.function.originalname}[{self.point.id}]"

    @name.setter
    def name(self, name: str) -> None:
        self._given_name = "" if name == self.name else name

    @property
    def function(self) -> Any:
        return self.template.function.function

    @property
    def location(self) -> tuple[str, int | None, str]:
        """Where the suite's function stands, as pytest reports it of every test."""
        sample = self.template.function
        path, line, qualified = sample.location
        return path, line, qualified.removesuffix(sample.name) + self.name

    # by identity: pytest 8 would hash an attribute that only a whole item has. In C, since pytest
    # hashes every test many times when it orders them
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Function {self.name}>"

    def __getattr__(self, name: str) -> Any:
        """Compute what collection asks for; for anything else become a whole Function."""
        if self._whole or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name == "own_markers":  # -m
            self.own_markers = [*self.template.marks, *self._own_marks()]
        elif name == "extra_keyword_matches":  # -k
            self.extra_keyword_matches = set()
        else:
            self._become_whole()
        return getattr(self, name)

    def _own_marks(self) -> list[pytest.Mark]:
        return [decorator.mark for decorator in self.point.marks]

    def specification(self) -> Any:
        """Return pytest's own call specification of this test."""
        return dataclasses.replace(
            self.template.function.callspec,
            params={PARAMETER: self.point},
            indices={PARAMETER: self.index},
            _idlist=[self.point.id],
            marks=self._own_marks(),
        )

    def _become_whole(self) -> None:
        marks = vars(self).get("own_markers", ())
        words = vars(self).get("extra_keyword_matches", ())
        self._whole = True
        function = self.template.function
        specification = self.specification()
        super().__init__(
            self.name,
            self.parent,
            callspec=specification,
            keywords={self.point.id: True},
            fixtureinfo=function._fixtureinfo,
            originalname=function.originalname,
        )
        # what another plug-in has added
        self.own_markers += [mark for mark in marks if mark not in self.own_markers]
        self.extra_keyword_matches.update(words)

    def cut_back(self) -> None:
        """Forget what can be made again; called once the test has been run."""
        vars(self).clear()
        if self._whole:
            for name in ("_id", "_nodeid", "_store"):  # slots; which of them, pytest's version says
                if hasattr(self, name):
                    delattr(self, name)
        self._whole = False


def suite_tests(sample: pytest.Function, points: Iterable[Point]) -> list[SuiteTest]:
    """Return a test for each point, all like ``sample``."""
    parent = sample.parent
    assert parent is not None
    theirs = sample.callspec.marks
    marks = tuple(mark for mark in sample.own_markers if mark not in theirs)
    prefix = f"{parent.nodeid}::{sample.originalname}"
    template = Template(sample, prefix, marks, sample.callspec._arg2scope)
    # from_parent comes to the same by five calls a test
    make = partial(type.__call__, SuiteTest, parent, template)
    return [make(point, index) for index, point in enumerate(points)]


def can_stand_for_all(tests: object) -> bool:
    """Whether the one test that pytest made of a suite has our parameter and no other.

    A plug-in may add parameters to every test, or pytest be one that keeps them elsewhere; then
    pytest makes all tests.
    """
    if not isinstance(tests, list) or len(tests) != 1 or type(tests[0]) is not pytest.Function:
        return False
    specification = getattr(tests[0], "callspec", None)
    if specification is None or list(specification.params) != [PARAMETER]:
        return False
    # pytest's own names, in another version perhaps under others
    return hasattr(tests[0], "_fixtureinfo") and (
        hasattr(specification, "_idlist") and hasattr(specification, "_arg2scope")
    )


def asks_for_a_verdict(function: object) -> bool:
    """Whether ``function`` could be a test of a suite."""
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        return False
    collected = getattr(function, "__test__", True)
    return bool(collected) and PARAMETER in inspect.signature(function).parameters


def set_unit(item: pytest.Item, unit: UnitKey) -> None:
    """Say which unit a test of ours belongs to."""
    if isinstance(item, SuiteTest):
        item.unit = unit
    else:
        item.stash[UNIT] = unit


def unit_of(item: pytest.Item) -> UnitKey | None:
    """Return the unit of a test of ours, None for a foreign test."""
    return item.unit if isinstance(item, SuiteTest) else item.stash.get(UNIT, None)
