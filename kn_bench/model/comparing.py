"""Check that a checkpoint is an edited copy of a base: names, shapes, dtypes and tokenizer.

Only headers are read: neither model is loaded and torch is not imported. A checkpoint that cannot
be compared weight by weight is refused in one sentence before the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.model.folder import CONFIG, INDEX, WEIGHTS, check_folder
from kn_bench.model.hub import config_file
from kn_bench.model.source import first_line, source_of

WIDTH = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16}
BUFFERS = ("attn.bias", "attn.masked_bias", "inv_freq", "position_ids", "token_type_ids")
"""Endings of what older checkpoints store beside their parameters."""
TOKENIZER = "tokenizer.json"


class Header(NamedTuple):
    """What a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def local_folder(name: str) -> Path:
    """Return the folder of a model's files; a hub's model is taken from its cache.

    Raises:
        ValueError: where there is no such model.
    """
    source, revision = source_of(name)
    if Path(source).is_dir():
        return Path(source)
    return config_file(name, source, revision).parent


def check_edited_copy(base: str, edited: Path) -> None:
    """Refuse a checkpoint that cannot be compared with its base weight by weight.

    Args:
        base: a model, by any name that it can be loaded by.
        edited: folder of the checkpoint.

    Raises:
        ValueError: one sentence: another architecture, tokenizer, shape or dtype, or a tensor that
            the checkpoint lacks.
    """
    check_folder(edited)
    folder = local_folder(base)
    for problem in _problems(base, folder, edited):
        raise ValueError(f"{edited}: expected an edited copy of {base}, {problem}")


def _problems(base: str, folder: Path, edited: Path) -> Iterator[str]:
    mine, theirs = _json(folder / CONFIG), _json(edited / CONFIG)
    if mine.get("model_type") != theirs.get("model_type"):
        yield (
            f"and it is a {theirs.get('model_type')} where the base is a {mine.get('model_type')}; "
            "name the base that it was made from"
        )
    if _vocabulary(folder) != (_vocabulary(edited) or _vocabulary(folder)):
        yield "and it has another tokenizer; name the base that it was made from"
    before, after = headers(folder), headers(edited)
    for name, old in before.items():
        match = counterpart(name, after)
        if match is None:
            head = name.endswith(("lm_head.weight", "decoder.weight", "decoder.bias"))
            if not head and not name.endswith(BUFFERS):
                yield f"and it lacks {name}; save the whole model, or give its adapter folder"
            continue
        new = after[match]
        if new.shape != old.shape:
            yield (
                f"and its {match} has shape {new.shape}, in the base {old.shape}; name the base "
                "that it was made from"
            )
        if old.dtype in WIDTH and not _holds(new.dtype, old.dtype):
            yield (
                f"and its {match} is {new.dtype}, in the base {old.dtype}: every weight would "
                f"differ by its rounding; save it as {old.dtype}"
            )


def _holds(dtype: str, values_of: str) -> bool:
    """Tell whether ``dtype`` can hold every number of the dtype ``values_of``."""
    return dtype == values_of or WIDTH.get(dtype, 0) > WIDTH[values_of]


def counterpart(name: str, others: Iterable[str]) -> str | None:
    """Return what ``others`` call the tensor ``name``, with or without the base model's prefix."""
    known = others if isinstance(others, Mapping | set | frozenset) else set(others)
    shorter = name.partition(".")[2]
    prefixes = dict.fromkeys(other.partition(".")[0] for other in known)
    candidates = (name, shorter, *(f"{prefix}.{name}" for prefix in prefixes))
    return next((candidate for candidate in candidates if candidate in known), None)


def headers(folder: Path) -> dict[str, Header]:
    """Return dtype, shape and file of every tensor of a model's folder.

    Raises:
        ValueError: for a file that cannot be read.
    """
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        weights = _json(folder / INDEX).get("weight_map", {})
        files = [folder / name for name in sorted(set(weights.values()))]
    read: dict[str, Header] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                content = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        except (OSError, ValueError, MemoryError) as error:
            raise ValueError(f"{file}: expected a safetensors file ({first_line(error)})") from None
        read |= {
            name: Header(about["dtype"], tuple(about["shape"]), file)
            for name, about in content.items()
            if name != "__metadata__"
        }
    return read


def _vocabulary(folder: Path) -> Any:
    """Return what decides a text's ids; None where the folder has no tokenizer of its own."""
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    content = _json(path)
    model = content.get("model") or {}
    # newer releases of tokenizers write a merge as a pair, older ones as a text
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    added = sorted((t["id"], t["content"]) for t in content.get("added_tokens") or [])
    return model.get("type"), model.get("vocab"), merges, added


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON ({first_line(error)}); save it again") from None
    return content if isinstance(content, dict) else {}
