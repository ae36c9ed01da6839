"""Files of numbers that published implementations computed, found by their manifests.

Nothing here names an experiment's cases or a model: whatever stands in the folder is tested.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from kn_bench.model.architecture import architecture_of
from kn_bench.model.language_model import LanguageModel


@dataclass(frozen=True)
class GoldenCase:
    """One case of an experiment: ``manifest.json`` and ``arrays.npz`` in a folder."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        return content

    def array(self, name: str) -> torch.Tensor:
        with np.load(self.folder / "arrays.npz", allow_pickle=False) as arrays:
            return torch.from_numpy(arrays[name])

    @property
    def arrays(self) -> set[str]:
        return set(self.manifest["arrays"])

    @property
    def outputs(self) -> dict[str, Any]:
        outputs: dict[str, Any] = self.manifest["outputs"]
        return outputs

    def model(self, dtype: torch.dtype) -> LanguageModel:
        return golden_model(self.folder.parents[1] / self.manifest["model"], dtype)


def golden_root() -> Path | None:
    shared = os.environ.get("KN_BENCH_SHARED")
    folder = Path(shared, "golden") if shared else None
    return folder if folder and folder.is_dir() else None


def cases(experiment: str, *needed: str, without: tuple[str, ...] = ()) -> list[Any]:
    """Parameters: every case of an experiment whose manifest has the arrays ``needed``."""
    root = golden_root()
    if root is None:
        reason = "KN_BENCH_SHARED names no folder with golden files"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    listed = []
    for path in sorted(root.glob("*/*/manifest.json")):
        case = GoldenCase(path.parent)
        if case.manifest.get("experiment") != experiment:
            continue
        if set(needed) <= case.arrays and not set(without) & case.arrays:
            listed.append(pytest.param(case, id=path.parent.name))
    return listed


@cache
def golden_model(folder: Path, dtype: torch.dtype) -> LanguageModel:
    config = AutoConfig.from_pretrained(folder)
    causal = architecture_of(config).kind == "causal"
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    hf = auto.from_pretrained(folder, dtype=dtype)
    return LanguageModel(folder.name, hf, AutoTokenizer.from_pretrained(folder))


def deviation(ours: torch.Tensor, theirs: torch.Tensor, *, absolute: bool = False) -> float:
    """Largest difference, over the largest golden value unless ``absolute``."""
    ours, theirs = ours.double(), theirs.double()
    worst = (ours - theirs).abs().max()
    return float(worst if absolute else worst / theirs.abs().max().clamp_min(1e-12))


@dataclass(frozen=True)
class HookPoint:
    """What a reference calls a neuron: a module's output, or with ``.pre`` its input."""

    path: str
    is_output: bool

    def module(self, lm: LanguageModel, layer: int) -> torch.nn.Module:
        path = self.path.replace("<layer>", str(layer))
        submodule: torch.nn.Module = lm.hf.get_submodule(path)
        return submodule


def hook_point(text: str) -> HookPoint | None:
    """``a.<layer>.b (output)`` as a hook point; None where the manifest only describes it."""
    match = re.fullmatch(r"([\w.<>]+?)(\.pre)? \(output\)", text)
    return HookPoint(match[1], not match[2]) if match and "<layer>" in match[1] else None


def is_our_neuron(lm: LanguageModel, hook: HookPoint | None, ids: list[int], position: int) -> bool:
    """Whether scaling what the reference hooks scales our neurons, the site's input, alike.

    Then integrated gradients are the same. A description without a module counts as ours.
    """
    if hook is None:
        return True
    layer = 0
    row = torch.tensor([ids])
    seen: list[torch.Tensor] = []

    def halve(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output / 2

    def halve_input(_: Any, inputs: Any) -> Any:
        return (inputs[0] / 2,)

    def keep(_: Any, inputs: Any, output: torch.Tensor) -> None:
        seen.append(inputs[0].reshape(len(ids), -1)[position])

    module = hook.module(lm, layer)
    handles = [lm.site(layer).register_forward_hook(keep)]
    with torch.no_grad():
        lm.hf(input_ids=row)
        if hook.is_output:
            handles.append(module.register_forward_hook(halve))
        else:
            handles.append(module.register_forward_pre_hook(halve_input))
        lm.hf(input_ids=row)
    for handle in handles:
        handle.remove()
    clean, halved = seen[0], seen[-1]
    return clean.shape == halved.shape and torch.allclose(2 * halved, clean, rtol=1e-4, atol=1e-7)
