"""Cases in a tokenizer's ids: what is fed, where the answer is read, which ids are asked for.

    causal   The capital of France is  →  Paris        positions: the last prompt token and on
    masked   The capital of France is [MASK].          position: the mask

Every text is tokenised whole and in place. A causal probe fits when the prompt's ids, as a user
would type it, followed by the answer's ids are the ids of the joined text; a masked one when
the answer is one token whose neighbours stay the same whichever answer is there (a pair's words may
be several: each piece is masked in turn). What does not fit is left out with its reason, never
bent into shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from kn_bench.cases.case import Case, EditRequest, Exclusion, Probe, Query, Task
from kn_bench.cases.reading import without_collecting
from kn_bench.measure.fitted import (
    AFTER,
    FittedCase,
    FittedProbe,
    FittedQuery,
    FittedRequest,
    Misfit,
    Row,
)
from kn_bench.measure.placing import (
    Asked,
    Body,
    Causal,
    Key,
    Masked,
    fitter_for,
    in_place,
    key_of,
    placed,
)
from kn_bench.model.tokens import Tokens, last_token_of

__all__ = [
    "FittedCase",
    "FittedProbe",
    "FittedQuery",
    "FittedRequest",
    "Misfit",
    "Row",
    "fit_case",
    "fit_cases",
    "fit_probe",
    "fit_query",
    "fit_request",
]

CHUNK = 2048
"""Cases whose texts are encoded in one call."""


def fit_cases(
    cases: Iterable[Case], tokens: Tokens, prefix: str = ""
) -> list[FittedCase | Exclusion]:
    """Each case in ``tokens``' ids, or why it does not fit (its edited prompt does not).

    Args:
        cases: any number; texts they share are encoded once. Where they are still being loaded,
            those that are there are encoded meanwhile.
        tokens: of the model to be asked.
        prefix: a text to put in front of every prompt, followed by a space.
    """
    fitter = fitter_for(tokens, prefix)
    fitted: list[FittedCase | Exclusion] = []
    with without_collecting():
        for chunk, asked in _read_ahead(fitter, cases):
            bodies = fitter.fit(asked)
            fitted += [_case(case, bodies) for case in chunk]
    return fitted


def _read_ahead(
    fitter: Causal | Masked, cases: Iterable[Case]
) -> Iterator[tuple[Sequence[Case], Sequence[Asked]]]:
    """Chunks of cases with what they ask, read while the cases before are loaded and fitted.

    The tokenizer runs without Python's lock, so that one core encodes while the other goes on.
    """

    coming, encoding = iter(cases), []
    with ThreadPoolExecutor(1) as ahead:
        while chunk := list(islice(coming, CHUNK)):
            asked, texts = fitter.claim(probe for case in chunk for probe in case.probes)
            encoding.append((chunk, asked, ahead.submit(fitter.encode, texts)))
        for chunk, asked, encoded in encoding:
            encoded.result()
            yield chunk, asked


def fit_case(case: Case, tokens: Tokens, prefix: str = "") -> FittedCase | Exclusion:
    """One case; see :func:`fit_cases`."""
    (fitted,) = fit_cases([case], tokens, prefix)
    return fitted


def fit_probe(probe: Probe, tokens: Tokens, prefix: str = "") -> FittedProbe | Misfit:
    """One probe in ids, or why it does not fit."""
    body = placed(fitter_for(tokens, prefix), probe)
    return body if isinstance(body, Misfit) else FittedProbe(probe, *body)


def fit_query(query: Query, tokens: Tokens, task: Task = "fact") -> FittedQuery | None:
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
    body = placed(Causal(tokens, ""), probe)
    if isinstance(body, Misfit):
        return None
    return FittedQuery(body.prompt_ids, body.answer_position, body.expected.targets)


def fit_request(request: EditRequest, tokens: Tokens) -> FittedRequest | Misfit:
    """A request in ids, with the place of the subject's last token.

    A causal model's prompt must hold the subject: where that follows the answer there is none.
    """
    before = "{}" in request.prompt
    if tokens.kind == "causal" and not before:
        return Misfit(AFTER, request.id)
    cloze = request.cloze
    probe = Probe(
        "request", "reliability", cloze, request.target_new, request.target_true, task=request.task
    )
    body = placed(fitter_for(tokens, ""), probe)
    if isinstance(body, Misfit):
        return body
    start = (
        request.prompt.index("{}")
        if before
        else len(cloze.fill(request.target_true)) - len(cloze.right) + request.suffix.index("{}")
    )
    whole = tokens.encode(cloze.fill(request.target_true))
    at = last_token_of(whole, start, start + len(request.subject))
    return FittedRequest(
        request,
        body.prompt_ids,
        body.answer_position,
        at,
        true_ids=body.rejected.targets,
        new_ids=body.expected.targets,
    )


def _case(case: Case, bodies: Mapping[Key, Body | Misfit]) -> FittedCase | Exclusion:
    fitted, excluded = [], []
    for probe in case.probes:
        body = bodies[key_of(probe)]
        if not isinstance(body, Misfit):
            fitted.append(FittedProbe(probe, *body))
        elif probe.criterion == "reliability":
            return Exclusion(case.id, body.reason, None, body.detail)
        else:
            excluded.append(Exclusion(case.id, body.reason, probe.id, body.detail))
    return FittedCase(case, tuple(fitted), tuple(excluded))


def _masked_query(query: Query, tokens: Tokens) -> FittedQuery | None:
    (answered,) = in_place([(query.cloze, query.answer)], tokens)
    mask = tokens.mask_id
    if isinstance(answered, Misfit) or mask is None:
        return None
    ids = (*answered.before, *(mask for _ in answered.answer), *answered.after)
    return FittedQuery(ids, len(answered.before), answered.answer)
