"""Between host and device: what a loop decides by stays on the host, what it computes stays away.

A question that the host puts to a device (``.item()``, a mask's indices) makes it wait for all work
that was queued. Loops therefore do their bookkeeping in numpy, and ask the device by
:func:`to_host` alone.
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
    """``values`` on ``device``, which is not waited for."""
    found = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        found = found.pin_memory()  # else the copy would be waited for
    return found.to(device, dtype, non_blocking=True)


def to_host(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The tensors' values in at least float32, once the device has done all that was queued."""
    wide = [widened(t) if t.is_floating_point() else t for t in tensors]
    return tuple(np.asarray(tensor.detach().cpu()) for tensor in wide)
