"""Where a model comes from, by its name: a package, a folder, a GGUF file, or the hub.

Imports no torch, unless a GGUF file is met for the first time and must be converted. Every session
of pytest loads this module, whosever tests it runs: what reads models is imported when asked for.
"""

from __future__ import annotations

from pathlib import Path

from kn_bench.model import embedded

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""What weights may be loaded as, by torch's names."""


def source_of(name: str) -> tuple[str, str | None]:
    """The folder of a local model, or a hub id with the revision it names, if any.

    Args:
        name: an embedded or packaged name, a folder, a GGUF file, ``ID`` or ``ID@REVISION`` (a
            branch, tag or commit).

    Raises:
        ValueError: for a folder that is none, or holds no model, or a GGUF file or package that
            cannot be used.
    """
    if name in embedded.NAMES:
        return str(embedded.folder(name)), None
    from kn_bench.model import packaged
    from kn_bench.model.folder import check_folder

    if name in packaged.PACKAGED:
        return str(packaged.folder(name)), None
    path = Path(name)
    if path.suffix == ".gguf":
        return str(_gguf(path)), None
    if path.is_dir():
        check_folder(path)
        return str(path), None
    id, _, revision = name.partition("@")
    if id in embedded.NAMES:
        raise ValueError(f"{name!r}: the embedded models have no revisions, write {id}")
    if id.count("/") > 1 or id.startswith((".", "~")):
        raise ValueError(f"no model folder at {name!r}")
    return id, revision or None


def _gguf(path: Path) -> Path:
    from kn_bench.model import gguf_files

    if not path.is_file():
        raise ValueError(f"no GGUF file at '{path}'")
    return gguf_files.converted(path)


def origin(name: str) -> str:
    """State what a model's weights were made from, where that is not plain from its name."""
    from kn_bench.model import gguf_files, packaged

    source = Path(source_of(name)[0])
    made_from = gguf_files.origin_of(source) if source.is_dir() else None
    if made_from is None:
        return ""
    known = packaged.PACKAGED.get(name)
    return f"{known.title}; {made_from.sentence}" if known else made_from.sentence


def not_to_be_had(error: Exception) -> str:
    """The rest of a sentence on a name that is no model's: what the hub says is ``error``."""
    from kn_bench.model import packaged

    return (
        f"it is none of the embedded models ({', '.join(embedded.NAMES)}) or packaged ones "
        f"({', '.join(packaged.PACKAGED)}), no folder, and not to be had from the hub or its cache "
        f"({first_line(error)})"
    )


def first_line(error: Exception) -> str:
    """Of what ``error`` says, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def on_hub(name: str) -> bool:
    """Whether ``name`` is a hub's: none of the package's models, and no folder."""
    return not Path(source_of(name)[0]).is_dir()
