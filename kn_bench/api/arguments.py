"""Check the types of the public API's arguments, and say in one sentence what was expected."""

from __future__ import annotations

from collections.abc import Iterable

from kn_bench.cases.case import Case, EditRequest


def check_requests(requests: Iterable[object]) -> None:
    """Check that every item is an edit request.

    Raises:
        TypeError: for the first that is not, naming its type.
    """
    for request in requests:
        if not isinstance(request, EditRequest):
            given = type(request).__name__
            hint = "; a case has one: case.request" if isinstance(request, Case) else ""
            raise TypeError(f"request: expected a kn_bench.EditRequest, and got {given}{hint}")


def listed_cases(cases: Iterable[object]) -> list[Case]:
    """Return cases, of any kind of iterable, as a list.

    Raises:
        TypeError: for one case by itself, or the first item that is none, naming its type.
    """
    if isinstance(cases, Case):
        raise TypeError("cases: expected several in a list, and got one; give [case]")
    listed: list[Case] = []
    for case in cases:
        if not isinstance(case, Case):
            hint = " (a request alone has no probes)" if isinstance(case, EditRequest) else ""
            raise TypeError(
                "cases: expected cases with probes, as kn_bench.load_cases gives them, and got "
                f"{type(case).__name__}{hint}"
            )
        listed.append(case)
    return listed
