"""The edits that a model holds, and the model without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class HeldEdits:
    """The edits in force in a model: those of a sequence so far, or those of blocks that are open.

    Args:
        name: of the model.
        hf: the Hugging Face model.

    Attributes:
        hash: of the edits, in order; "" for the model as it was loaded.
    """

    def __init__(self, name: str, hf: Any) -> None:
        self._name, self._hf = name, hf
        self.hash = ""
        self._originals: Mapping[str, Tensor] = {}
        self._elsewhere = False

    @contextmanager
    def holding(
        self, edits: str, originals: Mapping[str, Tensor], *, elsewhere: bool = False
    ) -> Iterator[None]:
        """Record edits while open, beside those that are held already; see LanguageModel."""
        before = self.hash, self._originals, self._elsewhere
        self.hash += edits
        self._originals = {**originals, **self._originals}
        self._elsewhere = elsewhere or self._elsewhere
        try:
            yield
        finally:
            self.hash, self._originals, self._elsewhere = before

    @contextmanager
    def put_aside(self) -> Iterator[None]:
        """Put the weights back as they were loaded while open.

        Raises:
            ValueError: while an edit is held that is not in the weights.
        """
        if self._elsewhere:
            raise ValueError(
                f"{self._name}: expected the model as it was loaded, and an edit of its "
                "activations or its code is in force; do this outside of that edit"
            )
        parameters = dict(self._hf.named_parameters())
        held, originals = self.hash, self._originals
        now = {name: parameters[name].detach().clone() for name in originals}
        _copy(originals, parameters)
        self.hash, self._originals = "", {}
        try:
            yield
        finally:
            self.hash, self._originals = held, originals
            _copy(now, parameters)


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        into[name].copy_(tensor)
