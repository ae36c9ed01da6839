"""From an edit request to the rows that ROME runs, in the tokens of one model."""

from __future__ import annotations

from collections.abc import Sequence

from kn_bench.cases.case import EditRequest
from kn_bench.editing.edit import NotApplicable
from kn_bench.editing.rome.problem import ValueProblem, ValueRow
from kn_bench.model.tokens import Encoding, Tokens, last_token_of

ANCHOR = "{} is a"
"""The prompt of the KL term: what the subject is, is to stay."""


def encode_problem(
    request: EditRequest, tokens: Tokens, contexts: Sequence[str], *, anchor: str = ANCHOR
) -> ValueProblem:
    """Return the rows of ``request``: the bare prompt, then the prompt after each of ``contexts``.

    Args:
        contexts: texts put in front of the prompt as they stand, spaces included.
        anchor: prompt of the KL term, ``{}`` for the subject; ``""`` for none.

    Raises:
        NotApplicable: when the subject does not come before the answer, an answer's tokens are
            none of their own, or a row is longer than the model takes.
    """
    if "{}" not in request.prompt:
        raise NotApplicable(
            "ROME changes what the subject says to the answer: the subject must come before it"
        )
    rows = tuple(_row(request, tokens, context) for context in ("", *contexts))
    longest = max(len(row.ids) for row in rows)
    if longest > tokens.max_length:
        raise NotApplicable(
            f"the prompt after a generated context has {longest} tokens, and the model takes "
            f"{tokens.max_length}"
        )
    return ValueProblem(rows, _anchor(request, tokens, anchor) if anchor else None)


def _row(request: EditRequest, tokens: Tokens, context: str) -> ValueRow:
    left = context + request.cloze.left
    start = len(left) + len(request.cloze.gap_space)
    encoding = tokens.encode(left + request.cloze.gap_space + request.target_new)
    at = [i for i, (a, b) in enumerate(encoding.offsets) if b > start and a < b]
    if not at or encoding.offsets[at[0]][0] < len(left):
        raise NotApplicable("the answer shares a token with the prompt")
    subject = len(context) + request.prompt.index("{}")
    return ValueRow(
        encoding.ids[: at[-1]],
        _last_of(encoding, subject, request.subject),
        tuple(range(at[0] - 1, at[-1])),
        encoding.ids[at[0] : at[-1] + 1],
        _first_after(encoding, len(context.rstrip())),
    )


def _anchor(request: EditRequest, tokens: Tokens, anchor: str) -> ValueRow:
    encoding = tokens.encode(anchor.replace("{}", request.subject))
    at = _last_of(encoding, anchor.index("{}"), request.subject)
    # a causal model's answer there does not depend on what follows
    return ValueRow(encoding.ids[: at + 1], at, (at,))


def _first_after(encoding: Encoding, end: int) -> int:
    """Return the first token that reaches past ``end`` characters; 0 where ``end`` is 0."""
    return next(i for i, (_, b) in enumerate(encoding.offsets) if b > end) if end else 0


def _last_of(encoding: Encoding, start: int, subject: str) -> int:
    return last_token_of(encoding, start, start + len(subject))
