"""Where a layer's attention writes to the residual stream, and hooks there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from kn_bench.model.language_model import LanguageModel

ATTENTION_OUTPUTS = (
    "c_proj",
    "o_proj",
    "out_proj",
    "attention.out_proj",
    "output.dense",
    "dense",
    "out_lin",
    "Wo",
)
"""The last matrix of an attention block, by the names that families give it."""


def attention_output(lm: LanguageModel, layer: int) -> nn.Module:
    """The last matrix of a layer's attention: its output is what attention adds to the stream.

    Raises:
        ValueError: where no matrix goes by one of the known names.
    """
    block = lm.layers[layer].get_submodule(lm.architecture.attention)
    for path in ATTENTION_OUTPUTS:
        found: Any = block
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ValueError(
        f"the attention of {lm.architecture.family} models has no output matrix by a known name "
        f"({', '.join(ATTENTION_OUTPUTS)}); trace hidden states and MLPs only, or add its name to "
        "kn_bench.model.attention.ATTENTION_OUTPUTS"
    )


@contextmanager
def attention_hooks(
    lm: LanguageModel, hook: Callable[[int, Tensor], Tensor | None], layers: Iterable[int]
) -> Iterator[None]:
    """Let ``hook(layer, output)`` see attention outputs, and replace them by what it returns."""
    home = lm.device
    with ExitStack() as stack:
        for layer in layers:

            def run(_: nn.Module, __: Any, output: Tensor, layer: int = layer) -> Tensor | None:
                found = hook(layer, output.to(home))
                return None if found is None else found.to(output.device)

            module = attention_output(lm, layer)
            stack.callback(module.register_forward_hook(lm.own_call(layer, run)).remove)
        yield
