"""Convert between text and token ids with one tokenizer, without weights.

Texts are always encoded whole, with the special tokens that the tokenizer itself sets ([CLS] and
[SEP], Llama's BOS); ids of pieces that were encoded separately are never joined.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerFast

from kn_bench.model.given import HALF_A_CHARACTER

Kind = Literal["causal", "masked"]
"""How a model answers: after the prompt, or at a mask."""

UNLIMITED = 1 << 30
"""``max_length`` where neither the tokenizer nor the model states one."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoded text.

    Attributes:
        ids: token ids, the tokenizer's own special tokens among them.
        offsets: (start, end) of each token in the text's characters; (0, 0) for special tokens.
            Whether a word's token spans the space before it differs from tokenizer to tokenizer.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class Span(NamedTuple):
    """Part of a text: the characters ``start`` to ``end``, or from ``gap`` on.

    ``gap`` is the end of the text before it: byte-level tokenizers count the space between the two
    to the part.
    """

    gap: int
    start: int
    end: int


class Spanned(NamedTuple):
    """An encoded text and the tokens of a span in it: ``first`` to ``last``, both included.

    ``whole`` is whether those tokens hold nothing but the span; ``last`` is less than ``first``
    where the span has no token.
    """

    ids: tuple[int, ...]
    first: int
    last: int
    whole: bool


class Tokens:
    """A tokenizer as the benchmark sees it.

    Attributes:
        kind: ``causal`` or ``masked``.
        mask_token, mask_id: None where the tokenizer has no mask.
        bos_id, eos_id, unk_id: None where the tokenizer has no such token.
        between_id: the token between documents, after which a text's first word is predicted: the
            BOS, else the EOS; None without either.
        pad_id: what fills a batch; always masked out, so any id will do (eos, else 0).
        special_ids: ids that an answer must not contain.
        max_length: tokens that fit into the model.

    Raises:
        ValueError: for a tokenizer without the Rust back end (no offsets), and for a masked model
            without a mask token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, kind: Kind, max_length: int | None = None
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__}: expected a fast tokenizer with a tokenizer.json, "
                "which gives character offsets; save it as one with a current transformers version"
            )
        if kind == "masked" and tokenizer.mask_token_id is None:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r}: expected a mask token, as "
                "tokenizers of masked language models have; load the model as causal instead"
            )
        self.tokenizer = tokenizer
        self.kind = kind
        self.mask_token: str | None = tokenizer.mask_token
        self.mask_id: int | None = tokenizer.mask_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.unk_id: int | None = tokenizer.unk_token_id
        self.between_id: int | None = self.bos_id if self.bos_id is not None else self.eos_id
        self.pad_id: int = next(
            (i for i in (tokenizer.pad_token_id, self.eos_id) if i is not None), 0
        )
        self.special_ids: frozenset[int] = _special_ids(tokenizer)
        stated = [n for n in (max_length, tokenizer.model_max_length) if n]
        self.max_length: int = min([*stated, UNLIMITED])
        self._backend = _untruncated(tokenizer)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the tokenizer's own serialisation."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> Encoding:
        """Return ``text`` as ids with offsets, the tokenizer's own special tokens included.

        Raises:
            ValueError: for a text that holds half a character, as the other methods do.
        """
        with _whole_characters([text]):
            encoded = self._backend.encode(text)
        return Encoding(tuple(encoded.ids), tuple(encoded.offsets))

    def encode_many(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each text, as :meth:`encode` does, in one call and without offsets."""
        with _whole_characters(texts):
            return [tuple(e.ids) for e in self._backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, special tokens left out, its spaces as they are."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def n_closing(self) -> int:
        """Number of special tokens that the tokenizer sets after a text ([SEP], or an EOS)."""
        marks = self._backend.encode("a").special_tokens_mask
        return (
            len(marks) - 1 - max((i for i, special in enumerate(marks) if not special), default=0)
        )

    def encode_spans(self, texts: Sequence[str], spans: Sequence[Span]) -> list[Spanned]:
        """Return each text's ids with the tokens of one span in it; one call for all."""
        with _whole_characters(texts):
            encoded = self._backend.encode_batch(list(texts))
        return [_spanned(e, span) for e, span in zip(encoded, spans, strict=True)]


@contextmanager
def _whole_characters(texts: Sequence[str]) -> Iterator[None]:
    """Say which text holds half a character, where the tokenizer only says that it is no text."""
    try:
        yield
    except TypeError:
        halved = next((t for t in texts if isinstance(t, str) and re.search(_HALF, t)), None)
        if halved is None:
            raise
        raise ValueError(
            f"{halved[:60]!a}: expected whole characters, and {HALF_A_CHARACTER}; leave it out"
        ) from None


_HALF = "[\ud800-\udfff]"


def last_token_of(encoding: Encoding, start: int, end: int) -> int:
    """Return the index of the last token that touches the characters ``start`` to ``end``.

    Read from the offsets of the whole text, so that it is right with a BOS in front, with spaces
    inside tokens, and where the last character is spread over several byte tokens.

    Raises:
        ValueError: when no token touches the span.
    """
    touching = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start and a < b]
    if not touching:
        raise ValueError(
            f"characters {start} to {end} of the text: expected a token that covers them"
        )
    return touching[-1]


def _spanned(encoded: Any, span: Span) -> Spanned:
    gap, start, end = span
    ids = tuple(encoded.ids)
    first, last = encoded.char_to_token(start), encoded.char_to_token(end - 1)
    if first is None or last is None:
        return Spanned(ids, 0, -1, False)
    # (start, end) in characters; None or (0, 0) for special tokens, which have no place in the text
    chars = encoded.token_to_chars
    # a space that is a token of its own belongs to the span, as do all bytes of its last letter
    while first and (before := chars(first - 1)) and before[1] and before[0] >= gap:
        first -= 1
    while last + 1 < len(ids) and (after := chars(last + 1)) and after[1] and after[0] < end:
        last += 1
    whole = chars(first)[0] >= gap and chars(last)[1] <= end
    return Spanned(ids, first, last, whole)


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}


def _untruncated(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a copy of the Rust tokenizer that never truncates or pads.

    transformers turns both on in the tokenizer that it shares.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return backend
