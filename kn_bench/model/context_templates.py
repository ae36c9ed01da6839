"""Seeded contexts: short texts a model writes by itself, to stand in front of a prompt.

ROME averages keys over such contexts (Meng et al. 2022, section 3.1): 10 of 5 tokens, 10 of 10.
They are written without a key-value cache: at these lengths it would save nothing worth having.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import widened
from kn_bench.model.seeding import seeded

LENGTHS = ((5, 10), (10, 10))
"""(tokens, how many) of each group, as published."""
START = "The"
"""First word of a model without a start token."""


def contexts(
    lm: LanguageModel,
    *,
    lengths: tuple[tuple[int, int], ...] = LENGTHS,
    seed: int = 0,
    top_k: int = 5,
) -> tuple[str, ...]:
    """Return texts that ``lm`` writes after its start token, each closed by ``". "``.

    They depend on the model's content, the lengths and the seed alone: sampling runs on the CPU
    with a generator of its own. In a sequence of edits the unedited model writes them, as in the
    published code.

    Args:
        lengths: (tokens, how many) of each group.
        top_k: how many of the likeliest tokens each step samples from.

    Raises:
        ValueError: for a masked model, which cannot continue a text.
    """
    if not lm.is_causal:
        raise ValueError(
            f"{lm.name}: expected a causal model, and a masked one cannot continue a text"
        )

    def written() -> tuple[str, ...]:
        with lm.unedited():
            return _write(lm, lengths, seed, top_k)

    return lm.memo.get(("context templates", lengths, seed, top_k), written, original=True)


def _write(
    lm: LanguageModel, lengths: tuple[tuple[int, int], ...], seed: int, top_k: int
) -> tuple[str, ...]:
    wanted = [length for length, count in lengths for _ in range(count)]
    if not wanted:
        return ()
    start = _start(lm)
    ids = lm.tensor([start] * len(wanted))
    generator = seeded(seed)
    for _ in range(max(wanted)):
        ids = torch.cat([ids, _next(lm, ids, generator, top_k)], 1)
    texts = (
        " ".join(lm.tokens.decode(row[: len(start) + length]).split())
        for row, length in zip(ids.tolist(), wanted, strict=True)
    )
    # a brace would be read as the placeholder of the subject
    closed = (text.replace("{", "").replace("}", "").rstrip(" .,;:?!") for text in texts)
    return tuple(f"{text}. " for text in closed if text)


def _start(lm: LanguageModel) -> list[int]:
    if own := lm.tokens.encode("").ids:
        return list(own)
    between = lm.tokens.between_id
    return list(lm.tokens.encode(START).ids) if between is None else [between]


@torch.no_grad()
def _next(
    lm: LanguageModel, ids: Int[Tensor, "rows T"], generator: torch.Generator, top_k: int
) -> Int[Tensor, "rows 1"]:
    last = torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)
    logits = widened(lm.forward(ids, last)[:, 0]).cpu()
    logits[:, sorted(lm.tokens.special_ids)] = -torch.inf
    best = logits.topk(top_k, dim=1)
    drawn = torch.multinomial(best.values.softmax(1), 1, generator=generator)
    return best.indices.gather(1, drawn).to(ids.device)
