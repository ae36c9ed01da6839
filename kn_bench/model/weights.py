"""Hash a model's weights, and tell whether they have changed since they were loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Weights:
    """Parameters and buffers of a module, identified by their content.

    Args:
        module: as it was loaded.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._versions = self._count_changes()
        self._loaded: str | None = None
        self._name = ""

    def digest(self) -> str:
        """Return SHA-256 over the names and bytes of every parameter and buffer as they are now."""
        versions = self._count_changes()
        sha = hashlib.sha256()
        for name, tensor in sorted(named_tensors(self._module), key=lambda item: item[0]):
            sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        digest = sha.hexdigest()
        if self._loaded is None and versions == self._versions:
            self._loaded = digest
        self._versions = versions
        self._name = "" if digest == self._loaded else digest
        return digest

    def now(self) -> str:
        """Return ``""`` for the weights as they were loaded, else their digest.

        torch counts changes in place, and bytes are hashed only after one. Whoever undoes an edit
        compares the bytes in any case, so that this costs nothing more.
        """
        if self._count_changes() != self._versions:
            self.digest()
        return self._name

    def _count_changes(self) -> tuple[int, ...]:
        return tuple(parameter._version for parameter in self._module.parameters())


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer with its name; one that is shared comes once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


@torch.no_grad()
def reset(module: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the content, dtype and shape that was loaded."""
    for name, tensor in named_tensors(module):
        if name in loaded:  # a state dict lacks buffers that follow from the config
            like = loaded[name]
            if (tensor.dtype, tensor.shape) != (like.dtype, like.shape):
                tensor.data = torch.empty_like(like, device=tensor.device)
            tensor.copy_(like)
