"""Split an encoded query into questions of one token each.

An answer of several tokens is asked token by token, each after the answer's own earlier ones:

    "The capital of Cuba is" -> "Sri Lanka"
        question 0   The capital of Cuba is            -> Sri
        question 1   The capital of Cuba is Sri        -> Lanka
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kn_bench.model.language_model import LanguageModel


class Fitted(Protocol):
    """A query in a tokenizer's ids; ``kn_bench.measure.encoding.FittedQuery`` is one.

    Attributes:
        ids: the prompt: for a causal model up to the answer, for a masked one with a mask for every
            token of the answer.
        answer_position: where the answer's first token is read: the last prompt token, or the
            first mask.
        answer_ids: the answer's tokens.
    """

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def answer_position(self) -> int: ...
    @property
    def answer_ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class TokenQuestion:
    """The probability of ``token``, read at ``position`` of ``ids``."""

    ids: tuple[int, ...]
    position: int
    token: int


def questions_of(lm: LanguageModel, encoded: Fitted) -> tuple[TokenQuestion, ...]:
    """Return one question for each token of the answer.

    Raises:
        ValueError: for an answer without tokens, or with a special token (BOS, unknown, mask, ...):
            what is attributed would not be the answer.
    """
    special = [i for i in encoded.answer_ids if i in lm.tokens.special_ids]
    if special or not encoded.answer_ids:
        what = f"special token {special[0]}" if special else "none"
        raise ValueError(
            f"answer tokens {list(encoded.answer_ids)}: expected ordinary tokens, got {what}; "
            "encode the answer without special tokens"
        )
    return tuple(
        _question(lm.is_causal, encoded, index) for index in range(len(encoded.answer_ids))
    )


def _question(causal: bool, encoded: Fitted, index: int) -> TokenQuestion:
    start, earlier = encoded.answer_position, encoded.answer_ids[:index]
    position, token = start + index, encoded.answer_ids[index]
    if causal:
        return TokenQuestion((*encoded.ids[: start + 1], *earlier), position, token)
    ids = list(encoded.ids)
    ids[start:position] = earlier
    return TokenQuestion(tuple(ids), position, token)
