"""Whether the hub answers, found out at once: its own client asks six times, for half a minute."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

ENDPOINT = "https://huggingface.co"
PATIENCE = 5.0
"""Seconds for a connection to the hub."""


def is_offline() -> bool:
    """Whether the user has said that the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")


def answers() -> bool:
    """Whether a connection to the hub can be made; taken for granted behind a proxy."""
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
    """Whether a model can be had from the hub's cache only: no folder, and the hub is silent."""
    return not (Path(source).is_dir() or is_offline() or answers())
