"""What a PEFT adapter adds to a base model, as an edit.

An adapter's tensors are compared with those that peft itself would store of it, by name and shape,
on a model without weights: peft passes over what does not fit, and it would be measured as no edit
or as half of one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kn_bench.editing.difference import edit_of
from kn_bench.editing.edit import Edit
from kn_bench.model.architecture import Kind, architecture_of
from kn_bench.model.comparing import config_of, local_folder, tensors_of
from kn_bench.model.folder import ADAPTER, odd_safetensors, read_object
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.source import first_line

ADAPTER_WEIGHTS = "adapter_model.safetensors"
KINDS = ("LORA", "LOHA", "LOKR")
BEYOND_WEIGHTS = (
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
)
"""Settings of an adapter that is more than a sum to the weights of matrices."""
INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base's weights alone; PiSSA's changes them."""


def adapter_edit(lm: LanguageModel, folder: Path) -> Edit:
    """Return what a PEFT adapter adds to the weights of ``lm``; the model is untouched.

    Raises:
        ValueError: one sentence: peft is missing, the adapter is not a change of weights, or it
            does not fit the model.
    """
    check_adapter(folder)
    _check_fit(lm.name, lm.hf.config, lm.architecture.kind, folder)
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    deltas: dict[str, Tensor] = {}
    try:
        with _loading(lm.name, folder):
            wrapped = PeftModel.from_pretrained(lm.hf, str(folder))
        for name, module in wrapped.base_model.model.named_modules():
            if isinstance(module, BaseTunerLayer):
                deltas[f"{name}.weight"] = _merged(module)
    finally:
        _unload(lm.hf)
        lm.hf.requires_grad_(False)
    resolution = torch.finfo(torch.promote_types(lm.dtype, torch.float32)).eps
    edit = edit_of(lm, {n: d for n, d in deltas.items() if bool(d.any())}, resolution)
    return replace(edit, notes={**edit.notes, "stated_base": stated_base(folder)})


def _unload(hf: torch.nn.Module) -> None:
    """Put the base's own modules back, also where peft stopped halfway."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in list(hf.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(module, name, child.get_base_layer())


@torch.no_grad()
def _merged(module: Any) -> Tensor:
    """Return what one adapted module adds to its weight; the weight's own bytes are put back."""
    weight = module.get_base_layer().weight
    before = weight.detach().clone()
    exact = torch.promote_types(weight.dtype, torch.float32)
    try:
        module.merge()
        delta: Tensor = weight.detach().to(exact) - before.to(exact)
        return delta
    finally:
        module.merged_adapters.clear()
        module.get_base_layer().weight.data = before


def check_adapter(folder: Path, installed: Callable[[str], object] = find_spec) -> None:
    """Refuse an adapter that is not whole, or not a change of weights.

    Raises:
        ValueError: one sentence.
    """
    if not installed("peft"):
        raise ValueError(f"{folder}: a PEFT adapter needs peft: pip install 'kn_bench[peft]'")
    config = read_object(folder / ADAPTER)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(
            f"{folder}: expected {ADAPTER_WEIGHTS}, and there is none; save the adapter again by "
            "save_pretrained"
        )
    for problem in odd_safetensors(folder / ADAPTER_WEIGHTS):
        raise ValueError(problem)
    if config.get("peft_type") not in KINDS:
        raise ValueError(
            f"{folder}: expected a LoRA adapter ({', '.join(KINDS)}), and this is "
            f"{config.get('peft_type')}; merge it and give the merged folder"
        )
    for name in _beyond_weights(config):
        raise ValueError(
            f"{folder}: expected an adapter that adds to weights alone, and its {ADAPTER} says "
            f"{name} {config[name]!r}; merge it and give the merged folder"
        )


def _beyond_weights(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (name for name in BEYOND_WEIGHTS if config.get(name))
    if config.get("bias", "none") != "none":
        yield "bias"
    if config.get("init_lora_weights") not in INITS:
        yield "init_lora_weights"


def check_adapter_of(base: str, folder: Path) -> None:
    """Refuse an adapter that does not fit ``base``, a model by any name; no weights are loaded.

    Raises:
        ValueError: one sentence.
    """
    config = config_of(base, local_folder(base))
    _check_fit(base, config, architecture_of(config).kind, folder)


def _check_fit(base: str, config: Any, kind: Kind, folder: Path) -> None:
    empty = _empty(base, config, kind, folder)
    for name in _shared(empty):
        raise ValueError(
            f"{folder}: expected an adapter of matrices with one use, and {base} shares "
            f"{name}.weight between its embeddings and its head; merge it into a model that keeps "
            "them apart"
        )
    wanted = _expected(empty)
    stored = {name: h.shape for name, h in tensors_of(folder / ADAPTER_WEIGHTS).items()}
    for problem in _misfits(base, wanted, stored):
        stated = stated_base(folder)
        origin = f" (its base is {stated!r} by its {ADAPTER})" if stated not in ("", base) else ""
        raise ValueError(
            f"{folder}: expected an adapter of {base}, and {problem}{origin}; name the base that "
            "it was made from, or save it again"
        )


def _misfits(
    base: str, wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    unknown, missing = sorted(stored.keys() - wanted.keys()), sorted(wanted.keys() - stored.keys())
    if unknown:
        yield f"{len(unknown)} of its {len(stored)} tensors have no place there ({unknown[0]})"
    for name in sorted(wanted.keys() & stored.keys()):
        if wanted[name] != stored[name]:
            yield f"its {name} has shape {stored[name]}, expected {wanted[name]} by its {ADAPTER}"
    if missing:
        yield f"it lacks {len(missing)} tensors that its {ADAPTER} asks for ({missing[0]})"


def _empty(base: str, config: Any, kind: Kind, folder: Path) -> Any:
    """Return the base with the adapter's modules, as peft makes them, without any weights."""
    from peft import PeftConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForMaskedLM
    with _loading(base, folder), torch.device("meta"):
        return get_peft_model(auto.from_config(config), PeftConfig.from_pretrained(str(folder)))


def _expected(empty: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that peft would store of the adapter."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(empty, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _shared(empty: Any) -> list[str]:
    """Return the adapted modules whose weight another module uses too, and without the sum."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = empty.base_model.model
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and uses[id(module.get_base_layer().weight)] > 1
    ]


@contextmanager
def _loading(base: str, folder: Path) -> Iterator[None]:
    """Turn any error of peft into one sentence, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # files of any version of peft, made for any model
        reason = first_line(error).rstrip(".")
        raise ValueError(
            f"{folder}: expected a PEFT adapter of {base}, and peft cannot load it ({reason}); "
            "name the base that it was made from, or save it again"
        ) from None


def stated_base(folder: Path) -> str:
    """Return the base that an adapter's config names; "" where it names none."""
    return str(read_object(folder / ADAPTER).get("base_model_name_or_path") or "")
