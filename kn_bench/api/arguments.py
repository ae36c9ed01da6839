"""Check the types of the public API's arguments, and say in one sentence what was expected."""

from __future__ import annotations

from collections.abc import Iterable

from kn_bench.cases.case import Case, EditRequest
from kn_bench.model.language_model import LanguageModel


def check_model(model: object) -> None:
    """Check that ``model`` is a loaded model, not its name or a model of transformers.

    Raises:
        TypeError: if it is not, saying how to load one.
    """
    if isinstance(model, LanguageModel):
        return
    if isinstance(model, str):
        raise TypeError(
            f"model {model!r}: expected a loaded model; load it with kn_bench.load_model({model!r})"
        )
    raise TypeError(
        f"model: expected a loaded model, as kn_bench.load_model(NAME) or kn_bench.LanguageModel("
        f"NAME, model, tokenizer) gives it, and got {type(model).__name__}"
    )


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


def check_cases(cases: Iterable[object]) -> None:
    """Check that every item is a case.

    Raises:
        TypeError: for the first that is not, naming its type.
    """
    for case in cases:
        if not isinstance(case, Case):
            hint = " (a request alone has no probes)" if isinstance(case, EditRequest) else ""
            raise TypeError(
                "cases: expected cases with probes, as kn_bench.load_cases gives them, and got "
                f"{type(case).__name__}{hint}"
            )
