"""Asks a model folder: greedy answers to prompts, and log-probabilities of sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 256


class Scorer:
    """A model and its tokenizer, loaded in float32 from a folder.

    Prompts are batched by equal length, so nothing is padded.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder)
        return tokenizer

    @cached_property
    def model(self) -> PreTrainedModel:
        import torch
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.folder)
        kind = getattr(transformers, config.architectures[0])
        model: PreTrainedModel = kind.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval()

    @property
    def masked(self) -> bool:
        """Whether the model fills masks, rather than continues texts."""
        return self.tokenizer.mask_token is not None

    def batches(self, encoded: Sequence[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """(indices, ids (batch, length)) of sequences of equal length."""
        import torch

        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
        group: list[int] = []
        for index in [*order, -1]:
            full = len(group) == BATCH
            if group and (index < 0 or full or len(encoded[group[0]]) != len(encoded[index])):
                yield group, torch.tensor([encoded[i] for i in group])
                group = []
            group.append(index)

    def answers(self, questions: Sequence[tuple[str, str]], answers: Sequence[str]) -> list[bool]:
        """Whether the model answers each (text before, text after) with its answer.

        A causal model continues the text before greedily for as many tokens as the longest
        answer has, free-running; a masked one gives the argmax at one mask.
        """
        if self.masked:
            return self._filled(questions, answers)
        budget = max(len(self._ids(" " + answer)) for answer in answers)
        texts = self.continuations([before.rstrip() for before, _ in questions], budget)
        return [starts_with(text, answer) for text, answer in zip(texts, answers, strict=True)]

    def continuations(self, prompts: Sequence[str], budget: int) -> list[str]:
        """The greedy continuation of each prompt by ``budget`` tokens."""
        import torch

        encoded = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        generated = [""] * len(prompts)
        with torch.inference_mode():
            for indices, ids in self.batches(encoded):
                length = ids.shape[1]
                for _ in range(budget):
                    best = self.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
                    ids = torch.cat([ids, best], 1)
                for index, row in zip(indices, ids[:, length:].tolist(), strict=True):
                    generated[index] = self.tokenizer.decode(row)
        return generated

    def _filled(self, questions: Sequence[tuple[str, str]], answers: Sequence[str]) -> list[bool]:
        import torch

        mask = self.tokenizer.mask_token
        encoded = [
            self.tokenizer(f"{before.rstrip()} {mask}{after}".strip())["input_ids"]
            for before, after in questions
        ]
        wanted = [
            self._ids((" " if before else "") + (answer if before else capital(answer)))
            for (before, _), answer in zip(questions, answers, strict=True)
        ]
        right = [False] * len(encoded)
        with torch.inference_mode():
            for indices, ids in self.batches(encoded):
                rows, places = torch.nonzero(ids == self.tokenizer.mask_token_id, as_tuple=True)
                best = self.model(input_ids=ids).logits[rows, places].argmax(-1).tolist()
                for index, token in zip(indices, best, strict=True):
                    right[index] = [token] == wanted[index]
        return right

    def one_token(self, word: str) -> bool:
        """Whether a word is one token inside a sentence: what a masked model can be asked for."""
        return len(self._ids(" " + word)) == 1

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def log_probabilities(self, sentences: Sequence[str]) -> list[float]:
        """The log-probability of each sentence; of a masked model the pseudo-log-likelihood.

        A causal model without BOS reads its end-of-text token first, so that every word counts.
        """
        import torch

        encoded = [self.tokenizer(sentence)["input_ids"] for sentence in sentences]
        log_probs = [0.0] * len(sentences)
        if not self.masked and self.tokenizer.bos_token_id != encoded[0][0]:
            encoded = [[self.tokenizer.eos_token_id, *ids] for ids in encoded]
        with torch.inference_mode():
            for indices, ids in self.batches(encoded):
                scores = self._masked(ids) if self.masked else self._causal(ids)
                for index, score in zip(indices, scores.tolist(), strict=True):
                    log_probs[index] = score
        return log_probs

    def _causal(self, ids: Tensor) -> Tensor:
        scores = self.model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        sums: Tensor = scores.gather(2, ids[:, 1:, None])[..., 0].sum(1)
        return sums

    def _masked(self, ids: Tensor) -> Tensor:
        import torch

        total = torch.zeros(len(ids))
        for place in range(1, ids.shape[1] - 1):
            seen = ids.clone()
            seen[:, place] = self.tokenizer.mask_token_id
            hidden = self.model.bert(input_ids=seen).last_hidden_state[:, place]
            scores = self.model.cls(hidden).log_softmax(-1)
            total += scores.gather(1, ids[:, place, None])[:, 0]
        return total


def capital(text: str) -> str:
    """The text with its first letter capital."""
    return text[:1].upper() + text[1:]


def starts_with(text: str, answer: str) -> bool:
    """Whether a continuation begins with an answer, as whole words."""
    rest = text.strip()
    return rest.startswith(answer) and not rest[len(answer) : len(answer) + 1].isalnum()
