"""Compute C = E[k k^T], the uncentred second moment of a site's keys over a corpus, by streaming.

See Meng et al. 2022, section 3.1. Results are kept on disk by content (weights, layer, corpus,
tokens, dtype), so that two models never share one; an interrupted pass is resumed where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kn_bench.model.corpus import Corpus
from kn_bench.model.costs import forward_bytes
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.precision import widened
from kn_bench.model.progress import Advance
from kn_bench.model.resuming import skipping
from kn_bench.model.transfer import to_device

CHUNK = 512
"""Documents tokenised and sorted by length at a time; a pass can be resumed between two chunks."""
PRODUCT_TOKENS = 4096
"""Tokens of one product k^T k: it is summed in float32, which loses digits as it grows."""
SAVE_EVERY = 60.0
"""Seconds between two saves of an unfinished pass."""
MAX_LENGTH = 1024
"""Tokens of a document that are read at most; fewer where the model has fewer positions."""
CHECKSUM = "sha256"
"""Name, among a file's numbers, of the checksum of its tensors and numbers."""
_UNREADABLE = (OSError, SafetensorError, KeyError, TypeError, ValueError)
"""What reading a truncated or foreign file may raise."""


@dataclass(frozen=True)
class SecondMoment:
    """C of one site.

    Attributes:
        layer: the site's layer.
        matrix: mean of k k^T over tokens, in the accumulators' dtype, on the CPU.
        n_tokens: how many.
    """

    layer: int
    matrix: Float[Tensor, "d_mlp d_mlp"]
    n_tokens: int


def second_moments(
    lm: LanguageModel,
    layers: Sequence[int],
    corpus: Corpus,
    *,
    max_tokens: int | None = None,
    dtype: torch.dtype = torch.float64,
    cache: Path | None = None,
) -> dict[int, SecondMoment]:
    """Return C of the sites of ``layers`` over every token of ``corpus``, special tokens included.

    Args:
        max_tokens: documents are read until this many tokens are in; None reads all.
        dtype: of the accumulators; the products of one batch are float32, or the model's own
            dtype where that is wider.
        cache: folder to keep them in; None keeps nothing. Files that cannot be read are computed
            again, and results that cannot be written are not kept, each with a warning.

    Raises:
        ValueError: when the corpus has no token.
    """
    layers = sorted(set(layers))
    if cache is None:
        return _finished(_accumulate(lm, layers, corpus, max_tokens, dtype, None))
    keys = {layer: _key(lm, layer, corpus, max_tokens, dtype) for layer in layers}
    files = {layer: cache / f"{keys[layer]}.safetensors" for layer in layers}
    moments = {layer: kept for layer in layers if (kept := _load(files[layer], layer))}
    missing = [layer for layer in layers if layer not in moments]
    if missing:
        partial = cache / f"{_digest([keys[layer] for layer in missing])}.partial.safetensors"
        moments |= _finished(_accumulate(lm, missing, corpus, max_tokens, dtype, partial))
        for layer in missing:
            moment = moments[layer]
            numbers = {"n_tokens": moment.n_tokens, "layer": layer}
            _save(files[layer], {"C": moment.matrix}, numbers)
        if partial.is_file():
            partial.unlink(missing_ok=True)
    return {layer: moments[layer] for layer in layers}


@dataclass
class _Sums:
    """State of a pass: sums of k k^T, and how far it has come."""

    sums: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    n_tokens: int = 0
    n_documents: int = 0


def _finished(state: _Sums) -> dict[int, SecondMoment]:
    if not state.n_tokens:
        raise ValueError(
            "the corpus for the second moment: expected text; give a file with documents"
        )
    return {
        layer: SecondMoment(layer, (total / state.n_tokens).cpu(), state.n_tokens)
        for layer, total in state.sums.items()
    }


def _accumulate(
    lm: LanguageModel,
    layers: Sequence[int],
    corpus: Corpus,
    max_tokens: int | None,
    dtype: torch.dtype,
    partial: Path | None,
) -> _Sums:
    state = _resumed(partial, layers, lm.device) or _Sums(
        {layer: torch.zeros(lm.d_mlp, lm.d_mlp, dtype=dtype, device=lm.device) for layer in layers}
    )
    documents = islice(corpus.documents(), state.n_documents, None)
    saved = time.monotonic()
    with ExitStack() as stack:
        # nothing above the last site is needed
        stack.enter_context(skipping(lm, range(max(layers) + 1, lm.n_layers)))
        advance = stack.enter_context(lm.progress.task("second moment C", total=max_tokens))
        advance(state.n_tokens)
        while chunk := list(islice(documents, CHUNK)):
            left = None if max_tokens is None else max_tokens - state.n_tokens
            _add_chunk(lm, state, chunk, left, advance)
            if max_tokens is not None and state.n_tokens >= max_tokens:
                break
            if partial is not None and time.monotonic() - saved > SAVE_EVERY:
                _save_partial(partial, state)
                saved = time.monotonic()
    return state


def _add_chunk(
    lm: LanguageModel, state: _Sums, chunk: Sequence[str], left: int | None, advance: Advance
) -> None:
    """Add the keys of some documents, at most ``left`` tokens of them."""
    length = min(lm.tokens.max_length, MAX_LENGTH)
    rows = [ids[:length] for ids in lm.tokens.encode_many(chunk)]
    if left is not None:
        rows = _first_tokens(rows, left)

    def add(batch: list[tuple[int, ...]]) -> list[None]:
        _add_batch(lm, state, batch)
        advance(sum(map(len, batch)))
        return [None] * len(batch)

    lm.batcher.run(
        add,
        [row for row in rows if row],
        item_bytes=lambda row: _row_bytes(lm, len(row), len(state.sums)),
    )
    state.n_documents += len(chunk)


def _first_tokens(rows: Sequence[tuple[int, ...]], left: int) -> list[tuple[int, ...]]:
    kept = []
    for row in rows:
        kept.append(row[:left])
        left -= len(kept[-1])
    return kept


def _row_bytes(lm: LanguageModel, length: int, layers: int) -> int:
    """Return a row's bytes: one layer's activations, and the neurons of the summed layers."""
    neurons = length * layers * lm.d_mlp * (lm.dtype.itemsize + 4)
    return forward_bytes(lm, length, reads=0) + neurons


def _add_batch(lm: LanguageModel, state: _Sums, rows: Sequence[tuple[int, ...]]) -> None:
    ids, mask, real = _padded(lm, rows)
    # all products before any sum: a batch that runs out of memory is run again in halves, and must
    # not count twice
    products = {
        layer: [k.T @ k for k in torch.split(widened(mlp_in.flatten(0, 1)[real]), PRODUCT_TOKENS)]
        for layer, mlp_in in lm.neurons(ids, list(state.sums), mask).items()
    }
    for layer, parts in products.items():
        for part in parts:
            state.sums[layer] += part
    state.n_tokens += sum(map(len, rows))


def _padded(
    lm: LanguageModel, rows: Sequence[tuple[int, ...]]
) -> tuple[Int[Tensor, "rows T"], Int[Tensor, "rows T"], Int[Tensor, " n"]]:
    """Return rows padded on the right, their mask, and the real tokens' flat indices."""
    longest = max(map(len, rows))
    ids = lm.tensor([[*row, *[lm.tokens.pad_id] * (longest - len(row))] for row in rows])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, to_device(mask, lm.device), to_device(np.flatnonzero(mask), lm.device)


# -- on disk -------------------------------------------------------------------------------------


def _key(
    lm: LanguageModel, layer: int, corpus: Corpus, max_tokens: int | None, dtype: torch.dtype
) -> str:
    model = [lm.content_hash, lm.behaviour_hash, str(lm.dtype)]
    return _digest([*model, layer, corpus.content_hash, max_tokens, str(dtype)])


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _save(path: Path, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
    """Write a file whole or not at all, also when two processes save the same one."""
    fresh = path.with_suffix(f".{os.getpid()}.new")
    metadata = {name: str(number) for name, number in numbers.items()}
    metadata[CHECKSUM] = _checksum(tensors, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, fresh, metadata=metadata)
        fresh.replace(path)
    except (OSError, SafetensorError) as error:
        if fresh.is_file():
            fresh.unlink(missing_ok=True)
        warnings.warn(f"{path}: expected a writable file ({error}); it is not kept", stacklevel=2)


def _checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and its numbers.

    Raises:
        ValueError: when they are not what was saved.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        numbers = dict(file.metadata())
    if CHECKSUM not in numbers:
        raise ValueError("no checksum: an older version saved it")
    if numbers.pop(CHECKSUM) != _checksum(tensors, numbers):
        raise ValueError("altered since it was saved")
    return tensors, numbers


def _checksum(tensors: Mapping[str, Tensor], numbers: Mapping[str, str]) -> str:
    """Return SHA-256 of the content of a file of sums."""
    digest = hashlib.sha256(json.dumps(sorted(numbers.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(path: Path, layer: int) -> SecondMoment | None:
    if not path.is_file():
        return None
    try:
        tensors, numbers = _checked(path)
        return SecondMoment(layer, tensors["C"], int(numbers["n_tokens"]))
    except _UNREADABLE as error:
        _warn_unusable(path, error)
        return None


def _warn_unusable(path: Path, error: Exception) -> None:
    warnings.warn(
        f"{path}: expected a file that this version saved ({error}); it is computed again",
        stacklevel=3,
    )


def _save_partial(path: Path, state: _Sums) -> None:
    _save(
        path,
        {str(layer): total for layer, total in state.sums.items()},
        {"n_tokens": state.n_tokens, "n_documents": state.n_documents},
    )


def _resumed(path: Path | None, layers: Sequence[int], device: torch.device) -> _Sums | None:
    if path is None or not path.is_file():
        return None
    try:
        tensors, numbers = _checked(path)
        sums = {layer: tensors[str(layer)].to(device) for layer in layers}
        return _Sums(sums, int(numbers["n_tokens"]), int(numbers["n_documents"]))
    except _UNREADABLE as error:
        _warn_unusable(path, error)
        return None
