"""The residual stream between layers: what arrives at one, and how it moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_bench.model.language_model import LanguageModel


@contextmanager
def arriving(lm: LanguageModel, layer: int) -> Iterator[list[Float[Tensor, "rows T d_model"]]]:
    """Collect the inputs of a layer, as copies, since some models overwrite them."""
    inputs: list[Tensor] = []

    with lm.input_hooks(lambda _, hidden: inputs.append(hidden.clone()), [layer]):
        yield inputs


def adds_to_stream(lm: LanguageModel, ids: Int[Tensor, "1 T"], layer: int) -> bool:
    """Tell whether the next layer's input moves by exactly what is added to the site's values.

    Tested on the model rather than read from a table: it is false for families that normalise the
    MLP's output (Gemma 2, OLMo 2), whose layer is run again. Tested once, since edits do not change
    it.
    """

    def tested() -> bool:
        with lm.unedited():
            return _adds_to_stream(lm, ids, layer)

    return lm.memo.get(("adds to stream", layer), tested, original=True)


@torch.no_grad()
def _adds_to_stream(lm: LanguageModel, ids: Int[Tensor, "1 T"], layer: int) -> bool:
    probe = torch.linspace(-1, 1, lm.d_model, device=lm.device, dtype=lm.dtype)
    with arriving(lm, layer + 1) as seen:
        lm.hidden(ids, torch.ones_like(ids), use_cache=False)
        with lm.site_hooks(lambda _, __, values: values + probe, [layer]):
            lm.hidden(ids, torch.ones_like(ids), use_cache=False)
    before, after = (hidden.double() for hidden in seen)
    tolerance = 8 * torch.finfo(lm.dtype).eps * float(before.abs().max() + 1)
    return bool(((after - before) - probe.double()).abs().max() <= tolerance)
