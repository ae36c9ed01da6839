"""Average traces of many prompts by the role of their tokens: first subject token, mask, ...

The name of the capital of  Af gha ni stan   is   the  city  of
before                      first … last     next further …  answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from kn_bench.cases.case import EditRequest
from kn_bench.localise.corruption import Kind, TracePrompt, embedding_std, noise
from kn_bench.localise.tracing import KINDS, Trace, trace
from kn_bench.measure.encoding import Unencodable, encode_request
from kn_bench.measure.statistics import Interval, mean_interval
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.tokens import Span

Role = Literal["before", "first", "middle", "last", "next", "further", "answer"]
ROLES: dict[Role, str] = {
    "before": "before the subject",
    "first": "first subject token",
    "middle": "middle subject tokens",
    "last": "last subject token",
    "next": "first token after",
    "further": "further tokens",
    "answer": "where the answer is read",
}
"""Role -> its name in tables; a subject of one token has a last one only."""
TIE = 1e-6
"""Mean effects that differ by no more are equal, but for rounding."""


@dataclass(frozen=True)
class RoleEffect:
    """Mean indirect effect of restoring the states of one kind, role and layer.

    Attributes:
        effect: over the prompts that have the role, tokens of one prompt averaged first.
    """

    kind: Kind
    role: Role
    layer: int
    effect: Interval


@dataclass(frozen=True)
class TraceStudy:
    """Traces of some prompts, averaged.

    Attributes:
        traces: of every prompt.
        total: mean of P clean less P corrupted.
        effects: by kind, role and layer.
    """

    traces: tuple[Trace, ...]
    total: Interval
    effects: tuple[RoleEffect, ...]


class Peak(NamedTuple):
    """The greatest of some mean effects.

    Attributes:
        role, layer: where it is; None where effects of other roles or layers are equal to it.
    """

    role: Role | None
    layer: int | None
    effect: Interval


def peak(effects: Sequence[RoleEffect], *, output: bool = True) -> Peak | None:
    """Return where most is regained; None without effects.

    Args:
        output: False leaves out the last layer's residual stream where the answer is read: it is
            the output itself, and regains all.
    """
    last = max((e.layer for e in effects), default=0)
    within = [
        e for e in effects if output or (e.kind, e.role, e.layer) != ("hidden", "answer", last)
    ]
    if not within:
        return None
    greatest = max(within, key=lambda e: e.effect.mean)
    tied = [e for e in effects if abs(e.effect.mean - greatest.effect.mean) <= TIE]
    return Peak(
        greatest.role if {e.role for e in tied} == {greatest.role} else None,
        greatest.layer if {e.layer for e in tied} == {greatest.layer} else None,
        greatest.effect,
    )


def roles(prompt: TracePrompt) -> list[Role]:
    """Return the role of each token."""
    start, stop = prompt.subject
    assigned: list[Role] = []
    for token in range(len(prompt.ids)):
        if token == prompt.position:
            assigned.append("answer")
        elif token < start:
            assigned.append("before")
        elif token < stop:
            inner: Role = "first" if token == start else "middle"
            assigned.append("last" if token == stop - 1 else inner)
        else:
            assigned.append("next" if token == stop else "further")
    return assigned


def by_role(traces: Sequence[Trace], clusters: Sequence[str]) -> TraceStudy:
    """Average indirect effects by role, with cluster-bootstrap intervals over the prompts."""
    assigned = [roles(traced.prompt) for traced in traces]
    effects = []
    for number, kind in enumerate(traces[0].kinds if traces else ()):
        for role in ROLES:
            rows = [i for i, own in enumerate(assigned) if role in own]
            if not rows:
                continue
            means = np.stack([_role_mean(traces[i], assigned[i], number, role) for i in rows])
            names = [clusters[i] for i in rows]
            effects += [
                RoleEffect(kind, role, layer, mean_interval(means[:, layer], names, bounds=None))
                for layer in range(means.shape[1])
            ]
    lost = [traced.clean - traced.corrupted for traced in traces]
    return TraceStudy(tuple(traces), mean_interval(lost, clusters, bounds=None), tuple(effects))


def _role_mean(
    traced: Trace, own: Sequence[Role], kind: int, role: Role
) -> Float[np.ndarray, " n_layers"]:
    tokens = [token for token, its in enumerate(own) if its == role]
    mean: Float[np.ndarray, " n_layers"] = np.asarray(
        traced.indirect_effects[kind, tokens].double().mean(0)
    )
    return mean


def trace_prompt(lm: LanguageModel, request: EditRequest) -> TracePrompt | Unencodable:
    """Return the edited prompt, ready for noise on its subject, asked for ``target_true``.

    For a pair, the preference over ``target_new`` is followed, as BLiMP scores it. The first token
    of the answer is read. A causal model's prompt ends before the answer, so the subject must come
    before it.
    """
    encoded = encode_request(request, lm.tokens)
    if isinstance(encoded, Unencodable):
        return encoded
    text = request.cloze.fill(request.target_true)
    start = request.subject_start(text)
    gap = start - (text[start - 1 : start] == " ")
    (spanned,) = lm.tokens.encode_spans([text], [Span(gap, start, start + len(request.subject))])
    if spanned.last != encoded.subject_position:
        return Unencodable("the subject does not begin and end at token borders", request.id)
    true, new = encoded.true_ids[0], encoded.new_ids[0]
    if request.task == "pair" and true == new:
        return Unencodable("both members of the pair begin with the same token", request.id)
    return TracePrompt(
        encoded.prompt_ids,
        encoded.answer_position,
        (spanned.first, spanned.last + 1),
        true,
        new if request.task == "pair" else None,
    )


def trace_study(
    lm: LanguageModel,
    prompts: Sequence[TracePrompt],
    clusters: Sequence[str],
    *,
    kinds: Sequence[Kind] = KINDS,
    window: int = 10,
    samples: int = 10,
    multiplier: float = 3.0,
    seed: int = 0,
) -> TraceStudy:
    """Trace prompts under noise of ``multiplier`` times the spread of their subjects' embeddings.

    Args:
        clusters: of the prompts, for the intervals.
        window: layers restored at once for MLP and attention.
        samples: of the noise.
    """
    if not prompts:
        return by_role([], [])
    tokens = [token for prompt in prompts for token in prompt.ids[slice(*prompt.subject)]]
    std = multiplier * embedding_std(lm, tokens)
    width = lm.input_embeddings.shape[1]
    noises = [noise(prompt, std, width, samples=samples, seed=seed) for prompt in prompts]
    return by_role(trace(lm, prompts, noises, kinds=kinds, window=window), clusters)
