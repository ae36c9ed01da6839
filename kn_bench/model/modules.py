"""List the layers of a Hugging Face model in order, and fuse its GELUs."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.activations import NewGELUActivation

from kn_bench.model.architecture import Architecture, submodule


def layers_of(hf: Any, architecture: Architecture) -> list[nn.Module]:
    """Return the layers of a Hugging Face model, each as often as it is run.

    Raises:
        ValueError: where the row's path does not lead to a list of layers.
    """
    listed = submodule(hf, architecture.layers)
    if not isinstance(listed, nn.ModuleList):
        raise ValueError(
            f"{architecture.family}: expected the list of layers at {architecture.layers!r}, got a "
            f"{type(listed).__name__}; correct the architecture row"
        )
    layers = list(listed)
    if architecture.unrolled:
        n = hf.config.num_hidden_layers
        return [layers[i * len(layers) // n] for i in range(n)]
    return layers


def fused(hf: Any) -> Any:
    """Return ``hf`` with GPT-2's GELU as one operator instead of transformers' eight.

    The same function to rounding; the eight operators took a quarter of the time of a pass.
    """
    for module in list(hf.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                # a new module begins in training mode
                gelu = nn.GELU(approximate="tanh").train(child.training)
                setattr(module, name, gelu)
    return hf
