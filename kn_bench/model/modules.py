"""List the layers and the linear modules of a Hugging Face model, and fuse its GELUs."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

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


def linear_modules(hf: Any) -> dict[str, nn.Module]:
    """Return name -> module of what maps vectors linearly at every position: not the output layer.

    The vocabulary is projected only where it is read.
    """
    head = hf.get_output_embeddings()
    return {
        name: module
        for name, module in hf.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


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
