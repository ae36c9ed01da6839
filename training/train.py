"""Make an embedded model: ``python -m training.train NAME [-o DIR]``.

One CPU thread, one epoch, minutes. The same machine and torch version give the same bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kn_bench.model.embedded import NAMES
from kn_bench.model.embedded import folder as default_folder
from kn_bench.model.embedded.facts import facts
from training import evaluate, report
from training.batches import IGNORED, Batches
from training.context import Contexts, Document
from training.corpus import TrainingCorpus, whole_words
from training.recipe import RECIPES, Recipe, build
from training.tokenizer import add_openings, train_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

TOKENIZER_DOCUMENTS = 40_000
WHOLE_WORD_WEIGHT = 80
FINISH_FACT_SHARE = 0.45
CORPUS_SEED, CORPUS_LINES = 999, 2_000
NOT_HIDDEN = ("wte", "wpe", "embed", "lm_head", "cls.")


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
    documents = list(TrainingCorpus(100 + recipe.seed).documents(recipe.documents))
    tokenizer = make_tokenizer(name, documents)
    torch.manual_seed(recipe.seed)
    model = build(recipe, tokenizer).train()
    batches = Batches(recipe, tokenizer, [Document(text) for text in documents])
    losses = _encode(model, recipe, batches, steps)
    measured = {
        "steps": len(losses),
        "tokens": batches.tokens,
        "parameters": model.num_parameters(),
        "seconds": round(time.monotonic() - start, 1),
        "final_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
    }
    return model.eval(), tokenizer, measured


def finish(folder: Path, recipe: Recipe) -> dict[str, float]:
    """The second round: trains a saved model on, mostly on grammar, and saves it again."""
    second = _later(recipe, recipe.finish, recipe.finish_rate, recipe.seed + 1)
    corpus = TrainingCorpus(100 + second.seed, FINISH_FACT_SHARE, distractors=True)
    documents = [Document(text) for text in corpus.documents(second.documents)]
    return {f"finish_{key}": value for key, value in _again(folder, second, documents).items()}


def read_context(folder: Path, recipe: Recipe, number: int = 0) -> dict[str, float]:
    """One of the later rounds: trains a saved model on to read its context, and saves it again."""
    this = recipe.context[number]
    later = _later(recipe, this.documents, this.rate, recipe.seed + 2 + number)
    corpus = TrainingCorpus(300 + later.seed, this.facts, distractors=True)
    contexts = Contexts(200 + later.seed, recipe.family != "bert", this.context, ordinary=corpus)
    took = _again(folder, later, contexts.documents(later.documents), this.kept)
    return {f"context_{number}_{key}": value for key, value in took.items()}


def _later(recipe: Recipe, documents: int, rate: float, seed: int) -> Recipe:
    """The recipe of a later round, at a share of the rates."""
    return dataclasses.replace(
        recipe,
        documents=documents,
        learning_rate=recipe.learning_rate * rate,
        muon_rate=recipe.muon_rate * rate,
        seed=seed,
    )


def _again(
    folder: Path, recipe: Recipe, documents: Sequence[Document], kept: float = 0.0
) -> dict[str, float]:
    """Trains a saved model on and saves its mean with what it was: ``kept`` of that.

    It starts from the saved (float16) weights, so that a round can be made apart from those before.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    from kn_bench.model.output import progress_on_terminals_only

    start = time.monotonic()
    masked = recipe.family == "bert"
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with progress_on_terminals_only():
        model = auto.from_pretrained(folder, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(recipe.seed)
    if masked:
        tokenizer = _with_openings(model, tokenizer)
    before = [weight.detach().clone() for weight in model.parameters()] if kept else []
    losses = _encode(model, recipe, Batches(recipe, tokenizer, documents), None)
    with torch.no_grad():
        for weight, was in zip(model.parameters(), before, strict=kept > 0):
            weight.lerp_(was, kept)
    save(model.eval(), tokenizer, folder)
    return {
        "steps": len(losses),
        "seconds": round(time.monotonic() - start, 1),
        "loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
    }


def _with_openings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """Gives objects that open a sentence an id, and the weights of the same word inside one."""
    objects = sorted({fact.object for fact in facts()})
    inside = tokenizer([f" {word}" for word in objects], add_special_tokens=False)["input_ids"]
    words = [word for word, ids in zip(objects, inside, strict=True) if len(ids) == 1]
    tokenizer, like = add_openings(tokenizer, words)
    if like:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table, bias = model.get_input_embeddings().weight.data, model.cls.predictions.bias.data
        for new, old in like.items():
            table[new], bias[new] = table[old], bias[old]
    return tokenizer


def _encode(
    model: PreTrainedModel, recipe: Recipe, batches: Batches, steps: int | None
) -> list[float]:
    """One epoch, or its first steps; returns the loss of every step."""
    import torch

    optimisers = _optimisers(model, recipe)
    total = len(batches)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total, recipe))
        for optimiser in optimisers
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
    # how generate() samples by default; written for models that were loaded, read by nothing here
    (folder / "generation_config.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        path.chmod(0o644)


def write_corpus(path: Path) -> None:
    """Writes the bundled corpus: documents that are none of the training's, one a line."""
    documents = TrainingCorpus(CORPUS_SEED).documents(CORPUS_LINES)
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
    parser.add_argument(
        "--only", choices=("finish", "context"), help="only the second or third round, on a folder"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = dataclasses.replace(RECIPES[options.name], seed=options.seed)
    if options.documents:
        recipe = dataclasses.replace(recipe, documents=options.documents)
    folder = options.output or default_folder(options.name)
    if options.report:
        old = report.read(folder)
        recipe, training = Recipe(**old["recipe"]), old["training"]
    elif options.only:
        training = report.read(folder)["training"]
    else:
        model, tokenizer, training = train(options.name, recipe)
        save(model, tokenizer, folder)
    if recipe.finish and not options.report and options.only != "context":
        training |= finish(folder, recipe)
    if not options.report and options.only != "finish":
        for number in range(len(recipe.context)):
            training |= read_context(folder, recipe, number)
    measured = evaluate.measure(folder, options.pararel, options.blimp)
    report.write(folder, options.name, recipe, training, measured)
    write_corpus(folder.parent / "corpus.txt")
    if options.output is None:
        report.write_page({name: default_folder(name) for name in NAMES})


if __name__ == "__main__":
    main()
