"""Text <-> token ids: a window on one tokenizer, without weights.

Texts are always encoded whole, with whatever special tokens the tokenizer itself sets ([CLS] and
[SEP], Llama's BOS); nothing is ever put together from pieces that were encoded apart.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerFast

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
    """A stretch of a text, in characters: from ``start`` to ``end``, ``gap`` where it may begin.

    ``gap`` is the end of what stands before: the space between the two belongs to the stretch in
    byte-level tokenizers.
    """

    gap: int
    start: int
    end: int


class Spanned(NamedTuple):
    """An encoded text with a stretch of it: tokens ``first`` to ``last``, both included.

    ``whole`` is whether those tokens hold nothing else, and ``last`` is less than ``first`` where
    the stretch has no token.
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
        bos_id, eos_id, unk_id: None where there is none.
        between_id: what stands between documents, so that a text's first word can be predicted: the
            BOS, else the EOS; None where there is neither.
        pad_id: what fills a batch; always masked out, so any id will do (eos, else 0).
        special_ids: ids that no answer may have.
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
                f"{type(tokenizer).__name__} has no tokenizer.json and so gives no character "
                "offsets: save it with a current transformers version as a fast tokenizer"
            )
        if kind == "masked" and tokenizer.mask_token_id is None:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no mask token: only a masked "
                "language model's tokenizer can ask at a gap; load the model as causal instead"
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
        """``text`` as ids with offsets, the tokenizer's own special tokens included."""
        encoded = self._backend.encode(text)
        return Encoding(tuple(encoded.ids), tuple(encoded.offsets))

    def encode_many(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of each text, as :meth:`encode` gives them; one call for all, without offsets."""
        return [tuple(e.ids) for e in self._backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, special tokens left out, its spaces as they are."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def n_closing(self) -> int:
        """How many special tokens the tokenizer sets after a text ([SEP], or an EOS)."""
        marks = self._backend.encode("a").special_tokens_mask
        return (
            len(marks) - 1 - max((i for i, special in enumerate(marks) if not special), default=0)
        )

    def encode_spans(self, texts: Sequence[str], spans: Sequence[Span]) -> list[Spanned]:
        """Each text's ids with the tokens of one stretch of it; one call for all."""
        encoded = self._backend.encode_batch(list(texts))
        return [_spanned(e, span) for e, span in zip(encoded, spans, strict=True)]


def last_token_of(encoding: Encoding, start: int, end: int) -> int:
    """Index of the token that ends the characters ``start`` to ``end`` of the encoded text.

    Read from the offsets of the whole text, so that it is right with a BOS in front, with spaces
    inside tokens, and where the span's last character is spread over several byte tokens.

    Raises:
        ValueError: when no token touches the span.
    """
    touching = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start and a < b]
    if not touching:
        raise ValueError(f"no token covers characters {start} to {end} of the text")
    return touching[-1]


def _spanned(encoded: Any, span: Span) -> Spanned:
    gap, start, end = span
    ids = tuple(encoded.ids)
    first, last = encoded.char_to_token(start), encoded.char_to_token(end - 1)
    if first is None or last is None:
        return Spanned(ids, 0, -1, False)
    # (start, end) in characters; None or (0, 0) for special tokens, which stand nowhere
    chars = encoded.token_to_chars
    # a space that is a token of its own belongs to the stretch, as do all bytes of its last letter
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
    """The Rust tokenizer, never truncating or padding: transformers sets both on a shared one."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return backend
