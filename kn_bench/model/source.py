"""Resolve a model's name: a package, a folder, a GGUF file, or the hub.

Torch is imported only when a new GGUF file must be converted. Every session of pytest loads this
module, also for tests of other projects, so whatever reads models is imported when it is needed.
"""

from __future__ import annotations

from pathlib import Path

from kn_bench.model import embedded

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""The dtypes that weights may be loaded as, by torch's names."""


def source_of(name: str) -> tuple[str, str | None]:
    """Return the folder of a local model, or a hub id with the revision it names, if any.

    Args:
        name: an embedded or packaged name, a folder, a GGUF file, ``ID`` or ``ID@REVISION`` (a
            branch, tag or commit).

    Raises:
        ValueError: for a folder that does not exist or holds no model, or a GGUF file or package
            that cannot be used.
    """
    if name in embedded.NAMES:
        return str(embedded.folder(name)), None
    from kn_bench.model import packaged
    from kn_bench.model.folder import check_folder

    if name in packaged.PACKAGED:
        return str(packaged.folder(name)), None
    path = Path(name)
    if is_gguf(path):
        return str(_gguf(path)), None
    if path.is_dir():
        check_folder(path)
        return str(path), None
    id, _, revision = name.partition("@")
    if id in embedded.NAMES:
        raise ValueError(f"{name!r}: expected an embedded model without a revision; write {id}")
    if id.count("/") > 1 or id.startswith((".", "~")):
        raise ValueError(f"{name!r}: expected a model folder, and the path does not exist")
    return id, revision or None


def is_gguf(name: str | Path) -> bool:
    """Tell whether a model is named by its GGUF file."""
    return Path(name).suffix.lower() == ".gguf"


def _gguf(path: Path) -> Path:
    from kn_bench.model import gguf_files

    if not path.is_file():
        raise ValueError(f"{path}: expected a GGUF file, and the path does not exist")
    return gguf_files.converted(path)


def origin(name: str) -> str:
    """Return what a model's weights were made from; "" where its name already says it."""
    from kn_bench.model import gguf_files, packaged

    source = Path(source_of(name)[0])
    made_from = gguf_files.origin_of(source) if source.is_dir() else None
    if made_from is None:
        return ""
    known = packaged.PACKAGED.get(name)
    return f"{known.title}; {made_from.sentence}" if known else made_from.sentence


def not_to_be_had(error: Exception) -> str:
    """Return the rest of a sentence about an unknown model; ``error`` is the hub's."""
    from kn_bench.model import packaged

    reason = first_line(error)
    if "local_files_only" in reason:  # nobody has set it: see kn_bench.model.hub
        reason = "the hub cannot be reached, and its cache has no such model"
    return (
        f"expected an embedded model ({', '.join(embedded.NAMES)}), a packaged one "
        f"({', '.join(packaged.PACKAGED)}), a folder, or a model that the hub or its cache has "
        f"({reason})"
    )


def first_line(error: Exception) -> str:
    """Return the first line of what ``error`` says, or its type where it says nothing.

    A line that ends in a colon comes with the next.
    """
    said = str(error).strip() or type(error).__name__
    first, *rest = [line.strip() for line in said.splitlines()]
    return f"{first} {rest[0]}" if rest and first.endswith(":") else first


def dtype_name(dtype: object) -> str:
    """Return ``float32`` of ``torch.float32``: a dtype as :data:`DTYPES` names it."""
    return str(dtype).removeprefix("torch.")


def on_hub(name: str) -> bool:
    """Tell whether ``name`` is on the hub: not shipped with the package, and no folder."""
    return not Path(source_of(name)[0]).is_dir()
