"""What is asked of a model: rows that are scored, prompts that are read, under which edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxtyping import Bool, Int
from torch import Tensor


class Row(NamedTuple):
    """One text, where it is read, and which tokens are scored.

    Attributes:
        ids: the text, whole.
        positions: where logits are read, in order: a causal model's are of the next token.
        targets: the tokens that are scored at each of ``positions``, one or more.
        first: position from which a causal model's neurons are scaled; a masked model's are scaled
            only where it is read.
        edit: number of the edit that the row runs under.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    first: int
    edit: int = 0


class Prompt(NamedTuple):
    """A text that is read at one position, under an edit."""

    ids: tuple[int, ...]
    position: int
    edit: int = 0


class Following(NamedTuple):
    """Tokens after a causal model's prompt, and which tokens are scored among them.

    Attributes:
        ids: the tokens that are fed after the prompt.
        reads: where logits are read: 0 at the prompt's answer position, i after ``ids[i - 1]``.
        targets: the token that is scored at each of ``reads``.
    """

    ids: tuple[int, ...]
    reads: tuple[int, ...]
    targets: tuple[int, ...]


class RowContext(Protocol):
    """Edits that act row by row, such as :class:`kn_bench.editing.applying.RowEdits`."""

    def on(
        self, edit_of: Int[Tensor, " rows"], where: Bool[Tensor, "rows T"]
    ) -> AbstractContextManager[None]:
        """Open the edits: row i runs under edit ``edit_of[i]``, its neurons scaled at ``where``."""
        ...


@dataclass(frozen=True)
class Unedited:
    """No edit at all."""

    def on(self, edit_of: Tensor, where: Tensor) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()


UNEDITED = Unedited()

Settled = Callable[[Prompt, Sequence[int]], bool]
"""Whether a prompt's continuation needs no more tokens."""
