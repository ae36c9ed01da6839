"""Widen half precision to float32 where results are read; models compute in their own dtype."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for bfloat16 and float16, and wider types unchanged."""
    return torch.promote_types(dtype, torch.float32)


def widened(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return ``tensor`` in at least float32; a tensor that is as wide already is not copied."""
    return tensor.to(wide_dtype(tensor.dtype))
