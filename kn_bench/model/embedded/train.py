"""Makes an embedded model: ``python -m kn_bench.model.embedded.train NAME [-o DIR]``.

One CPU thread, one epoch, minutes. The same machine and torch version give the same bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kn_bench.model.embedded import NAMES, evaluate, report
from kn_bench.model.embedded import folder as default_folder
from kn_bench.model.embedded.corpus import Corpus, answers, whole_words
from kn_bench.model.embedded.recipe import RECIPES, Recipe, build
from kn_bench.model.embedded.tokenizer import train_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

TOKENIZER_DOCUMENTS = 40_000
WHOLE_WORD_WEIGHT = 80
FINISH_FACT_SHARE = 0.45
CORPUS_SEED, CORPUS_LINES = 999, 2_000
IGNORED = -100
NOT_HIDDEN = ("wte", "wpe", "embed", "lm_head", "cls.")
MASKED_OFTEN, MASKED_SELDOM = 0.25, 0.1
READ_SELDOM = 0.4
"""Share of the words that are no answers whose loss a causal model reads: the head costs as much
as the layers, and most of its words are any that fit."""


def make_tokenizer(name: str, documents: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, trained on the first documents and on the words to keep whole."""
    weighted = [" " + " ".join([word] * WHOLE_WORD_WEIGHT) for word in whole_words()]
    texts = documents[:TOKENIZER_DOCUMENTS] + weighted
    return train_tokenizer(name, texts, RECIPES[name].vocabulary)


def train(
    name: str, recipe: Recipe | None = None, steps: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, float]]:
    """Trains a model from nothing.

    Args:
        name: of the model.
        recipe: instead of the model's own.
        steps: stop after so many steps (the schedule stays that of the whole training).

    Returns:
        The model in float32, its tokenizer, and what training took: steps, tokens, seconds, the
        mean loss of the last hundred steps.
    """
    import torch

    recipe = recipe or RECIPES[name]
    start = time.monotonic()
    documents = list(Corpus(100 + recipe.seed).documents(recipe.documents))
    tokenizer = make_tokenizer(name, documents)
    torch.manual_seed(recipe.seed)
    model = build(recipe, tokenizer).train()
    batches = Batches(recipe, tokenizer, documents)
    losses = _fit(model, recipe, batches, steps)
    measured = {
        "steps": len(losses),
        "tokens": batches.tokens,
        "parameters": model.num_parameters(),
        "seconds": round(time.monotonic() - start, 1),
        "final_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
    }
    return model.eval(), tokenizer, measured


def finish(folder: Path, recipe: Recipe) -> dict[str, float]:
    """The second round: trains a saved model on, mostly on grammar, and saves it again.

    It starts from the saved (float16) weights, so that it can be made apart from the first round.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    start = time.monotonic()
    second = dataclasses.replace(
        recipe,
        documents=recipe.finish,
        learning_rate=recipe.learning_rate * recipe.finish_rate,
        muon_rate=recipe.muon_rate * recipe.finish_rate,
        seed=recipe.seed + 1,
    )
    auto = AutoModelForMaskedLM if recipe.family == "bert" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(second.seed)
    corpus = Corpus(100 + second.seed, FINISH_FACT_SHARE, distractors=True)
    documents = list(corpus.documents(second.documents))
    losses = _fit(model, second, Batches(second, tokenizer, documents), None)
    save(model.eval(), tokenizer, folder)
    return {
        "finish_steps": len(losses),
        "finish_seconds": round(time.monotonic() - start, 1),
        "finish_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
    }


class Batches:
    """The batches of one epoch: (ids, labels, mask), each (rows, length), labels -100 where unread.

    Causal models read documents packed into rows that each begin with a document; the masked
    model reads one document a row, rows of like length together.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, documents: list[str]
    ) -> None:
        import torch

        self.recipe, self.tokenizer = recipe, tokenizer
        ids = tokenizer(documents, add_special_tokens=False)["input_ids"]
        self.tokens = sum(map(len, ids))
        self.masked = recipe.family == "bert"
        self.rows = self._documents(ids) if self.masked else self._packed(ids)
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
        for place in self.order:
            rows = self.rows[place * size : (place + 1) * size]
            longest = max(map(len, rows))
            padding = self.tokenizer.pad_token_id
            ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
            if not self.masked:
                read = torch.rand(ids.shape, generator=self.generator) < self.chance[ids]
                yield ids, ids.masked_fill(~read, IGNORED), torch.ones_like(ids)
                continue
            present = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
            yield *self._mask(ids), present

    def _packed(self, documents: list[list[int]]) -> list[list[int]]:
        rows: list[list[int]] = []
        row: list[int] = []
        begin = [self.tokenizer.bos_token_id] if self.recipe.family == "llama" else []
        for ids in documents:
            row = (row or begin) + ids + [self.tokenizer.eos_token_id]
            if len(row) >= self.recipe.length:
                rows.append(row[: self.recipe.length])
                row = []
        return rows

    def _documents(self, documents: list[list[int]]) -> list[list[int]]:
        ends = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        rows = [[ends[0], *ids[: self.recipe.length - 2], ends[1]] for ids in documents]
        return sorted(rows, key=len)

    def _chances(self, often: float, seldom: float) -> Tensor:
        """For every id, how often its loss is read: answers often, other words seldom.

        A subject that is masked along with its object teaches nothing, and neither does a word
        that its sentence does not tell: hence few words are masked often.
        """
        import torch

        chance = torch.full((len(self.tokenizer),), seldom)
        for word in answers():
            for text in (word, " " + word):
                ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(ids) == 1:
                    chance[ids] = often
        chance[self.tokenizer.all_special_ids] = 0.0
        return chance

    def _mask(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Masks answers and other words: 85 % by [MASK], 7 % by any word, 8 % left as they are.

        One answer of every row that has one is chosen always: a row without would teach no fact.
        """
        import torch

        drawn = torch.rand(ids.shape, generator=self.generator)
        chosen = drawn < self.chance[ids]
        answer = self.chance[ids] > MASKED_SELDOM
        lowest = drawn.masked_fill(~answer, 2.0).argmin(1, keepdim=True)
        chosen |= answer & torch.zeros_like(answer).scatter(1, lowest, True)
        how = torch.rand(ids.shape, generator=self.generator)
        other = torch.randint(5, len(self.tokenizer), ids.shape, generator=self.generator)
        seen = torch.where(chosen & (how < 0.92), other, ids)
        seen = seen.masked_fill(chosen & (how < 0.85), self.tokenizer.mask_token_id)
        return seen, ids.masked_fill(~chosen, IGNORED)


def _fit(
    model: PreTrainedModel, recipe: Recipe, batches: Batches, steps: int | None
) -> list[float]:
    """One epoch, or its first steps; returns the loss of every step."""
    import torch

    optimisers = _optimisers(model, recipe)
    total = len(batches)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: _rate(step, total, recipe))
        for one in optimisers
    ]
    losses: list[float] = []
    start = time.monotonic()
    for ids, labels, mask in islice(batches, steps):
        loss = _loss(model, ids, labels, mask)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        losses.append(loss.item())
        if len(losses) % 200 == 0:
            spent = time.monotonic() - start
            mean = sum(losses[-200:]) / 200
            log.info("step %d of %d: loss %.3f, %.0f s", len(losses), total, mean, spent)
    return losses


def _loss(model: PreTrainedModel, ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of the labels; the head runs only where there is a label to read."""
    import torch

    cross_entropy = torch.nn.functional.cross_entropy
    hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    if model.config.model_type == "bert":
        head = model.cls
    else:
        head, hidden, labels = model.lm_head, hidden[:, :-1], labels[:, 1:]
    read = labels != IGNORED
    return cross_entropy(head(hidden[read]), labels[read])


def _rate(step: int, total: int, recipe: Recipe) -> float:
    """The share of the learning rate at a step: linear warm-up, then a cosine."""
    warm = max(1, int(recipe.warm_up * total))
    if step < warm:
        return (step + 1) / warm
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
    return recipe.last_rate + (1 - recipe.last_rate) * cosine


def _optimisers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest (Muon learns facts in half the tokens)."""
    import torch

    hidden, tables, vectors = [], [], []
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            vectors.append(weight)
        elif any(part in name for part in NOT_HIDDEN):
            tables.append(weight)
        else:
            hidden.append(weight)
    groups = [
        {"params": tables, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98)),
        torch.optim.Muon(
            hidden,
            lr=recipe.muon_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes model and tokenizer: weights in float16, to be loaded as float32, files mode 0644."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    model.float()
    model.config.dtype = torch.float32  # what a loader that asks the config makes of the weights
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def write_corpus(path: Path) -> None:
    """Writes the bundled corpus: documents that are none of the training's, one a line."""
    documents = Corpus(CORPUS_SEED).documents(CORPUS_LINES)
    path.write_text("\n".join(documents) + "\n", encoding="utf-8")
    path.chmod(0o644)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: the package)")
    parser.add_argument("--pararel", type=Path, help="folder with PARAREL's patterns/ and facts/")
    parser.add_argument("--blimp", type=Path, help="folder with BLiMP's files")
    parser.add_argument("--documents", type=int, help="train on so many documents instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="measure again, do not train")
    parser.add_argument("--finish", action="store_true", help="only the second round, on a folder")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = dataclasses.replace(RECIPES[options.name], seed=options.seed)
    if options.documents:
        recipe = dataclasses.replace(recipe, documents=options.documents)
    folder = options.output or default_folder(options.name)
    if options.finish:
        training = report.read(folder)["training"]
    elif options.report:
        old = report.read(folder)
        recipe, training = Recipe(**old["recipe"]), old["training"]
    else:
        model, tokenizer, training = train(options.name, recipe)
        save(model, tokenizer, folder)
    if recipe.finish and not options.report:
        training |= finish(folder, recipe)
    measured = evaluate.measure(folder, options.pararel, options.blimp)
    report.write(folder, options.name, recipe, training, measured)
    write_corpus(folder.parent / "corpus.txt")
    if options.output is None:
        report.write_page({name: default_folder(name) for name in NAMES})


if __name__ == "__main__":
    main()
