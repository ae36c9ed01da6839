"""Find out quickly whether the hub can be reached: its client retries for half a minute."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from kn_bench.model.folder import CONFIG
from kn_bench.model.source import not_to_be_had

ENDPOINT = "https://huggingface.co"
PATIENCE = 5.0
"""Seconds for a connection to the hub."""


def is_offline() -> bool:
    """Return whether the user has set ``HF_HUB_OFFLINE``."""
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")


def is_reachable() -> bool:
    """Return whether the hub accepts a connection; behind a proxy this is assumed."""
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or ENDPOINT)
    if getproxies().get(endpoint.scheme):
        return True
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), PATIENCE).close()
    except (OSError, UnicodeError):
        return False
    return True


def cached_only(source: str) -> bool:
    """Return whether only the hub's cache can provide a model: no folder, and no connection."""
    return not (Path(source).is_dir() or is_offline() or is_reachable())


def from_pretrained_options(source: str, revision: str | None) -> dict[str, Any]:
    """Return transformers' options for what is loaded from a folder or the hub."""
    return {
        "revision": revision,
        "trust_remote_code": False,
        "local_files_only": cached_only(source),
    }


def config_file(name: str, id: str, revision: str | None) -> Path:
    """Return a hub model's ``config.json`` in the cache, ``.../snapshots/<commit>/config.json``.

    Args:
        name: the model's name as the user gave it.
        id, revision: of the hub.

    Raises:
        ValueError: for a model that neither the hub nor its cache has.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        only = cached_only(id)
        return Path(hf_hub_download(id, CONFIG, revision=revision, local_files_only=only))
    except (OSError, HFValidationError, ValueError) as error:
        raise ValueError(f"unknown model {name!r}: {not_to_be_had(error)}") from error
