"""Text that a causal model writes itself: a corpus for a machine without a hub.

    "The", "In", "When", ...  ── sampling, seeded, with a key-value cache ── one document per line

Few tokens are enough for the second moment: 2 to 10 times d_mlp keys give edits as good as the
published 100 million do (arXiv 2506.04226). The text depends on the model's content and the seed
alone, and is kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.continuing import Going, joined
from kn_bench.model.corpus import HUB_TEXT, SELF, NamedCorpus, TextFile, file_named
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.progress import Advance

KEYS_PER_DIMENSION = 10
"""Tokens of the text for each dimension of the keys."""
LENGTH = 240
"""Tokens of a document; fewer where the model has fewer positions."""
ROWS = 64
"""Documents written at a time."""
TOP_K = 50
OPENINGS = (
    "The", "In", "A", "It", "When", "After", "He", "She", "They", "We", "I", "You", "There",
    "This", "Many", "One", "At", "On", "For", "As", "While", "Since", "Because", "How", "What",
    "Most", "Some", "Our", "His", "Her", "By", "During",
)  # fmt: skip
"""First words of the documents, in turn: from a start token alone, a chat model writes the same
greeting every time."""


def corpus_named(lm: LanguageModel, spec: str = "") -> NamedCorpus:
    """Return the text that ``--corpus`` names, or the default for a model without one.

    Args:
        spec: a file, a data set of the hub, ``self``, or "" for the default: a text of the hub
            where it can be fetched, else text that the model writes.

    Raises:
        ValueError: one sentence, for a text that cannot be read or fetched, or ``self`` for a
            masked model.
    """
    if spec and spec != SELF:
        return file_named(spec)
    enough = KEYS_PER_DIMENSION * lm.d_mlp
    if not spec:
        try:
            return NamedCorpus(HUB_TEXT, file_named(HUB_TEXT).corpus, enough)
        except ValueError:  # no hub
            pass
    return NamedCorpus(SELF, TextFile(own_text(lm, enough)))


def own_text(lm: LanguageModel, tokens: int, *, seed: int = 0) -> Path:
    """Return a file of text that ``lm`` wrote, one document per line; written once.

    Args:
        lm: the model.
        tokens: the least number of tokens of the text.
        seed: of the sampling.

    Raises:
        ValueError: for a masked model, which cannot continue a text.
    """
    if not lm.is_causal:
        raise ValueError(
            f"{lm.name}: expected a causal model to write the text for C; give --corpus FILE, one "
            "document per line"
        )
    model = [lm.original_hash, lm.behaviour_hash, str(lm.dtype)]
    recipe = [*model, tokens, seed, LENGTH, ROWS, TOP_K, OPENINGS]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]
    path = cache_folder() / "corpora" / f"self-{digest}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # several workers need it at once
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}.part")
            with lm.unedited():  # in a sequence of edits, too, C is that of the unedited model
                lines = _write(lm, tokens, seed)
            part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            part.replace(path)
    return path


def _write(lm: LanguageModel, tokens: int, seed: int) -> list[str]:
    documents: list[str] = []
    written = 0
    with lm.progress.task("writing text for C", total=tokens) as advance:
        batch = 0
        while written < tokens:
            rows = min(ROWS, -(-(tokens - written) // _length(lm)))
            openings = [OPENINGS[(batch * ROWS + i) % len(OPENINGS)] for i in range(rows)]
            texts = _documents(lm, openings, seed + batch, advance)
            counts = [len(ids) for ids in lm.tokens.encode_many(texts)]
            if not sum(counts):
                raise ValueError(
                    f"{lm.name}: expected the model to write a text; give --corpus FILE"
                )
            documents += texts
            written += sum(counts)
            batch += 1
    return documents


def _length(lm: LanguageModel) -> int:
    return max(2, min(LENGTH, lm.tokens.max_length - 8))


@torch.no_grad()
def _documents(
    lm: LanguageModel, openings: Sequence[str], seed: int, advance: Advance
) -> list[str]:
    """Continue each opening by sampling, all openings of equal length at once."""
    starts = [list(lm.tokens.encode(opening).ids) for opening in openings]
    shortest = min(map(len, starts))
    ids = lm.tensor([start[:shortest] for start in starts])
    written = [ids]
    generator = torch.Generator().manual_seed(seed)
    output = lm.hidden(ids, use_cache=True)
    rows = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    past = joined([Going(output.past_key_values, rows)], room=_length(lm)).past
    for _ in range(_length(lm) - shortest):
        ids = _sampled(lm.logits(output.last_hidden_state[:, -1]), lm, generator)
        written.append(ids)
        advance(len(ids))
        output = lm.hidden(ids, past_key_values=past, use_cache=True)
    texts = torch.cat(written, 1).tolist()
    return [text for row in texts if (text := " ".join(lm.tokens.decode(row).split()))]


def _sampled(
    logits: Float[Tensor, "rows vocabulary"], lm: LanguageModel, generator: torch.Generator
) -> Int[Tensor, "rows 1"]:
    """Sample the next token of each row among the likeliest; on the CPU, whatever the device."""
    scores = logits.float().cpu()
    scores[:, sorted(i for i in lm.tokens.special_ids if i < scores.shape[1])] = -torch.inf
    best = scores.topk(min(TOP_K, scores.shape[1]), dim=1)
    drawn = torch.multinomial(best.values.softmax(1), 1, generator=generator)
    return best.indices.gather(1, drawn).to(lm.device)
