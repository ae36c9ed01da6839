"""The devices that a name stands for."""

from __future__ import annotations

import torch


def devices_named(device: str) -> list[str]:
    """``cuda`` as all visible GPUs, any other device as it is; no context is opened on them.

    Raises:
        ValueError: for a device that torch does not know, that is not there, or holds no numbers.
    """
    try:
        named = torch.device(device)
    except RuntimeError:
        named = torch.device("meta")
    if named.type == "meta":
        raise ValueError(f"--device {device}: give cpu, cuda, cuda:N or auto")
    if named.type != "cuda":
        return [device]
    count = torch.cuda.device_count()
    if count <= (named.index or 0):
        raise ValueError(f"--device {device}: torch sees {count} GPUs here; use --device cpu")
    every = range(count) if named.index is None else [named.index]
    return [f"cuda:{number}" for number in every]
