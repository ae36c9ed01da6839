"""Files fetched once, checked against the SHA-256 they were pinned with, and kept."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from urllib.parse import urlparse

from kn_bench.model.cache_folder import cache_folder


def fetch(source: str, name: str, url: str) -> Path:
    """Return the file ``name`` of ``source``, from the cache or from ``url``.

    Raises:
        ValueError: one sentence, when it cannot be had or is not what was pinned.
    """
    import pooch  # slow to import, and needed only where something is to be fetched

    target = kept(source, name)
    known_hash = checksums(source)[name]
    pooch.get_logger().setLevel("ERROR")
    try:
        return Path(pooch.retrieve(url, known_hash, fname=target.name, path=target.parent))
    except OSError as error:
        raise ValueError(
            f"{source}'s {name} is not in the cache and could not be fetched from "
            f"{urlparse(url).netloc} ({type(error).__name__}): connect once, or give a folder of "
            f"its files with --cases {source}=FOLDER"
        ) from None
    except ValueError:
        raise ValueError(
            f"{source}'s {name} from {urlparse(url).netloc} is not the file that was pinned: its "
            f"SHA-256 is not {known_hash}; fetch it again, or give a folder of its files with "
            f"--cases {source}=FOLDER"
        ) from None


def kept(source: str, name: str) -> Path:
    """Return where the cache has, or would have, the file ``name`` of ``source``."""
    return cache_folder() / source / name


@lru_cache(maxsize=64)
def checksums(source: str) -> dict[str, str]:
    """Return name -> SHA-256 of each pinned file, from ``<source>.sha256``."""
    text = resources.files("kn_bench.cases").joinpath(f"{source}.sha256").read_text("ascii")
    return {name: digest for digest, name in (line.split() for line in text.splitlines() if line)}
