"""Cases in a tokenizer's ids: what is fed, where the answer is read, which ids are asked for.

    causal   The capital of France is  →  Paris        positions: the last prompt token and on
    masked   The capital of France is [MASK].          position: the mask

Every text is tokenised whole and in place. A causal probe fits when the prompt's ids, as a user
would type it, followed by the answer's ids are the ids of the joined text; a masked one when
the answer is one token whose neighbours stay the same whichever answer is there (a pair's words may
be several: each piece is masked in turn). What does not fit is left out with its reason, never
bent into shape. A case's prompts also leave a causal model room for its free-running answer
(:data:`~kn_bench.measure.encoded.BUDGET` tokens), so that no answer is cut short.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice

from kn_bench.cases.case import Case, EditRequest, Exclusion, Probe, Query, Task, check_request
from kn_bench.cases.reading import without_collecting
from kn_bench.measure.encoded import (
    AFTER,
    BUDGET,
    NOT_LAST,
    UNNAMED,
    AnswerRow,
    EncodedCase,
    EncodedProbe,
    EncodedQuery,
    EncodedRequest,
    Unencodable,
)
from kn_bench.measure.encoders import (
    Body,
    Causal,
    Key,
    Masked,
    UniqueQuestion,
    encode_one,
    encoder_for,
    in_place,
    key_of,
)
from kn_bench.model.given import check_type
from kn_bench.model.tokens import Tokens, last_token_of

__all__ = [
    "AnswerRow",
    "EncodedCase",
    "EncodedProbe",
    "EncodedQuery",
    "EncodedRequest",
    "Unencodable",
    "encode_case",
    "encode_cases",
    "encode_probe",
    "encode_query",
    "encode_request",
    "try_query",
]

CHUNK = 2048
"""Cases whose texts are encoded in one call."""


def encode_cases(
    cases: Iterable[Case], tokens: Tokens, prefix: str = ""
) -> list[EncodedCase | Exclusion]:
    """Encode each case with ``tokens``, or say why its edited prompt cannot be encoded.

    Args:
        cases: any number of cases; texts they share are encoded once. While later cases are still
            being loaded, earlier ones are encoded.
        tokens: the tokenizer of the model.
        prefix: text to put in front of every prompt, followed by a space.
    """
    encoder = encoder_for(tokens, prefix, BUDGET)
    encoded: list[EncodedCase | Exclusion] = []
    # a case encoded again under a prefix is nothing to hold collections back for
    few = isinstance(cases, Sequence) and len(cases) < CHUNK
    with nullcontext() if few else without_collecting():
        for chunk, asked in _read_ahead(encoder, cases):
            bodies = encoder.fit(asked)
            encoded += [_case(case, bodies) for case in chunk]
    return encoded


def _read_ahead(
    encoder: Causal | Masked, cases: Iterable[Case]
) -> Iterator[tuple[Sequence[Case], Sequence[UniqueQuestion]]]:
    """Yield chunks of cases with their questions, encoded while further cases are loaded.

    The tokenizer releases Python's lock, so that another core can encode meanwhile.
    """

    coming, encoding = iter(cases), []
    with ThreadPoolExecutor(1) as ahead:
        while chunk := list(islice(coming, CHUNK)):
            asked, texts = encoder.claim(probe for case in chunk for probe in case.probes)
            encoding.append((chunk, asked, ahead.submit(encoder.encode, texts)))
        for chunk, asked, encoded in encoding:
            encoded.result()
            yield chunk, asked


def encode_case(case: Case, tokens: Tokens, prefix: str = "") -> EncodedCase | Exclusion:
    """Encode one case; see :func:`encode_cases`."""
    (encoded,) = encode_cases([case], tokens, prefix)
    return encoded


def encode_probe(
    probe: Probe, tokens: Tokens, prefix: str = "", *, budget: int = 1
) -> EncodedProbe | Unencodable:
    """Encode one probe, or say why it cannot be encoded.

    Args:
        budget: tokens that its free-running answer may take.
    """
    body = encode_one(encoder_for(tokens, prefix, budget), probe)
    return body if isinstance(body, Unencodable) else EncodedProbe(probe, *body)


def encode_query(query: Query, tokens: Tokens, task: Task = "fact") -> EncodedQuery | None:
    """Encode a query as :func:`try_query` does; return None if it cannot be encoded."""
    encoded = try_query(query, tokens, task)
    return None if isinstance(encoded, Unencodable) else encoded


def try_query(query: Query, tokens: Tokens, task: Task = "fact") -> EncodedQuery | Unencodable:
    """Encode a query, or say why it cannot be encoded.

    Args:
        task: for a causal model a fact's answer must end its text; a pair's word may be followed
            by more text, which is then not read.
    """
    if tokens.kind == "masked":
        return _masked_query(query, tokens)
    if task == "fact" and not query.cloze.answer_is_last:
        return Unencodable(NOT_LAST, query.cloze.fill("▁"))
    probe = Probe("query", "reliability", query.cloze, query.answer, query.answer, task="pair")
    body = encode_one(Causal(tokens, ""), probe)
    if isinstance(body, Unencodable):
        return body
    return EncodedQuery(body.prompt_ids, body.answer_position, body.expected.targets)


def encode_request(request: EditRequest, tokens: Tokens) -> EncodedRequest | Unencodable:
    """Encode a request, with the position of the subject's last token.

    A causal model's prompt must contain the subject; if the subject follows the answer, there is no
    such position.

    Raises:
        TypeError: for anything but an edit request and a model's tokens.

    Examples:
        >>> import kn_bench as kn
        >>> model = kn.load_model("tiny-gpt2")
        >>> fact = kn.EditRequest(subject="Canada", prompt="The capital of {} is",
        ...                       target_true="Ottawa", target_new="Rome")
        >>> encoded = kn.encode_request(fact, model.tokens)
        >>> model.tokens.decode(encoded.prompt_ids), model.tokens.decode(encoded.new_ids)
        ('The capital of Canada is', ' Rome')
    """
    check_request(request)
    check_type("tokens", tokens, Tokens, "the tokens of a loaded model, such as model.tokens")
    before = "{}" in request.prompt
    if not before and "{}" not in request.suffix:
        return Unencodable(UNNAMED, request.id)
    if tokens.kind == "causal" and not before:
        return Unencodable(AFTER, request.id)
    cloze = request.cloze
    probe = Probe(
        "request", "reliability", cloze, request.target_new, request.target_true, task=request.task
    )
    body = encode_one(encoder_for(tokens, ""), probe)
    if isinstance(body, Unencodable):
        return body
    text = cloze.fill(request.target_true)
    start = request.subject_start(text)
    at = last_token_of(tokens.encode(text), start, start + len(request.subject))
    return EncodedRequest(
        request,
        body.prompt_ids,
        body.answer_position,
        at,
        true_ids=body.rejected.targets,
        new_ids=body.expected.targets,
    )


def _case(case: Case, bodies: Mapping[Key, Body | Unencodable]) -> EncodedCase | Exclusion:
    encoded, excluded = [], []
    for probe in case.probes:
        body = bodies[key_of(probe)]
        if not isinstance(body, Unencodable):
            encoded.append(EncodedProbe(probe, *body))
        elif probe.criterion == "reliability":
            return Exclusion(case.id, body.reason, None, body.detail)
        else:
            excluded.append(Exclusion(case.id, body.reason, probe.id, body.detail))
    return EncodedCase(case, tuple(encoded), tuple(excluded))


def _masked_query(query: Query, tokens: Tokens) -> EncodedQuery | Unencodable:
    (answered,) = in_place([(query.cloze, query.answer)], tokens)
    mask = tokens.mask_id
    assert mask is not None  # Tokens has looked
    if isinstance(answered, Unencodable):
        return answered
    ids = (*answered.before, *(mask for _ in answered.answer), *answered.after)
    return EncodedQuery(ids, len(answered.before), answered.answer)
