"""The edits that a model holds, and the model without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor

_ENTERING = Lock()
"""Held while a block is entered, so that two threads cannot both be the first."""


class EditOutlivedError(RuntimeError):
    """An edit was in force for longer than its block, or left something changed."""


class HeldEdits:
    """The edits in force in a model: those of a sequence so far, or those of blocks that are open.

    A copy of the model has the edits that are in its weights, and none of the open blocks.

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
        self._blocks: list[tuple[int, ExitStack]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_blocks": []}

    @contextmanager
    def block(self) -> Iterator[ExitStack]:
        """Keep the model to this thread, and undo what is entered into the block when it is left.

        Raises:
            ValueError: while another thread has a block open.
            EditOutlivedError: when later blocks are still open; they are undone first.
        """
        block, thread = ExitStack(), get_ident()
        with _ENTERING:
            if any(other != thread for other, _ in [*self._blocks]):
                raise ValueError(
                    f"{self._name}: expected one thread to use it at a time, and another one has "
                    "it edited or evaluates it; load a model for each thread"
                )
            self._blocks.append((thread, block))
        with block:
            try:
                yield block
            finally:
                later = self._leave(block)
        if later:
            raise EditOutlivedError(
                f"{self._name}: expected the edits to be taken back from the last to the first, "
                f"and one was taken back before {later} made after it, which are undone as well; "
                "leave the blocks in the opposite order"
            )

    def _leave(self, block: ExitStack) -> int:
        """Undo the blocks that were entered after ``block``, the last first; return how many."""
        place = next((i for i, (_, each) in enumerate(self._blocks) if each is block), None)
        if place is None:  # it was undone with one before it
            return 0
        later = self._blocks[place + 1 :]
        del self._blocks[place:]
        if later:
            with ExitStack() as undoing:
                for _, each in later:
                    undoing.callback(each.close)
        return len(later)

    def clear(self) -> None:
        """Undo what open blocks hold, and forget the edits; the weights are put back by others."""
        for _, block in reversed(self._blocks):
            with suppress(EditOutlivedError):
                block.close()
        self.hash, self._originals, self._elsewhere = "", {}, False

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
