"""Resolve the name of a device."""

from __future__ import annotations

import torch


def devices_named(device: str) -> list[str]:
    """Return all visible GPUs for ``cuda`` and any other device as it is.

    No context is opened on them.

    Raises:
        ValueError: for a device that torch does not know or see, or that holds no numbers (meta).
    """
    try:
        named = torch.device(device)
    except RuntimeError:
        named = torch.device("meta")
    if named.type == "meta":
        raise ValueError(f"--device {device}: expected cpu, cuda, cuda:N or auto")
    if named.type != "cuda":
        return [device]
    count = torch.cuda.device_count()
    if count <= (named.index or 0):
        raise ValueError(
            f"--device {device}: expected one of the {count} GPUs that torch sees; use --device cpu"
        )
    every = range(count) if named.index is None else [named.index]
    return [f"cuda:{number}" for number in every]
