"""Convert GGUF files once into a Hugging Face folder in the cache, and load them from there.

    FILE.gguf ── transformers dequantises ── <cache>/models/<name>-<sha256>/
                                             ├── config.json, tokenizer.json, ...
                                             ├── model.safetensors   float32, memory-mapped by all
                                             └── origin.json         what it was made from

Loading a folder of safetensors costs a fraction of dequantising, and processes that map the same
file share its pages. Weights are kept in float32: Q4_1 is not exact in 16 bits.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.output import progress_on_terminals_only
from kn_bench.model.rights import with_usual_rights
from kn_bench.model.written import file_hash

if TYPE_CHECKING:
    from torch import Tensor

ORIGIN = "origin.json"
"""Written last into a converted folder."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a converted model was made from.

    Attributes:
        file: name of the GGUF file.
        sha256: of the file.
        quantisation: type of most of its weights, such as ``Q4_1``.
    """

    file: str
    sha256: str
    quantisation: str

    @property
    def sentence(self) -> str:
        """The origin as a run's header states it."""
        exact = self.quantisation in ("F32", "F16", "BF16")
        how = "of type" if exact else "dequantised from"
        return f"weights {how} {self.quantisation} ({self.file}, SHA-256 {self.sha256[:12]})"


def converted(file: Path, expected_sha256: str = "") -> Path:
    """Return the Hugging Face folder of a GGUF file, converting the file unless one exists.

    Two processes may ask at once: one converts, the other waits. A folder appears whole or not
    at all.

    Args:
        file: the GGUF file.
        expected_sha256: what its SHA-256 must be; "" accepts any file.

    Raises:
        ValueError: one sentence: no ``gguf`` package, another file than expected, or one that
            transformers cannot read.
    """
    if expected_sha256:
        folder = _folder(file, expected_sha256)
        if (folder / ORIGIN).is_file():
            return folder
    sha256 = file_hash(file)
    if expected_sha256 and sha256 != expected_sha256:
        raise ValueError(
            f"{file}: expected the pinned file with SHA-256 {expected_sha256}, got {sha256}; "
            "install its package again"
        )
    folder = _folder(file, sha256)
    if not (folder / ORIGIN).is_file():
        _convert_once(file, sha256, folder)
    return folder


def origin_of(folder: Path) -> Origin | None:
    """Return what a converted folder was made from; None for any other folder."""
    try:
        return Origin(**json.loads((folder / ORIGIN).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _folder(file: Path, sha256: str) -> Path:
    return cache_folder() / "models" / f"{file.stem}-{sha256[:16]}"


def _convert_once(file: Path, sha256: str, folder: Path) -> None:
    from filelock import FileLock

    if find_spec("gguf") is None:
        raise ValueError(f"{file.name}: expected the package gguf; pip install 'kn_bench[gguf]'")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / ORIGIN).is_file():
                _convert(file, sha256, folder)
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: expected room for the weights of {file.name} in float32 ({error}); "
            "set KN_BENCH_CACHE to another folder"
        ) from error


def _convert(file: Path, sha256: str, folder: Path) -> None:
    part = folder.with_suffix(f".{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # of a conversion by an older version
    part.mkdir()
    try:
        _write_model(file, part)
        origin = Origin(file.name, sha256, _quantisation(file))
        (part / ORIGIN).write_text(json.dumps(asdict(origin), indent=2) + "\n", encoding="utf-8")
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_model(file: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        with progress_on_terminals_only():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
            hf = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    except OSError:
        raise
    except Exception as error:  # a file of an unknown architecture or a damaged one: many types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{file.name}: expected a GGUF file that transformers reads ({lines[0]})"
        ) from error
    # the config still calls the weights quantised
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    hf.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    save_file(_untied(hf.state_dict()), weights, metadata={"format": "pt"})
    with_usual_rights(weights)


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the first name of each tensor: safetensors refuses a tensor with two names."""
    kept: dict[int, str] = {}
    for name, tensor in state.items():
        kept.setdefault(tensor.data_ptr(), name)
    return {name: state[name].contiguous() for name in kept.values()}


def _quantisation(file: Path) -> str:
    """Return the type that most of the file's weights have."""
    from gguf import GGUFReader

    weights: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    return weights.most_common(1)[0][0] if weights else "nothing"
