"""Copy between host and device: decisions stay on the host, tensors on the device.

Reading a value from a device (``.item()``, a mask's indices) makes the host wait for all queued
work. Loops therefore keep their bookkeeping in numpy, and read from the device by :func:`to_host`
alone.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from kn_bench.model.precision import widened


def to_device(
    values: Shaped[np.ndarray, "*shape"], device: torch.device, dtype: torch.dtype | None = None
) -> Shaped[Tensor, "*shape"]:
    """Return ``values`` on ``device``, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # otherwise the host would wait for the copy
    return tensor.to(device, dtype, non_blocking=True)


def to_host(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Return the tensors' values in at least float32, once the device has caught up."""
    wide = [widened(t) if t.is_floating_point() else t for t in tensors]
    return tuple(np.asarray(tensor.detach().cpu()) for tensor in wide)
