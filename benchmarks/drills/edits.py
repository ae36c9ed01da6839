"""Edits of every method put into the model and taken out, a thousand times: restored to the bit.

Fifty are made, since making is what takes long, and each is put in twenty times. Every tensor,
parameter and buffer, is compared with a copy each time, and its SHA-256 with that of the beginning
after the last.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

import kn_bench as kn
from benchmarks.drills.row import DrillRow
from kn_bench.editing.edit import LookupEdit, NotApplicable
from kn_bench.model.language_model import LanguageModel

EDITS = 1000
TIMES = 20
"""How often each edit is put in and taken out."""
MODEL = "tiny-gpt2"
BY_ARGUMENT = ("checkpoint", "nas")
"""Methods that need something that is given on the command line."""


def drill(share: float, seed: int, folder: Path) -> DrillRow:
    """Put in and take out ``share`` of :data:`EDITS` times an edit of every built-in method."""
    row = DrillRow("edits taken back")
    model = kn.load_model(MODEL)
    requests = [
        case.request for case in kn.load_cases("embedded", seed=seed) if case.task == "fact"
    ]
    for name in kn.methods():
        if name.split(":")[0] in BY_ARGUMENT:
            continue
        try:
            method = kn.method(name, model)
        except (NotApplicable, ValueError) as reason:
            row.notes["not for this model"] += 1
            row.examples.append(f"{name} left out: {reason}"[:120])
            continue
        row.notes["methods"] += 1
        before, copies = _hashes(model), _copies(model)
        wanted = itertools.islice(itertools.cycle(requests), max(1, round(EDITS * share / TIMES)))
        for edit in method.edit(list(wanted)):
            if isinstance(edit, NotApplicable | LookupEdit):  # nothing is put into the model
                row.notes["without an edit"] += 1
                continue
            for _ in range(TIMES):
                with kn.edited(model, edit):
                    pass
                row.tried += 1
                changed = [n for n, t in _tensors(model) if not torch.equal(t, copies[n])]
                row.fault("different", f"{name} left {changed[:3]} changed", len(changed))
        after = _hashes(model)
        row.fault("different", f"{name}: hashes", sum(before[n] != after[n] for n in before))
    return row


def _tensors(model: LanguageModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.hf.named_parameters()
    yield from model.hf.named_buffers()


def _copies(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(model)}


def _hashes(model: LanguageModel) -> dict[str, str]:
    hashes = {}
    for name, tensor in _tensors(model):
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        hashes[name] = hashlib.sha256(content.numpy().data).hexdigest()
    return hashes
