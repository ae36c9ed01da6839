"""Try once, in a separate process before a run begins, whether a model can be loaded.

The controller of a run does not import torch, and each of its workers would fail in every test. A
model that could be loaded is remembered by its content, so that the next run does not try again.

    python -m kn_bench.model.trial < request
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from importlib import metadata
from typing import Any

from kn_bench.model import embedded, packaged
from kn_bench.model.architecture import Architecture, register, registered
from kn_bench.model.cache_folder import cache_folder

REMEMBERED = "loadable"
"""Folder of the cache with an empty file for each model that could be loaded."""


def refuse_unloadable(
    name: str,
    fingerprint: str,
    *,
    dtype: str,
    attention: str,
    commit: str | None,
    chat_template: bool = False,
) -> None:
    """Refuse a model that the workers could not load.

    Args:
        name: of the model; embedded and packaged ones are not tried.
        fingerprint: SHA-256 of its files, or its commit on the hub.
        dtype, attention, commit, chat_template: as for :func:`kn_bench.model.loading.load_model`.

    Raises:
        ValueError: the sentence of the process that tried.
    """
    if name in embedded.NAMES or name in packaged.PACKAGED:
        return
    request: dict[str, Any] = {
        "name": name,
        "dtype": dtype,
        "attention": attention or None,
        "commit": commit,
        "chat_template": chat_template,
        "rows": [dataclasses.asdict(row) for row in registered()],
    }
    versions = [metadata.version(package) for package in ("kn_bench", "transformers", "torch")]
    content = json.dumps([request, fingerprint, versions])
    known = cache_folder() / REMEMBERED / hashlib.sha256(content.encode()).hexdigest()
    if known.exists():
        return
    problem = _tried(request)
    if problem:
        raise ValueError(problem)
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
    except OSError:
        return  # it will be tried again


def _tried(request: dict[str, Any]) -> str:
    """Return what another process says of the model; "" when it could load it."""
    process = subprocess.run(
        [sys.executable, "-m", "kn_bench.model.trial"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = process.stdout.strip().splitlines()
    if process.returncode == 0 and lines:
        return str(json.loads(lines[-1]))
    reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
    return (
        f"{request['name']!r}: expected a model that can be loaded, and the process that tried "
        f"ended with status {process.returncode} ({reason})"
    )


def main() -> None:
    """Load the model that standard input names, and write the sentence that refuses it, or ""."""
    from kn_bench.model.loading import load_model

    request = json.load(sys.stdin)
    for row in request.pop("rows"):
        register(Architecture(**{**row, "head": tuple(row["head"])}))
    try:
        load_model(request.pop("name"), **request)
        problem = ""
    except ValueError as error:
        problem = str(error)
    sys.stdout.write(json.dumps(problem) + "\n")


if __name__ == "__main__":
    main()
