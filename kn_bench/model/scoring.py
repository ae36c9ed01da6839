"""Score the answers of a model under edits: log-probabilities, ranks, argmax, greedy text.

    Row      ids          The  capital  of  Cuba  is   Sri           a row of the batch
             positions                             4     5           where logits are read
             targets                             Sri  Lanka          which tokens are scored there
             edit         2                                          under which edit it runs
             first                                 4                 neurons scaled from here on

    score             log-probability and rank of each target        (teacher forcing)
    target_log_probs  the log-probabilities alone                    (whole sentences)
    read              all of the vocabulary at one position, a greedy continuation, and the scores
                      of given tokens that follow

Rows of one pass have equal length, so that nothing is padded: a padded row rounds differently. Only
the tokens after them are read together, see :mod:`kn_bench.model.continuing`.
The vocabulary is projected only where it is read. Log-probabilities are in at least float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_bench.model.continuing import Going, continued, followed, joined, may_be_padded
from kn_bench.model.costs import forward_bytes
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import widened
from kn_bench.model.rows import UNEDITED, Following, Prompt, Row, RowContext, Settled
from kn_bench.model.transfer import to_host


class TargetScore(NamedTuple):
    """Score of one token at one position.

    Attributes:
        log_prob: in nats.
        rank: how many tokens of the vocabulary are more probable.
        argmax: whether it is the model's choice (of tokens that tie, the one with the lowest id).
    """

    log_prob: float
    rank: int
    argmax: bool


Followed = dict[Following, tuple[TargetScore, ...]]
"""The scores of the targets of what follows a prompt."""


class Reading(NamedTuple):
    """Result of reading a prompt.

    Attributes:
        log_probs: of the whole vocabulary, on the host.
        generated: greedy continuation, up to a token that ends the text and with it; for a masked
            model the argmax at the mask.
        followed: the scores of the targets of what follows it.
    """

    log_probs: Float[Tensor, " vocabulary"]
    generated: tuple[int, ...]
    followed: Mapping[Following, tuple[TargetScore, ...]] = MappingProxyType({})


# -- of logits -----------------------------------------------------------------------------------


def log_probs_of(
    lm: LanguageModel, hidden: Float[Tensor, "*n d_model"]
) -> Float[Tensor, "*n vocabulary"]:
    """Return the vocabulary's log-probabilities for last hidden states. Gradients flow."""
    return widened(lm.logits(hidden)).log_softmax(-1)


def log_prob_of(
    logits: Float[Tensor, "*n vocabulary"], tokens: Int[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Return the tokens' log-probabilities, without those of the rest of the vocabulary."""
    logits = widened(logits)
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def share_of_two(
    logits: Float[Tensor, "n vocabulary"], tokens: Int[Tensor, " n"], rivals: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return P(token) within the two: the preference in a minimal pair."""
    logits = widened(logits)
    token, rival = (logits.gather(1, ids[:, None])[:, 0] for ids in (tokens, rivals))
    return (token - torch.logaddexp(token, rival)).exp()


def probability_and_gradient(
    logits: Float[Tensor, "n vocabulary"], tokens: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n vocabulary"]]:
    """Return P of the tokens and dP/dlogits = P * (1[token] - p).

    One pass over the vocabulary where autograd takes six.
    """
    p = widened(logits).softmax(1)
    answer = p.gather(1, tokens[:, None])
    by_logits = p.mul_(-answer).scatter_add_(1, tokens[:, None], answer)
    return answer[:, 0], by_logits.to(logits.dtype)


# -- of rows -------------------------------------------------------------------------------------


def score(
    lm: LanguageModel, rows: Sequence[Row], edits: RowContext = UNEDITED
) -> list[tuple[tuple[TargetScore, ...], ...]]:
    """Return, for every row, the scores of each position's targets."""

    def compute(batch: list[Row]) -> list[tuple[tuple[TargetScore, ...], ...]]:
        logits, targets = _logits(lm, batch, edits)
        # one target at a time: comparing all of them would take k tensors as wide as the vocabulary
        ranks = torch.stack([_rank(logits, targets[..., k]) for k in range(targets.shape[2])], 2)
        log_probs = logits.log_softmax(-1).gather(2, targets)
        argmax = logits.argmax(-1, keepdim=True) == targets
        return [
            _unpadded(row, *parts)
            for row, *parts in zip(batch, *to_host(log_probs, ranks, argmax), strict=True)
        ]

    return _run(lm, compute, rows)


def target_log_probs(
    lm: LanguageModel, rows: Sequence[Row], edits: RowContext = UNEDITED
) -> list[Float[np.ndarray, " positions"]]:
    """Return, for every row, the log-probability of each position's first target, in float64."""

    def compute(batch: list[Row]) -> list[np.ndarray]:
        logits, targets = _logits(lm, batch, edits)
        (values,) = to_host(log_prob_of(logits, targets[..., 0]).double())
        return [value[: len(row.positions)] for row, value in zip(batch, values, strict=True)]

    return _run(lm, compute, rows)


def read(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    edits: RowContext = UNEDITED,
    *,
    n_tokens: int = 1,
    settled: Settled | None = None,
    following: Mapping[Prompt, Sequence[Following]] = MappingProxyType({}),
) -> list[Reading]:
    """Return the vocabulary's log-probabilities and the greedy tokens of each prompt.

    Args:
        n_tokens: length of a causal model's continuation, which reuses the pass's attention keys
            and values; neurons are also scaled at every new token.
        settled: ends a continuation before that; so does a token that ends a text.
        following: what else follows prompts and is to be scored, for families whose rows
            :func:`~kn_bench.model.continuing.may_be_padded`.
    """

    def room(prompt: Prompt) -> int:
        # the continuation ends where the model has no more positions
        return min(n_tokens, 1 + lm.tokens.max_length - len(prompt.ids))

    @torch.no_grad()
    def compute(batch: list[Prompt]) -> list[Reading]:
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(batch):
            by_length[len(prompt.ids)].append(index)
        order = [index for group in by_length.values() for index in group]
        read_in_order = [batch[index] for index in order]
        passes = [
            _read(lm, [batch[i] for i in group], edits, following) for group in by_length.values()
        ]
        log_probs = torch.cat([part.log_probs for part in passes])
        first = log_probs.argmax(-1)[:, None]
        to_come = room(batch[0])
        if lm.is_causal and to_come > 1:
            going = joined([part.going for part in passes], to_come)
            generated = continued(lm, going, first, edits, to_come, read_in_order, settled)
        else:
            generated = first.tolist()
        scores = chain.from_iterable(part.followed for part in passes)
        readings = {
            index: Reading(row, tuple(ids), scored)
            for index, row, ids, scored in zip(
                order, log_probs.cpu(), generated, scores, strict=True
            )
        }
        return [readings[index] for index in range(len(batch))]

    def item_bytes(prompt: Prompt) -> int:
        length = len(prompt.ids)
        cached = length + n_tokens if lm.is_causal else 0
        return forward_bytes(lm, length, cached=cached) + sum(
            forward_bytes(lm, len(each.ids), reads=len(each.reads), cached=length + len(each.ids))
            for each in following.get(prompt, ())
        )

    def shape(prompt: Prompt) -> tuple[int, int]:
        # prompts of any length go on together where the family's rows may be padded
        return room(prompt), 0 if n_tokens > 1 and may_be_padded(lm) else len(prompt.ids)

    return lm.batcher.run(
        compute, prompts, item_bytes=item_bytes, shape=shape, what="asking, prompt"
    )


class _Pass(NamedTuple):
    """Result of one pass over equally long prompts; ``going`` is a causal model's."""

    log_probs: Float[Tensor, "rows vocabulary"]
    going: Going
    followed: Sequence[Followed]


def _read(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    edits: RowContext,
    following: Mapping[Prompt, Sequence[Following]],
) -> _Pass:
    """Run prompts of equal length once, and then what follows them."""
    ids = lm.tensor([prompt.ids for prompt in prompts])
    at = _column(lm, [prompt.position for prompt in prompts])
    edit_of = _column(lm, [prompt.edit for prompt in prompts])
    options: dict[str, Any] = {"use_cache": True} if lm.is_causal else {}
    with edits.on(edit_of, _answer_positions(lm, ids, at, at[:, None])):
        output = lm.hidden(ids, **options)
    rows = torch.arange(len(prompts), device=ids.device)
    log_probs = log_probs_of(lm, output.last_hidden_state[rows, at])
    going = Going(getattr(output, "past_key_values", None), edit_of)
    asked = [(row, each) for row, p in enumerate(prompts) for each in following.get(p, ())]
    if asked:
        return _Pass(log_probs, going, _followed(lm, going, log_probs, edits, asked))
    return _Pass(log_probs, going, [{} for _ in prompts])


def _followed(
    lm: LanguageModel,
    going: Going,
    log_probs: Float[Tensor, "rows vocabulary"],
    edits: RowContext,
    asked: Sequence[tuple[int, Following]],
) -> list[Followed]:
    """Return, for every row, the scores of what follows it.

    Args:
        log_probs: at the rows' answer positions.
        asked: rows, and what follows each.
    """
    rows, following = zip(*asked, strict=True)
    hidden = followed(lm, going, edits, rows, following)
    reads = [
        (index, row, at, target)
        for index, (row, each) in enumerate(asked)
        for at, target in zip(each.reads, each.targets, strict=True)
    ]
    reads.sort(key=lambda read: read[2] > 0)  # those at the prompt itself, which has been read
    n_known = sum(at == 0 for _, _, at, _ in reads)
    index, row, at, target = torch.tensor(reads, device=hidden.device).T
    # the vocabulary is projected where a target is read, for all rows at once
    fresh = log_probs_of(lm, hidden[index[n_known:], at[n_known:] - 1])
    read = torch.cat([log_probs[row[:n_known]], fresh])
    chosen = read.gather(1, target[:, None])
    columns = to_host(chosen[:, 0], (read > chosen).sum(1), read.argmax(1) == target)
    parts: list[list[TargetScore]] = [[] for _ in asked]
    for (number, *_), *score_of in zip(reads, *map(np.ndarray.tolist, columns), strict=True):
        parts[number].append(TargetScore(*score_of))
    scores: list[Followed] = [{} for _ in range(len(log_probs))]
    for (prompt, each), part in zip(asked, parts, strict=True):
        scores[prompt][each] = tuple(part)
    return scores


def _run(lm: LanguageModel, compute: Any, rows: Sequence[Row]) -> list[Any]:
    return lm.batcher.run(
        torch.no_grad()(compute),
        rows,
        item_bytes=lambda row: forward_bytes(lm, len(row.ids), reads=len(row.positions)),
        shape=lambda row: (len(row.ids), len(row.positions)),
        what="scoring answers",
    )


def _logits(
    lm: LanguageModel, batch: Sequence[Row], edits: RowContext
) -> tuple[Float[Tensor, "rows n vocabulary"], Int[Tensor, "rows n k"]]:
    """Return the logits where rows are read, and their targets, filled up to k a position."""
    ids = lm.tensor([row.ids for row in batch])
    positions = lm.tensor([row.positions for row in batch])
    k = max(len(tokens) for row in batch for tokens in row.targets)
    targets = torch.tensor(
        [[_filled(tokens, k) for tokens in row.targets] for row in batch], device=ids.device
    )
    first = _column(lm, [row.first for row in batch])
    where = _answer_positions(lm, ids, first, positions)
    with edits.on(_column(lm, [row.edit for row in batch]), where):
        logits = lm.forward(ids, positions)
    return widened(logits), targets


def _answer_positions(
    lm: LanguageModel,
    ids: Int[Tensor, "rows T"],
    first: Int[Tensor, " rows"],
    positions: Int[Tensor, "rows n"],
) -> Bool[Tensor, "rows T"]:
    """Return where the answer is read: from ``first`` on, or at a masked model's ``positions``."""
    if not lm.is_causal:
        return torch.zeros_like(ids, dtype=torch.bool).scatter(1, positions, True)
    return torch.arange(ids.shape[1], device=ids.device)[None] >= first[:, None]


def _rank(
    logits: Float[Tensor, "rows n vocabulary"], targets: Int[Tensor, "rows n"]
) -> Int[Tensor, "rows n"]:
    return (logits > logits.gather(2, targets[..., None])).sum(-1)


def _unpadded(
    row: Row, log_probs: np.ndarray, ranks: np.ndarray, argmax: np.ndarray
) -> tuple[tuple[TargetScore, ...], ...]:
    return tuple(
        tuple(
            TargetScore(float(log_probs[i, k]), int(ranks[i, k]), bool(argmax[i, k]))
            for k in range(len(tokens))
        )
        for i, tokens in enumerate(row.targets)
    )


def _filled(values: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Return ``values`` with its last entry repeated up to ``width``."""
    return values + values[-1:] * (width - len(values))


def _column(lm: LanguageModel, values: Sequence[int]) -> Int[Tensor, " rows"]:
    return torch.tensor(values, dtype=torch.long, device=lm.device)
