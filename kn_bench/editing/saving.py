"""Edits on disk: one safetensors file an edit, with all that is not a tensor as JSON in its header.

    header    {"kn_bench": JSON of what kind of edit, its notes, where it comes from, a SHA-256}
    tensors   "0.u", "0.v", ...: dtype, shape and bytes as the edit holds them

Nothing is pickled, so a file from a stranger can be read safely. The SHA-256 covers the JSON and
every tensor: a file that was changed or cut off is refused, never loaded as another edit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kn_bench.cases.case import Cloze
from kn_bench.editing.edit import (
    DenseEdit,
    Edit,
    LookupEdit,
    LowRank,
    LowRankDeltas,
    LowRankEdit,
    MemoryEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    PromptEdit,
    RankFactors,
    tensors_of,
)
from kn_bench.editing.memories import Codebook, Memory, SideWeights
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.stored_numbers import NonFinite, Stored, finite, number, restored, stored
from kn_bench.model.given import PATH, check_type
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loaded import check_model
from kn_bench.model.rights import with_usual_rights
from kn_bench.model.source import dtype_name, first_line

FORMAT = 2
"""Of the file; a reader refuses a newer one. What format 1 can hold is written in it."""
HEADER = "kn_bench"
"""The key of our JSON among a safetensors file's metadata."""


class EditFileError(ValueError):
    """A file does not hold an edit that can be used; one sentence says why."""


# -- what the header holds ---------------------------------------------------------------------


class _Kind(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """What an edit is, without its tensors."""


class _None(_Kind, frozen=True, tag="none"):
    pass


class _LowRank(_Kind, frozen=True, tag="low_rank"):
    layers: tuple[int, ...]


class _Neurons(_Kind, frozen=True, tag="neurons"):
    layers: tuple[int, ...]
    factors: tuple[float | NonFinite, ...]


class _Dense(_Kind, frozen=True, tag="dense"):
    names: tuple[str, ...]


class _Factored(_Kind, frozen=True, tag="factored"):  # format 2
    names: tuple[str, ...]


class _Prompt(_Kind, frozen=True, tag="prompt"):
    prefix: str


class _Lookup(_Kind, frozen=True, tag="lookup", omit_defaults=True):
    answers: tuple[tuple[str, str, str | tuple[str, ...]], ...]
    gaps: tuple[str | None, ...] = ()


class _Memory(_Kind, frozen=True, tag="memory"):
    module: str
    form: Literal["Codebook", "SideWeights"]
    before_last: bool


_AnyKind = _None | _LowRank | _Neurons | _Dense | _Factored | _Prompt | _Lookup | _Memory


class _Header(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    format: int
    edit: _AnyKind
    notes: dict[str, Stored]
    # what follows up to sha256 is Provenance, field by field; fields with a default came later
    model: str
    model_hash: str
    method: str
    settings: dict[str, Stored]
    case: str
    kn_bench: str
    dtype: str = ""
    request: str = ""
    for_all: bool = False  # of the edit
    sha256: str


# -- saving ------------------------------------------------------------------------------------


def save_edit(edit: Edit, path: str | Path, *, provenance: Provenance) -> None:
    """Write ``edit`` to one safetensors file, whole or not at all.

    Every edit but a WrapperEdit can be saved: its context manager is code, and code is not stored.

    Args:
        edit: what a method returned.
        path: the file; an existing one is replaced.
        provenance: recorded with it, and held against the model when it is loaded.

    Raises:
        TypeError: for a path or a provenance that is none.
        ValueError: for an edit that cannot be stored, in one sentence.
        OSError: when the file cannot be written, in one sentence.

    Examples:
        >>> import kn_bench as kn
        >>> rome = kn.method("rome-no-c", kn.load_model("tiny-gpt2"))
        >>> fact = kn.load_cases("embedded", relation="P36", limit=1)[0].request
        >>> kn.save_edit(rome.edit(fact), "edit.safetensors", provenance=rome.provenance)
        >>> kn.load_edit("edit.safetensors", model=rome.model)  # doctest: +ELLIPSIS
        LowRankEdit(...)
    """
    check_type("path", path, PATH, "the path of a file")
    wanted = "a kn_bench.Provenance, such as that of a bound method: method.provenance"
    check_type("provenance", provenance, Provenance, wanted)
    if not Path(path).name:
        raise ValueError(f"path {str(path)!r}: expected the path of a file; name one")
    kind = _plain(edit)
    try:
        tensors = _owned(tensors_of(edit))
        source = _shared(provenance) | {"settings": stored(provenance.settings)}
        notes = stored(edit.notes)
        version = FORMAT if isinstance(kind, _Factored) else 1
        header = _Header(
            format=version, edit=kind, notes=notes, for_all=edit.for_all, sha256="", **source
        )
        header = msgspec.structs.replace(header, sha256=_sha256(header, tensors))
        text = msgspec.json.encode(header).decode()
        read = msgspec.json.decode(text, type=_Header)
        if (read.notes, read.settings) != (header.notes, header.settings):
            raise ValueError("one of them would be read as another value")
    except (TypeError, ValueError, OverflowError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{type(edit).__name__}: expected notes and settings that JSON can hold as single "
            f"values, and all else of its own type; {first_line(error)}"
        ) from None
    _write(Path(path), tensors, text)


def _write(path: Path, tensors: dict[str, Tensor], text: str) -> None:
    """Write the file, whole or not at all."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: expected a folder to save the edit in")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, {HEADER: text})
        with_usual_rights(temporary)
        temporary.replace(path)
    except IsADirectoryError:
        raise IsADirectoryError(
            f"{path}: expected a file, and it is a folder; name a file in it"
        ) from None
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{path}: expected a place where the edit can be written ({reason}); make room or give "
            "the right to write there, or name another folder"
        ) from error
    finally:
        with suppress(OSError):  # a name that is too long cannot be looked for either
            temporary.unlink(missing_ok=True)


def _plain(edit: Edit) -> _AnyKind:
    """Return what the header says of ``edit`` beside its tensors."""
    # by exact type: a subclass may hold more than is written here
    kind = type(edit)
    if kind is NoEdit:
        return _None()
    if isinstance(edit, LowRankEdit) and kind is LowRankEdit:
        return _LowRank(tuple(int(update.layer) for update in edit.updates))
    if isinstance(edit, NeuronEdit) and kind is NeuronEdit:
        layers = tuple(int(scale.layer) for scale in edit.scales)
        return _Neurons(layers, tuple(finite(float(scale.factor)) for scale in edit.scales))
    if isinstance(edit, DenseEdit) and kind is DenseEdit:
        factored = isinstance(edit.deltas, LowRankDeltas)
        return (_Factored if factored else _Dense)(tuple(edit.deltas))
    if isinstance(edit, PromptEdit) and kind is PromptEdit:
        return _Prompt(edit.prefix)
    if isinstance(edit, LookupEdit) and kind is LookupEdit:
        answers = tuple((c.left, c.right, answer) for c, answer in edit.answers.items())
        gaps = tuple(cloze.gap for cloze in edit.answers)
        return _Lookup(answers, gaps if any(gap is not None for gap in gaps) else ())
    if isinstance(edit, MemoryEdit) and kind is MemoryEdit:
        book = isinstance(edit.memory, Codebook)
        return _Memory(edit.module, "Codebook" if book else "SideWeights", edit.before_last)
    raise ValueError(
        f"{kind.__name__}: expected an edit that is data (LowRankEdit, NeuronEdit, DenseEdit, "
        "PromptEdit, LookupEdit, MemoryEdit or NoEdit); one that is code cannot be saved: make it "
        "again by its method"
    )


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor on the CPU with memory of its own, as the file format wants it."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            kind = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"tensor {name} is a {kind}, and only a dense tensor can be saved")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # a view would be written whole, and a storage may be written once only
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def _shared(source: Provenance | _Header) -> dict[str, Any]:
    """Return the fields that a provenance and a header have in common."""
    return {each.name: getattr(source, each.name) for each in fields(Provenance)}


def _sha256(header: _Header, tensors: Mapping[str, Tensor]) -> str:
    """Hash all that the file says: the header without its own hash, and every tensor."""
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(header, sha256="")))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        if tensor.numel():  # torch refuses to view nothing as bytes
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- loading -----------------------------------------------------------------------------------


def load_edit(path: str | Path, *, model: LanguageModel | None = None) -> Edit:
    """Read an edit that :func:`save_edit` wrote; its tensors lie on the CPU.

    Args:
        path: the file.
        model: where given, the model that the edit must have been made for.

    Raises:
        TypeError: for a path that is none, or a model that is not loaded.
        EditFileError: one sentence: no such file, not an edit's, cut off, changed since it was
            written, of a newer version, or made for another model.

    Examples:
        >>> import kn_bench as kn
        >>> model = kn.load_model("tiny-gpt2")
        >>> source = kn.Provenance(model="tiny-gpt2", model_hash=model.content_hash)
        >>> kn.save_edit(kn.PromptEdit("Ottawa is far."), "far.safetensors", provenance=source)
        >>> kn.load_edit("far.safetensors", model=model)
        PromptEdit(notes={}, prefix='Ottawa is far.')
    """
    check_type("path", path, PATH, "the path of a file that save_edit wrote")
    if model is not None:
        check_model(model)
    header, tensors = _read(Path(path))
    if model is not None:
        check_made_for(path, header, model)
        if header.model_hash != model.content_hash:
            raise EditFileError(
                f"{path}: expected {model.name} without an edit, and one is in force "
                "(kn_bench.edited); load the edit outside of that block"
            )
    return replace(_unpacked(header, tensors), for_all=header.for_all)


def check_made_for(path: str | Path, source: Provenance | _Header, model: LanguageModel) -> None:
    """Refuse an edit that was made for neither ``model`` as it was loaded nor as it is.

    Raises:
        EditFileError: one sentence.
    """
    if source.model_hash not in (model.original_hash, model.content_hash):
        dtype = f" in {source.dtype}" if source.dtype else ""
        raise EditFileError(
            f"{path}: expected an edit of {model.name} in {dtype_name(model.dtype)} "
            f"({model.content_hash[:12]}), and this one was made for {source.model}{dtype} "
            f"({source.model_hash[:12]}); load that model"
        )


def saved_provenance(path: str | Path) -> Provenance:
    """Return where the edit in ``path`` comes from.

    Raises:
        EditFileError: as :func:`load_edit` does.
    """
    header, _ = _read(Path(path))
    return Provenance(**_shared(header) | {"settings": restored(header.settings)})


def _read(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    if not path.is_file():
        raise EditFileError(f"{path}: expected a file that save_edit wrote, and there is none")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise EditFileError(
            f"{path}: expected a safetensors file that save_edit wrote ({error}); save the edit "
            "again"
        ) from None
    if text is None:
        raise EditFileError(
            f"{path}: expected an edit that save_edit wrote, and this is a safetensors file of "
            "another kind"
        )
    header = _header(path, text)
    try:
        intact = header.sha256 == _sha256(header, tensors)
    except (RuntimeError, TypeError, ValueError):  # a dtype that has no bytes to be hashed
        intact = False
    if not intact:
        raise EditFileError(
            f"{path}: expected the SHA-256 that was written with the edit, and its content has "
            "another; it was changed since: save the edit again"
        )
    return header, tensors


def _header(path: Path, text: str) -> _Header:
    try:
        version = msgspec.json.decode(text, type=dict[str, Any]).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise EditFileError(
                f"{path}: expected an edit of format {FORMAT} or older, and this one has "
                f"{version}; update kn_bench"
            )
        return msgspec.json.decode(text, type=_Header)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise EditFileError(
            f"{path}: expected the header of an edit ({error}); save the edit again"
        ) from None


def _unpacked(header: _Header, tensors: Mapping[str, Tensor]) -> Edit:
    kind, notes = header.edit, restored(header.notes)
    if isinstance(kind, _LowRank):
        updates = (LowRank(layer, tensors[f"{i}.u"], tensors[f"{i}.v"])
                   for i, layer in enumerate(kind.layers))  # fmt: skip
        return LowRankEdit(tuple(updates), notes=notes)
    if isinstance(kind, _Neurons):
        pairs = enumerate(zip(kind.layers, kind.factors, strict=True))
        scales = (NeuronScale(layer, tensors[str(i)], number(f)) for i, (layer, f) in pairs)
        return NeuronEdit(tuple(scales), notes=notes)
    if isinstance(kind, _Dense):
        deltas = {name: tensors[str(i)] for i, name in enumerate(kind.names)}
        return DenseEdit(deltas, notes=notes)
    if isinstance(kind, _Factored):
        factors = {name: RankFactors(tensors[f"{i}.u"], tensors[f"{i}.v"])
                   for i, name in enumerate(kind.names)}  # fmt: skip
        return DenseEdit(LowRankDeltas(factors), notes=notes)
    if isinstance(kind, _Prompt):
        return PromptEdit(kind.prefix, notes=notes)
    if isinstance(kind, _Lookup):
        gaps = kind.gaps or (None,) * len(kind.answers)
        stored = zip(kind.answers, gaps, strict=True)
        return LookupEdit({Cloze(a, b, gap): answer for (a, b, answer), gap in stored}, notes=notes)
    if isinstance(kind, _Memory):
        form: type[Memory] = Codebook if kind.form == "Codebook" else SideWeights
        return MemoryEdit(kind.module, form(**tensors), kind.before_last, notes=notes)
    return NoEdit(notes=notes)
