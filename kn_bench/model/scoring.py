"""Score the answers of a model under edits: log-probabilities, ranks, argmax, greedy text.

    Row      ids          The  capital  of  Cuba  is   Sri           a row of the batch
             positions                             4     5           where logits are read
             targets                             Sri  Lanka          which tokens are scored there
             edit         2                                          under which edit it runs
             first                                 4                 neurons scaled from here on

    score             log-probability and rank of each target        (teacher forcing)
    target_log_probs  the log-probabilities alone                    (whole sentences)
    read              all of the vocabulary at one position, and a greedy continuation

Rows of one batch have equal length, so that nothing is padded: a padded row rounds differently.
The vocabulary is projected only where it is read. Log-probabilities are in at least float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_bench.model.costs import forward_bytes
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import widened
from kn_bench.model.transfer import to_host


class Row(NamedTuple):
    """One text, where it is read, and which tokens are scored.

    Attributes:
        ids: the text, whole.
        positions: where logits are read, in order: a causal model's are of the next token.
        targets: the tokens that are scored at each of ``positions``, one or more.
        first: position from which a causal model's neurons are scaled; a masked model's are scaled
            only where it is read.
        edit: number of the edit that the row runs under.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    first: int
    edit: int = 0


class Prompt(NamedTuple):
    """A text that is read at one position, under an edit."""

    ids: tuple[int, ...]
    position: int
    edit: int = 0


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


class Reading(NamedTuple):
    """Result of reading a prompt.

    Attributes:
        log_probs: of the whole vocabulary, on the host.
        generated: greedy continuation; for a masked model the argmax at the mask.
    """

    log_probs: Float[Tensor, " vocabulary"]
    generated: tuple[int, ...]


class RowContext(Protocol):
    """Edits that act row by row, such as :class:`kn_bench.editing.applying.RowEdits`."""

    def on(
        self, edit_of: Int[Tensor, " rows"], where: Bool[Tensor, "rows T"]
    ) -> AbstractContextManager[None]:
        """Open the edits: row i runs under edit ``edit_of[i]``, its neurons scaled at ``where``."""
        ...


@dataclass(frozen=True)
class Unedited:
    """No edit at all."""

    def on(self, edit_of: Tensor, where: Tensor) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()


UNEDITED = Unedited()

Settled = Callable[[Prompt, Sequence[int]], bool]
"""Whether a prompt's continuation needs no more tokens."""


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
) -> list[Reading]:
    """Return the vocabulary's log-probabilities and the greedy tokens of each prompt.

    Args:
        n_tokens: length of a causal model's continuation, which reuses the pass's attention keys
            and values; neurons are also scaled at every new token.
        settled: ends a continuation before that.
    """

    @torch.no_grad()
    def compute(batch: list[Prompt]) -> list[Reading]:
        ids = lm.tensor([prompt.ids for prompt in batch])
        at = _column(lm, [prompt.position for prompt in batch])
        edit_of = _column(lm, [prompt.edit for prompt in batch])
        options: dict[str, Any] = {"use_cache": True} if lm.is_causal else {}
        with edits.on(edit_of, _answer_positions(lm, ids, at, at[:, None])):
            output = lm.hidden(ids, **options)
        rows = torch.arange(len(batch), device=ids.device)
        log_probs = log_probs_of(lm, output.last_hidden_state[rows, at])
        first = log_probs.argmax(-1)[:, None]
        if not lm.is_causal:
            generated = first.tolist()
        else:
            past = output.past_key_values
            # the continuation ends where the model has no more positions
            room = min(n_tokens, 1 + lm.tokens.max_length - ids.shape[1])
            if settled is None:
                generated = continue_greedily(lm, past, first, edits, edit_of, room).tolist()
            else:
                generated = _until_settled(lm, past, first, edits, edit_of, room, batch, settled)
        host = log_probs.cpu()
        return [Reading(row, tuple(ids)) for row, ids in zip(host, generated, strict=True)]

    def item_bytes(prompt: Prompt) -> int:
        length = len(prompt.ids)
        return forward_bytes(lm, length, cached=length + n_tokens if lm.is_causal else 0)

    return lm.batcher.run(
        compute,
        prompts,
        item_bytes=item_bytes,
        shape=lambda prompt: len(prompt.ids),
        what="asking, prompt",
    )


def continue_greedily(
    lm: LanguageModel,
    past: Any,
    first: Int[Tensor, "rows 1"],
    edits: RowContext,
    edit_of: Int[Tensor, " rows"],
    n_tokens: int,
) -> Int[Tensor, "rows n_tokens"]:
    """Continue equally long prompts by each row's most probable token.

    Args:
        past: transformers' cache of the prompts.
        first: the first token of each continuation.
    """
    tokens = [first]
    everywhere = torch.ones_like(first, dtype=torch.bool)
    with edits.on(edit_of, everywhere):
        for _ in range(n_tokens - 1):
            output = lm.hidden(tokens[-1], past_key_values=past, use_cache=True)
            past = output.past_key_values
            tokens.append(lm.logits(output.last_hidden_state[:, -1]).argmax(-1, keepdim=True))
    return torch.cat(tokens, 1)


def _until_settled(
    lm: LanguageModel,
    past: Any,
    first: Int[Tensor, "rows 1"],
    edits: RowContext,
    edit_of: Int[Tensor, " rows"],
    n_tokens: int,
    prompts: Sequence[Prompt],
    settled: Settled,
) -> list[list[int]]:
    """Continue as :func:`continue_greedily` does, each row until it is settled."""
    generated: list[list[int]] = first.tolist()
    rows, last = list(range(len(prompts))), first
    for _ in range(n_tokens - 1):
        going = [i for i, row in enumerate(rows) if not settled(prompts[row], generated[row])]
        if not going:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=first.device)
            past.batch_select_indices(kept)
            rows, last, edit_of = [rows[i] for i in going], last[kept], edit_of[kept]
        last = continue_greedily(lm, past, last, edits, edit_of, 2)[:, 1:]
        for row, (token,) in zip(rows, last.tolist(), strict=True):
            generated[row].append(token)
    return generated


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
