"""The batches that the embedded models are trained on, and whose loss of theirs is read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from training.context import Document, Span
from training.corpus import answers
from training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
ORDINARY, UNREAD, READ = 0, 1, 2
"""Marks of a token: whether its loss is read by chance, never or always."""
MARKS = 3
Row = list[int]
"""Token ids, each with its mark: ``id * MARKS + mark`` (millions of pairs would fill a memory)."""
MASKED_OFTEN, MASKED_SELDOM = 0.25, 0.1
READ_SELDOM = 0.4
"""Share of the words that are no answers whose loss a causal model reads: the head costs as much
as the layers, and most of its words are any that fit."""


class Batches:
    """The batches of one epoch: (ids, labels, mask), each (rows, length), labels -100 where unread.

    Causal models read documents packed into rows that each begin with a document; the masked
    model reads one document a row, rows of like length together.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]
    ) -> None:
        import torch

        self.recipe, self.tokenizer = recipe, tokenizer
        rows = _marked(tokenizer, documents)
        self.tokens = sum(map(len, rows))
        self.masked = recipe.family == "bert"
        self.rows = self._documents(rows) if self.masked else self._packed(rows)
        self.order = list(range(len(self.rows) // recipe.batch))
        self.generator = torch.Generator().manual_seed(recipe.seed)
        drawn = random.Random(recipe.seed)
        if not self.masked:
            drawn.shuffle(self.rows)
        drawn.shuffle(self.order)
        often, seldom = (MASKED_OFTEN, MASKED_SELDOM) if self.masked else (1.0, READ_SELDOM)
        self.chance = self._chances(often, seldom)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        import torch

        size = self.recipe.batch
        padding = self.tokenizer.pad_token_id * MARKS
        for place in self.order:
            rows = self.rows[place * size : (place + 1) * size]
            longest = max(map(len, rows))
            padded = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
            ids, marks = padded // MARKS, padded % MARKS
            if not self.masked:
                drawn = torch.rand(ids.shape, generator=self.generator) < self.chance[ids]
                read = (drawn | (marks == READ)) & (marks != UNREAD)
                yield ids, ids.masked_fill(~read, IGNORED), torch.ones_like(ids)
                continue
            present = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
            yield *self._mask(ids, marks), present

    def _packed(self, documents: list[Row]) -> list[Row]:
        rows: list[Row] = []
        row: Row = []
        llama = self.recipe.family == "llama"
        begin = [self.tokenizer.bos_token_id * MARKS] if llama else []
        for document in documents:
            row = (row or begin) + document + [self.tokenizer.eos_token_id * MARKS]
            if len(row) >= self.recipe.length:
                rows.append(row[: self.recipe.length])
                row = []
        return rows

    def _documents(self, documents: list[Row]) -> list[Row]:
        first, last = self.tokenizer.cls_token_id * MARKS, self.tokenizer.sep_token_id * MARKS
        inner = self.recipe.length - 2
        rows = [[first, *row[:inner], last] for row in documents]
        return sorted(rows, key=len)

    def _chances(self, often: float, seldom: float) -> Tensor:
        """For every id, how often its loss is read: answers often, other words seldom.

        A subject that is masked along with its object teaches nothing, and neither does a word
        that its sentence does not tell: hence few words are masked often.
        """
        import torch

        chance = torch.full((len(self.tokenizer),), seldom)
        for word in answers():
            opening = word[:1].upper() + word[1:] if self.masked else word
            for text in (word, opening, " " + word):
                ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(ids) == 1:
                    chance[ids] = often
        chance[self.tokenizer.all_special_ids] = 0.0
        return chance

    def _mask(self, ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Masks answers and other words: 85 % by [MASK], 7 % by any word, 8 % left as they are.

        One answer of every row that has one is chosen always: a row without would teach no fact.
        Where an answer is marked it is that one, and it is masked by [MASK].
        """
        import torch

        drawn = torch.rand(ids.shape, generator=self.generator)
        wanted = marks == READ
        chosen = (drawn < self.chance[ids]) & (marks != UNREAD) | wanted
        answer = (self.chance[ids] > MASKED_SELDOM) & (marks != UNREAD)
        answer &= ~wanted.any(1, keepdim=True)
        lowest = drawn.masked_fill(~answer, 2.0).argmin(1, keepdim=True)
        chosen |= answer & torch.zeros_like(answer).scatter(1, lowest, True)
        how = torch.rand(ids.shape, generator=self.generator)
        other = torch.randint(5, len(self.tokenizer), ids.shape, generator=self.generator)
        seen = torch.where(chosen & (how < 0.92), other, ids)
        hidden = chosen & (how < 0.85) | wanted
        seen = seen.masked_fill(hidden, self.tokenizer.mask_token_id)
        return seen, ids.masked_fill(~chosen, IGNORED)


def _marked(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Row]:
    """The ids of documents, each with its mark."""
    texts = [document.text for document in documents]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        [
            token_id * MARKS + _mark(token, document)
            for token_id, token in zip(ids, places, strict=True)
        ]
        for ids, places, document in zip(
            encoded["input_ids"], encoded["offset_mapping"], documents, strict=True
        )
    ]


def _mark(token: Span, document: Document) -> int:
    """The mark of the token at a place of a document."""

    def inside(spans: Sequence[Span]) -> bool:
        return any(token[0] < last and first < token[1] for first, last in spans)

    if inside(document.unread):
        return UNREAD
    return READ if inside(document.read) else ORDINARY
