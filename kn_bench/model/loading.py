"""Load a LanguageModel by name: an embedded model, a local folder, or a hub id.

Never remote code, never pickle: weights come from safetensors alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kn_bench.model.architecture import Architecture, architecture_of, language_part, registered
from kn_bench.model.chat_template import begin_with_template
from kn_bench.model.devices import devices_named
from kn_bench.model.given import PATH, check_type
from kn_bench.model.hub import from_pretrained_options
from kn_bench.model.integrity import check_tokenizer, refuse_incomplete, refuse_not_finite
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loading_tokens import config_from, in_one_sentence, tokenizer_from
from kn_bench.model.output import progress_on_terminals_only
from kn_bench.model.source import DTYPES, first_line, source_of
from kn_bench.model.weights import named_tensors

ROUNDING = 0.05
"""How far the logits by a row may be from the model's, of the largest: bfloat16 rounds by 1 %."""
WEIGHTS = (
    "a model that can be loaded",
    "correct its config.json or --attention, or download it again",
)
"""What is expected of weights with their config, and what to do otherwise."""


def load_model(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str | None = None,
    commit: str | None = None,
    chat_template: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        name: an embedded name (``tiny-gpt2``), a packaged one (``smollm2-135m``), a local folder, a
            GGUF file, a hub id, or ``ID@REVISION``: a branch, tag or commit of the hub.
        device: torch device, or ``auto``: spread over all GPUs (needs accelerate).
        dtype: of the weights, whatever the checkpoint's.
        attention: attention implementation (``sdpa``, ``eager``, ...); transformers' choice if
            None.
        commit: of the hub, where the name alone might come to mean another.
        chat_template: begin every text with the tokenizer's chat template, see
            :mod:`kn_bench.model.chat_template`.

    Raises:
        TypeError: for a name, device or other option that is not a text.
        ValueError: one sentence: an unknown name, dtype, device, attention or family; missing
            safetensors or weights; a missing or foreign tokenizer; no accelerate; no room on the
            device; weights that are not finite.

    Examples:
        >>> import kn_bench as kn
        >>> model = kn.load_model("tiny-bert")
        >>> model.is_causal, model.n_layers
        (False, 3)
    """
    check_type("name", name, PATH, "a model's name, a folder or a hub id")
    name = os.fspath(name)
    texts = {"device": device, "dtype": dtype, "attention": attention or "", "commit": commit or ""}
    for option, text in texts.items():
        check_type(option, text, str, "a text")
    check_type("chat_template", chat_template, bool, "True or False")
    _check_place(device, dtype)
    # otherwise transformers asks a service of the hub to convert pickled weights
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    source, revision = source_of(name)
    options = from_pretrained_options(source, commit or revision)
    kept: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    if attention:
        kept["attn_implementation"] = attention
    whole = config_from(name, source, options)
    config = language_part(whole)
    architecture = architecture_of(config)
    auto = _class_for(architecture)
    if config is not whole:
        kept |= {"config": config, "key_mapping": _INNER}

    def load(**where: Any) -> Any:
        with in_one_sentence(name, source, WEIGHTS):
            hf, info = _with_info(auto, source, **kept, **where, **options)
        refuse_incomplete(name, info, architecture, config)
        return hf

    hf = load(device_map="auto") if device == "auto" else _moved(name, load(), device)
    tokenizer = tokenizer_from(name, source, options)
    _check_placed(name, hf)
    refuse_not_finite(name, hf)
    check_tokenizer(name, tokenizer, hf.get_input_embeddings().weight.shape[0], Path(source))
    if chat_template:
        begin_with_template(name, tokenizer)
    model = LanguageModel(
        name, hf, tokenizer, architecture=architecture, weights=lambda: dict(named_tensors(load()))
    )
    if architecture in registered():
        _refuse_other_logits(model)
    return model


def load_outline(name: str) -> LanguageModel:
    """Load a model without its weights, to ask what it consists of: its modules and its tokenizer.

    Its parameters have shapes and no values (torch's meta device), so that a model of any size
    takes a second and next to no memory.

    Raises:
        ValueError: one sentence: an unknown name or family, a config or tokenizer that cannot be
            read.
    """
    source, revision = source_of(name)
    options = from_pretrained_options(source, revision)
    config = language_part(config_from(name, source, options))
    architecture = architecture_of(config)
    with in_one_sentence(name, source, WEIGHTS), _quietly(), torch.device("meta"):
        hf = _class_for(architecture).from_config(config)
    tokenizer = tokenizer_from(name, source, options)
    return LanguageModel(name, hf, tokenizer, architecture=architecture)


def _class_for(architecture: Architecture) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return AutoModelForCausalLM if architecture.kind == "causal" else AutoModelForMaskedLM


def _refuse_other_logits(model: LanguageModel) -> None:
    """Refuse a registered row by which the logits of a sentence are not those of the model."""
    ids = model.tokens.encode("The capital of France is Paris.").ids
    row = model.tensor([ids])
    with torch.no_grad():
        ours = model.forward(row, model.tensor([range(len(ids))])).float()
        theirs = model.hf(input_ids=row).logits.float()
    off = float((ours - theirs.to(ours.device)).abs().max() / theirs.abs().max())
    if not off < ROUNDING:
        raise ValueError(
            f"{model.name}: expected a row for {model.architecture.family} that gives the model's "
            f"logits, and those of a sentence are off by {off:.0%} of the largest; name every "
            "module of the head, and the config's scale, divisor or softcap"
        )


def _with_info(auto: Any, source: str, **options: Any) -> tuple[Any, Any]:
    """Return the model, and transformers' account of missing, unexpected and mismatched weights."""
    with progress_on_terminals_only(), _quietly():
        hf, info = auto.from_pretrained(
            source,
            **options,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused by refuse_incomplete, by name
        )
    return hf, info


_INNER = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""Where multimodal checkpoints keep their text model, and where the text model alone has it."""


def _check_place(device: str, dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if device != "auto":
        devices_named(device)
    elif not find_spec("accelerate"):
        raise ValueError(
            "device auto: expected accelerate to be installed; pip install 'kn_bench[multi-gpu]'"
        )


def _moved(name: str, hf: Any, device: str) -> Any:
    try:
        return hf.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:  # no room, or not in this torch
        raise ValueError(
            f"--device {device}: expected a device that can hold {name!r} ({first_line(error)}); "
            "use --device cpu"
        ) from error


def _check_placed(name: str, hf: Any) -> None:
    if any(parameter.is_meta for parameter in hf.parameters()):
        # accelerate would fetch these for each pass, so that they could be neither read nor edited
        raise ValueError(
            f"{name!r}: expected GPUs with room for the whole model; use more of them, a smaller "
            "--dtype, or --device cpu"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence transformers' warnings while open: what they say is refused here, by name."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(level)
