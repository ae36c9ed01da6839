"""Edits made elsewhere: a checkpoint edited by other tools, an adapter, or edits that were saved.

    --method checkpoint:FOLDER

    config.json + safetensors    the difference from the model, the same for every request
    adapter_config.json          what the PEFT adapter adds, the same for every request
    saved edits                  each request's own, by id and content; one of no case serves all

What is measured is what lay there when the method was made: files that were written again since are
refused, and a method made after that measures the new ones.

A checkpoint or adapter holds all of its edits: under ``batch`` and ``sequence`` it is applied once,
in the first step. So is a saved edit that serves all, in the first step that has use of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from kn_bench.cases.case import EditRequest
from kn_bench.editing.adapters import adapter_edit, check_adapter, check_adapter_of
from kn_bench.editing.composition import summed
from kn_bench.editing.difference import checkpoint_edit
from kn_bench.editing.edit import Edit, NoEdit, NotApplicable, content_of
from kn_bench.editing.method import State
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.registry import edit_method
from kn_bench.editing.saving import check_made_for, load_edit, saved_provenance
from kn_bench.model.comparing import check_edited_copy
from kn_bench.model.folder import ADAPTER, CONFIG, INDEX, WEIGHTS
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.source import is_gguf
from kn_bench.model.written import Written, as_written


class EditedCheckpoint:
    """One edit for every request: what a checkpoint or adapter changes.

    Args:
        lm: the base; untouched.
        folder: of the checkpoint or adapter.
    """

    def __init__(self, lm: LanguageModel, folder: Path) -> None:
        self.lm, self.folder, self.files = lm, folder, _as_written(folder)

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit]:
        """Return the same edit for each request."""
        return [self._difference()] * len(requests)

    def begin(self) -> State:
        return {}

    def whole(self) -> list[Edit]:
        """Return all that changes the model at once."""
        return [self._difference()]

    def edit_together(self, requests: Sequence[EditRequest], state: State) -> tuple[Edit, State]:
        """Return the whole difference in the first step, and nothing in those after it."""
        if "applied" in state:
            return NoEdit(), state
        return self._difference(), {"applied": torch.tensor(True)}

    def _difference(self) -> Edit:
        return self.lm.memo.get(("difference", *self.files), self._read)

    def _read(self) -> Edit:
        of = adapter_edit if (self.folder / ADAPTER).is_file() else checkpoint_edit
        edit = of(self.lm, self.folder)
        _refuse_rewritten(self.folder, self.files)
        return replace(edit, for_all=True)


class SavedFile(NamedTuple):
    """A file that ``save_edit`` wrote, where its edit comes from, and when it was written."""

    path: Path
    source: Provenance
    files: tuple[Written, ...]


class SavedEdits:
    """Each request's own edit, from files that ``save_edit`` wrote.

    Args:
        lm: the model that they were made for.
        files: by the id of their case; "" for one that serves every request.
    """

    def __init__(self, lm: LanguageModel, files: Mapping[str, SavedFile]) -> None:
        self.lm, self.files = lm, files

    def edit(self, requests: Sequence[EditRequest]) -> list[Edit | NotApplicable]:
        """Read the edits of ``requests``.

        Raises:
            EditFileError: for a file that cannot be used, or was made for another model.
        """
        files = [self._file_of(request) for request in requests]
        # one that serves all is one object, put in place once
        distinct = {file.path: file for file in files if isinstance(file, SavedFile)}
        loaded = {path: self._load(file) for path, file in distinct.items()}
        return [loaded[file.path] if isinstance(file, SavedFile) else file for file in files]

    def begin(self) -> State:
        return {}

    def refusals(self, requests: Sequence[EditRequest]) -> list[NotApplicable | None]:
        """Return why there is no edit of a request, or None, for each."""
        files = [self._file_of(request) for request in requests]
        return [file if isinstance(file, NotApplicable) else None for file in files]

    def edit_together(self, requests: Sequence[EditRequest], state: State) -> tuple[Edit, State]:
        """Return the sum of the requests' edits, without one for all that is in force already.

        Raises:
            NotApplicable: for a request without an edit.
            CannotCompose: for edits that have no sum.
        """
        in_force, added = dict(state), []
        for edit in {id(edit): edit for edit in self.edit(requests)}.values():
            if isinstance(edit, NotApplicable):
                raise edit
            if edit.for_all:
                content = content_of(edit)
                if content in in_force:
                    continue
                in_force[content] = torch.tensor(True)
            added.append(edit)
        return summed(added), in_force

    def _load(self, file: SavedFile) -> Edit:
        check_made_for(file.path, file.source, self.lm)
        edit = load_edit(file.path)
        _refuse_rewritten(file.path, file.files)
        return edit if file.source.case else replace(edit, for_all=True)

    def _file_of(self, request: EditRequest) -> SavedFile | NotApplicable:
        file = self.files.get(request.id) or self.files.get("")
        if file is None:
            return NotApplicable("no edit of this case was saved")
        if file.source.request not in ("", request.content_hash):
            return NotApplicable(
                f"the edit in {file.path.name} was made for another request of this id"
            )
        return file

    def whole(self) -> list[Edit]:
        """Return all that changes the model at once: every saved edit."""
        return [self._load(file) for file in self.files.values()]


def _as_written(path: Path) -> tuple[Written, ...]:
    """Return a saved edit, or the files of a checkpoint or adapter, as they were last written."""
    named = (path / name for name in (CONFIG, INDEX, ADAPTER))
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *named])
    return tuple(as_written(file) for file in files if file.is_file())


def _refuse_rewritten(path: Path, files: tuple[Written, ...]) -> None:
    """Refuse what was read from ``path`` where it is no more what lay there at first."""
    if _as_written(path) != files:
        raise ValueError(
            f"{path}: expected what lay there when the method was made, and it was written again "
            "since; measure it again"
        )


def saved_files(path: Path) -> dict[str, SavedFile]:
    """Return the saved edits at ``path``, a file or a folder, by the id of their case.

    Raises:
        ValueError: one sentence: none, one that cannot be read, or two of one case.
    """
    files: dict[str, SavedFile] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        written = _as_written(file)
        source = saved_provenance(file)
        case = source.case
        if case in files:
            raise ValueError(
                f"{path}: expected one edit a case, and {files[case].path.name} and {file.name} "
                f"are both of {case or 'no case'}; keep one"
            )
        files[case] = SavedFile(file, source, written)
    if not files:
        raise ValueError(
            f"{path}: expected a model folder with {CONFIG}, a PEFT adapter folder with {ADAPTER}, "
            "or edits that save_edit wrote; it holds none of them"
        )
    return files


def check(path: str, model: str, dtype: str = "float32") -> None:
    """Refuse, before anything is loaded, what cannot be measured against ``model`` in ``dtype``.

    Raises:
        ValueError: one sentence.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(
            f"{path}: expected a checkpoint, an adapter or saved edits, and there is nothing; "
            "give the path of one"
        )
    if is_gguf(folder):
        raise ValueError(
            f"{path}: expected a checkpoint, an adapter or saved edits, and it is a GGUF file, "
            "whose weights are rounded; give the folder that it was made from"
        )
    if (folder / ADAPTER).is_file():
        if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
            raise ValueError(
                f"{path}: expected whole weights or an adapter, and it holds both; keep one of "
                f"{WEIGHTS} and {ADAPTER} in a folder of its own"
            )
        check_adapter(folder)
        check_adapter_of(model, folder)
    elif (folder / CONFIG).is_file():
        check_edited_copy(model, folder, dtype)
    else:
        _check_saved(folder, dtype)


def _check_saved(folder: Path, dtype: str) -> None:
    for saved in saved_files(folder).values():
        made_in = saved.source.dtype
        if made_in not in ("", dtype):
            raise ValueError(
                f"{saved.path}: expected an edit of a model in {dtype}, and it was made in "
                f"{made_in}; measure it with --dtype {made_in}"
            )


@edit_method("checkpoint", by_default=False, argument="FOLDER", check=check)
def checkpoint(language_model: LanguageModel, argument: str) -> EditedCheckpoint | SavedEdits:
    """What was edited elsewhere, against the model that it was made from."""
    folder = Path(argument)
    if (folder / ADAPTER).is_file() or (folder / CONFIG).is_file():
        return EditedCheckpoint(language_model, folder)
    return SavedEdits(language_model, saved_files(folder))
