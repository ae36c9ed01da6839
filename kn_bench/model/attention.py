"""Where a layer's attention writes to the residual stream, and hooks there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from kn_bench.model.architecture import submodule
from kn_bench.model.language_model import LanguageModel


def attention_output(lm: LanguageModel, layer: int) -> nn.Module:
    """Return the last matrix of a layer's attention, whose output is added to the stream.

    Raises:
        ValueError: for a family whose row in the table of architectures does not name it.
    """
    row = lm.architecture
    if row.attention_output is None:
        raise ValueError(
            f"architecture row {row.family!r}: expected attention_output to be set; add it to the "
            "row, or trace hidden states and MLPs only"
        )
    return submodule(submodule(lm.layers[layer], row.attention), row.attention_output)


@contextmanager
def attention_hooks(
    lm: LanguageModel, hook: Callable[[int, Tensor], Tensor | None], layers: Iterable[int]
) -> Iterator[None]:
    """Let ``hook(layer, output)`` see attention outputs, and replace them by what it returns."""
    home = lm.device
    with ExitStack() as stack:
        for layer in layers:

            def run(_: nn.Module, __: Any, output: Tensor, layer: int = layer) -> Tensor | None:
                replaced = hook(layer, output.to(home))
                return None if replaced is None else replaced.to(output.device)

            module = attention_output(lm, layer)
            stack.callback(module.register_forward_hook(lm.own_call(layer, run)).remove)
        yield
