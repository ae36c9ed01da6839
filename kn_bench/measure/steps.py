"""The steps of a sequence on disk: each is stored before the next begins.

    edits/<sequence>/
    ├── 00001.0.safetensors       the first edit of step 1; 00001.1 a second one
    ├── 00001.state.safetensors   what the method carries on, where it does; of the last step alone
    └── 00001.json                written last: step 1 is complete

A killed sequence goes on at the step after the last complete one. An edit that is code (a
WrapperEdit) cannot be stored: its sequence begins again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kn_bench.editing.edit import Edit
from kn_bench.editing.method import State
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.saving import EditFileError, load_edit, save_edit


class StepRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of one step beside its edits.

    Attributes:
        step: from 1.
        edited: ids of the cases that it edits.
        edits: how many edits were stored: one for all of them, or one each.
        seconds: wall time of making them.
        refused: case -> why the method is not defined for it.
        failed: why there is no edit, on a model that had collapsed; "" elsewhere.
    """

    step: int
    edited: tuple[str, ...]
    edits: int
    seconds: float
    refused: dict[str, str] = {}
    failed: str = ""


@dataclass(frozen=True)
class Made:
    """One step as it was made or stored."""

    record: StepRecord
    edits: tuple[Edit, ...]
    state: State


class StepStore:
    """The stored steps of one sequence.

    Args:
        folder: of the sequence; made with the first step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, step: int, *, device: object) -> Made | None:
        """A step as it was stored; None when it was not, or not completely.

        Raises:
            ValueError: for a file that was changed since.
        """
        path = self._path(step, "json")
        if not path.is_file():
            return None
        try:
            record = msgspec.json.decode(path.read_bytes(), type=StepRecord)
            files = [self._path(step, f"{i}.safetensors") for i in range(record.edits)]
            edits = tuple(load_edit(file) for file in files)
            stored = self._path(step, "state.safetensors")
            state: dict[str, Tensor] = load_file(stored, str(device)) if stored.is_file() else {}
        except (msgspec.DecodeError, EditFileError, SafetensorError) as error:
            raise ValueError(
                f"step {step} in {self.folder} cannot be read ({error}): remove the folder, and "
                "the sequence begins again"
            ) from error
        return Made(record, edits, state)

    def save(self, made: Made, provenance: Provenance) -> bool:
        """Store a step; False when one of its edits is code.

        Raises:
            OSError: when the disk is full or gone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        step = made.record.step
        try:
            for i, edit in enumerate(made.edits):
                path = self._path(step, f"{i}.safetensors")
                save_edit(edit, path, provenance=provenance)
        except ValueError:
            return False
        if made.state:
            tensors = {name: tensor.detach().cpu().contiguous().clone()
                       for name, tensor in made.state.items()}  # fmt: skip
            self._put(self._path(step, "state.safetensors"), tensors)
        path = self._path(step, "json")
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(made.record))
        fresh.replace(path)
        # a state may hold the keys of all steps so far: only the last is ever gone on from
        self._path(step - 1, "state.safetensors").unlink(missing_ok=True)
        return True

    def _put(self, path: Path, tensors: dict[str, Tensor]) -> None:
        fresh = path.with_suffix(f".{os.getpid()}")
        save_file(tensors, fresh)
        fresh.replace(path)

    def _path(self, step: int, ending: str) -> Path:
        return self.folder / f"{step:05d}.{ending}"


def shared(made: Made) -> Sequence[Edit]:
    """The edit of each case of the step: its own, or the one that all share."""
    n = len(made.record.edited)
    return made.edits if len(made.edits) == n else made.edits * n
