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
from itertools import islice

from kn_bench.cases.case import Case, EditRequest, Exclusion, Probe, Query, Task
from kn_bench.cases.reading import without_collecting
from kn_bench.measure.encoded import (
    AFTER,
    BUDGET,
    UNNAMED,
    AnswerRow,
    EncodedCase,
    EncodedProbe,
    EncodedQuery,
    EncodedRequest,
    Unencodable,
)
from kn_bench.measure.encoders import (
    Asked,
    Body,
    Causal,
    Key,
    Masked,
    encode_one,
    encoder_for,
    in_place,
    key_of,
)
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
]

CHUNK = 2048
"""Cases whose texts are encoded in one call."""


def encode_cases(
    cases: Iterable[Case], tokens: Tokens, prefix: str = ""
) -> list[EncodedCase | Exclusion]:
    """Each case in ``tokens``' ids, or why it does not fit (its edited prompt does not).

    Args:
        cases: any number; texts they share are encoded once. Where they are still being loaded,
            those that are there are encoded meanwhile.
        tokens: of the model to be asked.
        prefix: a text to put in front of every prompt, followed by a space.
    """
    encoder = encoder_for(tokens, prefix, BUDGET)
    encoded: list[EncodedCase | Exclusion] = []
    with without_collecting():
        for chunk, asked in _read_ahead(encoder, cases):
            bodies = encoder.fit(asked)
            encoded += [_case(case, bodies) for case in chunk]
    return encoded


def _read_ahead(
    encoder: Causal | Masked, cases: Iterable[Case]
) -> Iterator[tuple[Sequence[Case], Sequence[Asked]]]:
    """Chunks of cases with what they ask, read while the cases before are loaded and fitted.

    The tokenizer runs without Python's lock, so that one core encodes while the other goes on.
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
    """One case; see :func:`fit_cases`."""
    (encoded,) = encode_cases([case], tokens, prefix)
    return encoded


def encode_probe(
    probe: Probe, tokens: Tokens, prefix: str = "", *, budget: int = 1
) -> EncodedProbe | Unencodable:
    """One probe in ids, or why it does not fit.

    Args:
        budget: tokens that its free-running answer may take.
    """
    body = encode_one(encoder_for(tokens, prefix, budget), probe)
    return body if isinstance(body, Unencodable) else EncodedProbe(probe, *body)


def encode_query(query: Query, tokens: Tokens, task: Task = "fact") -> EncodedQuery | None:
    """A query in ids; None where it does not fit the model.

    Args:
        task: a fact's answer must end its text for a causal model to be asked; a pair's word
            may be followed by more, which is then not read.
    """
    if tokens.kind == "masked":
        return _masked_query(query, tokens)
    if task == "fact" and not query.cloze.answer_is_last:
        return None
    probe = Probe("query", "reliability", query.cloze, query.answer, query.answer, task="pair")
    body = encode_one(Causal(tokens, ""), probe)
    if isinstance(body, Unencodable):
        return None
    return EncodedQuery(body.prompt_ids, body.answer_position, body.expected.targets)


def encode_request(request: EditRequest, tokens: Tokens) -> EncodedRequest | Unencodable:
    """A request in ids, with the place of the subject's last token.

    A causal model's prompt must hold the subject: where that follows the answer there is none.

    Examples:
        >>> import kn_bench as kn
        >>> model = kn.load_model("tiny-gpt2")
        >>> fact = kn.EditRequest(subject="Canada", prompt="The capital of {} is",
        ...                       target_true="Ottawa", target_new="Rome")
        >>> encoded = kn.encode_request(fact, model.tokens)
        >>> model.tokens.decode(encoded.prompt_ids), model.tokens.decode(encoded.new_ids)
        ('The capital of Canada is', ' Rome')
    """
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
    start = (
        request.prompt.index("{}")
        if before
        else len(cloze.fill(request.target_true)) - len(cloze.right) + request.suffix.index("{}")
    )
    whole = tokens.encode(cloze.fill(request.target_true))
    at = last_token_of(whole, start, start + len(request.subject))
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


def _masked_query(query: Query, tokens: Tokens) -> EncodedQuery | None:
    (answered,) = in_place([(query.cloze, query.answer)], tokens)
    mask = tokens.mask_id
    if isinstance(answered, Unencodable) or mask is None:
        return None
    ids = (*answered.before, *(mask for _ in answered.answer), *answered.after)
    return EncodedQuery(ids, len(answered.before), answered.answer)
