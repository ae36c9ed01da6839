"""Check a model's folder before any of it is loaded: in milliseconds, without torch.

Otherwise a broken download, an adapter or a quantised checkpoint would end in an error deep inside
a library, in a hang, or in a model that is partly random. Each message is one sentence.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_config.json"
"""The file that says that a folder is a PEFT adapter."""
READ = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Endings of the files that are read when a model is loaded."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SIZES = (
    *LAYERS,
    *("hidden_size", "n_embd", "dim", "d_model", "num_attention_heads", "n_head", "n_heads"),
    *("vocab_size", "intermediate_size", "n_inner", "ffn_dim", "hidden_dim"),
)
LARGEST = dict.fromkeys(LAYERS, 1000)
"""More layers than any published model has; a billion of them would fill the memory."""
_LARGEST = 1 << 24
_HEADER = 100 << 20
"""Bytes that the safetensors format allows for a header."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that does not hold a complete model in safetensors.

    Raises:
        ValueError: one sentence: what is wrong, and what to do.
    """
    for problem in _problems(folder):
        raise ValueError(problem)


def _problems(folder: Path) -> Iterator[str]:
    yield from _odd_files(folder)
    if (folder / ADAPTER).is_file():
        base = read_object(folder / ADAPTER).get("base_model_name_or_path", "its base")
        yield (
            f"{folder}: expected a model, and it is a PEFT adapter of {base}; merge it (peft's "
            "merge_and_unload(), then save_pretrained) and give the merged folder"
        )
    if not (folder / CONFIG).is_file():
        yield f"{folder}: expected a model folder with a {CONFIG}"
    config = read_object(folder / CONFIG)
    yield from _odd_config(folder, config)
    yield from _odd_weights(folder)


def _odd_files(folder: Path) -> Iterator[str]:
    """Report files to be read that are not regular and readable: reading a pipe never ends."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in READ:
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            yield f"{path}: expected a regular file, and it is a broken link; download it again"
            continue
        if not stat.S_ISREG(mode):
            kind = "folder" if stat.S_ISDIR(mode) else "device or pipe"
            yield f"{path}: expected a regular file, and it is a {kind}; download the model again"
        elif not os.access(path, os.R_OK):
            yield f"{path}: expected a readable file; change its permissions"


def _odd_config(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for name in SIZES:
            value, most = part.get(name, 1), LARGEST.get(name, _LARGEST)
            if value is None:
                continue
            if type(value) is not int or not 1 <= value <= most:
                yield (
                    f"{folder / CONFIG}: {name} {json.dumps(value)[:40]}: expected a whole number "
                    f"from 1 to {most:,}"
                )
    quantised = config.get("quantization_config")
    if isinstance(quantised, dict):
        # as JSON writes it: without control sequences
        method = json.dumps(str(quantised.get("quant_method", "an unnamed method"))[:40])[1:-1]
        yield (
            f"{folder}: expected plain float weights, and these are quantised by {method}; give "
            "the checkpoint that they were made from, or its dequantize() saved by save_pretrained"
        )


def _odd_weights(folder: Path) -> Iterator[str]:
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        weights = read_object(folder / INDEX).get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(v, str) for v in weights.values()):
            yield f"{folder / INDEX}: expected a weight_map of file names; download it again"
            return
        names = sorted(set(weights.values()))
        outside = [n for n in names if Path(n).is_absolute() or ".." in Path(n).parts]
        if outside:
            yield (
                f"{folder / INDEX}: expected files of this folder, and it names {outside[0]}; "
                "download the model again"
            )
            return
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            yield (
                f"{folder}: expected the {len(names)} safetensors files that {INDEX} names, and "
                f"{len(absent)} {'is' if len(absent) == 1 else 'are'} missing "
                f"({', '.join(absent[:3])}{', ...' * (len(absent) > 3)}); download the model again"
            )
            return
        files = [folder / name for name in names]
    else:
        pickled = any(path.suffix in PICKLED for path in folder.iterdir())
        yield f"{folder}: expected safetensors weights" + (
            ", and kn_bench never unpickles; convert it first"
            if pickled
            else f": {WEIGHTS}, or {INDEX} and the files that it names; download the model again"
        )
        return
    for file in files:
        yield from odd_safetensors(file)


def odd_safetensors(path: Path) -> Iterator[str]:
    """Report a file that was cut off or is not in the safetensors format.

    The format begins with the length of a JSON header, which names the end of each tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_HEADER, size - 8):
            yield f"{path}: expected a whole safetensors file, got {size} bytes; download it again"
            return
        try:
            header = json.loads(file.read(length))
            ends = [int(h["data_offsets"][1]) for n, h in header.items() if n != "__metadata__"]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError):
            yield f"{path}: expected a safetensors file with a readable header; download it again"
            return
    if not ends:
        yield f"{path}: expected weights, and the file holds none; download it again"
    elif max(ends) != size - 8 - length:
        yield (
            f"{path}: expected {max(ends):,} bytes of weights by its header, got "
            f"{size - 8 - length:,}: it was cut off; download it again"
        )


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: for any other file.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON ({type(error).__name__}); download it again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object; download it again")
    return content
