"""Check the types of the public API's arguments, and say in one sentence what was expected."""

from __future__ import annotations

from collections.abc import Iterable

from kn_bench.cases.case import Case, EditRequest, check_request
from kn_bench.model.given import listed


def check_requests(requests: Iterable[object]) -> None:
    """Check that every item is an edit request.

    Raises:
        TypeError: for the first that is not, naming its type.
    """
    for request in requests:
        check_request(request)


def listed_cases(cases: Iterable[object]) -> list[Case]:
    """Return cases, of any kind of iterable, as a list.

    Raises:
        TypeError: for one case by itself, or the first item that is none, naming its type.
    """
    if isinstance(cases, Case):
        raise TypeError("cases: expected several in a list, and got one; give [case]")
    wanted = "cases with probes, as kn_bench.load_cases gives them"
    given: list[Case] = []
    for case in listed("cases", cases, wanted):
        if not isinstance(case, Case):
            hint = " (a request alone has no probes)" if isinstance(case, EditRequest) else ""
            raise TypeError(f"cases: expected {wanted}, and got {type(case).__name__}{hint}")
        given.append(case)
    return given
