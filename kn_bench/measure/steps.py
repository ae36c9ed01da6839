"""The steps of a sequence on disk: each is stored before the next begins.

    edits/<sequence>/
    ├── 00001.0.safetensors       the first edit of step 1; 00001.1 a second one
    ├── 00001.state.safetensors   the method's state, unless empty; kept for the last step only
    └── 00001.json                written last: step 1 is complete

A killed sequence resumes at the step after the last complete one. An edit that is code (a
WrapperEdit) cannot be stored; its sequence starts over.
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
    """The record of one step, stored beside its edits.

    Attributes:
        step: number of the step, from 1.
        edited: ids of the edited cases.
        edits: number of stored edits: one for all cases, or one each.
        seconds: wall time of making them.
        refused: for each refused case, why the method is not defined for it.
        failed: why a collapsed model has no edit at this step; "" otherwise.
    """

    step: int
    edited: tuple[str, ...]
    edits: int
    seconds: float
    refused: dict[str, str] = {}
    failed: str = ""


@dataclass(frozen=True)
class EditedStep:
    """The edits of one step, new or loaded, and the method's state after it.

    The state of a loaded step that is not the last one is empty: only the last one's is kept.
    """

    record: StepRecord
    edits: tuple[Edit, ...]
    state: State


class StepStore:
    """The stored steps of one sequence.

    Args:
        folder: folder of the sequence; created with the first step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, step: int, *, device: object) -> EditedStep | None:
        """Load a stored step; return None if it was not stored completely.

        Raises:
            ValueError: for a file that cannot be read.
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
                f"step {step} in {self.folder}: expected files as they were stored ({error}); "
                "remove the folder to start the sequence over"
            ) from error
        return EditedStep(record, edits, state)

    def save(self, edited_step: EditedStep, provenance: Provenance) -> bool:
        """Store a step; return False if one of its edits is code.

        Raises:
            OSError: if the disk is full or gone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        step = edited_step.record.step
        try:
            for i, edit in enumerate(edited_step.edits):
                path = self._path(step, f"{i}.safetensors")
                save_edit(edit, path, provenance=provenance)
        except ValueError:
            return False
        stored = self._path(step, "state.safetensors")
        if edited_step.state:
            tensors = {name: tensor.detach().cpu().contiguous().clone()
                       for name, tensor in edited_step.state.items()}  # fmt: skip
            self._put(stored, tensors)
        else:  # a file without its record is of a run that was killed before it stored the step
            stored.unlink(missing_ok=True)
        path = self._path(step, "json")
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(edited_step.record))
        fresh.replace(path)
        # a state may hold the keys of all steps so far, and only the last one is ever resumed
        self._path(step - 1, "state.safetensors").unlink(missing_ok=True)
        return True

    def _put(self, path: Path, tensors: dict[str, Tensor]) -> None:
        fresh = path.with_suffix(f".{os.getpid()}")
        save_file(tensors, fresh)
        fresh.replace(path)

    def _path(self, step: int, ending: str) -> Path:
        return self.folder / f"{step:05d}.{ending}"


def shared(edited_step: EditedStep) -> Sequence[Edit]:
    """Return the edit of each case of the step: its own, or the one that all share."""
    n = len(edited_step.record.edited)
    return edited_step.edits if len(edited_step.edits) == n else edited_step.edits * n
