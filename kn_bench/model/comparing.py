"""Check that a checkpoint is an edited copy of a base: config, tensors, dtypes and tokenizer.

Only configs and headers are read: neither model is loaded. A checkpoint that cannot be compared
weight by weight, or that computes something else with the same weights, is refused in one sentence
before the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kn_bench.model.architecture import architecture_of, language_part
from kn_bench.model.folder import CONFIG, INDEX, WEIGHTS, check_folder, read_object
from kn_bench.model.hub import config_file
from kn_bench.model.loading_tokens import config_from
from kn_bench.model.source import first_line, source_of

WIDTH = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16}
LOADED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""What ``--dtype`` calls the dtypes of safetensors."""
IDLE = (
    *("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"),
    *("inv_freq", "position_ids", "token_type_ids"),
    *("pooler.dense.weight", "pooler.dense.bias"),
    *("seq_relationship.weight", "seq_relationship.bias"),
)
"""Endings of what checkpoints store beside the parameters of a language model: buffers of older
releases, and BERT's heads of other tasks."""
HEAD = ("lm_head.weight", "decoder.weight", "decoder.bias", "vocab_projector.weight")
"""Endings of what a head may share with other parameters, and then need not store."""
TIED = "tie_word_embeddings"
TOKENIZER = "tokenizer.json"
WITHOUT_EFFECT = re.compile(
    r"_name_or_path|architectures|dtype|\w+_version|model_type|problem_type|id2label|label2id"
    r"|return_dict|output_\w+|use_cache|chunk_size_feed_forward|pretraining_tp|sparse_pred\w+"
    r"|(bos|eos|pad|cls|sep)_token_id|\w*(dropout|pdrop)(_prob)?|layerdrop"
    r"|initializer_\w+|init_std|(summary|classifier)_\w+|deterministic_flash_attn"
    r"|n_inner|intermediate_size"
)
"""Fields of a config that leave the logits as they are. The last two may be null for their default,
and the shapes of tensors decide them."""


class Header(NamedTuple):
    """What a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def local_folder(name: str) -> Path:
    """Return the folder of a model's files; a hub's model is taken from its cache.

    Raises:
        ValueError: where there is no such model.
    """
    source, revision = source_of(name)
    if Path(source).is_dir():
        return Path(source)
    return config_file(name, source, revision).parent


def check_edited_copy(base: str, edited: Path, dtype: str = "float32") -> None:
    """Refuse a checkpoint that cannot be compared with its base weight by weight.

    Args:
        base: a model, by any name that it can be loaded by.
        edited: folder of the checkpoint.
        dtype: that both are loaded in. Of a checkpoint in that dtype, rounding the base to it gives
            every weight that was not edited.

    Raises:
        ValueError: one sentence: another architecture, config, tokenizer, shape or dtype, or a
            tensor that one of the two lacks.
    """
    check_folder(edited)
    folder = local_folder(base)
    for problem in _problems(base, folder, edited, dtype):
        raise ValueError(f"{edited}: expected an edited copy of {base}, {problem}")


def config_of(name: str, folder: Path) -> Any:
    """Return the config of the language model in ``folder``, with all defaults filled in.

    Raises:
        ValueError: one sentence, for a config that transformers does not take.
    """
    return language_part(config_from(name, folder, {"trust_remote_code": False}))


def _problems(base: str, folder: Path, edited: Path, dtype: str) -> Iterator[str]:
    mine, theirs = read_object(folder / CONFIG), read_object(edited / CONFIG)
    if mine.get("model_type") != theirs.get("model_type"):
        yield (
            f"and it is a {theirs.get('model_type')} where the base is a {mine.get('model_type')}; "
            "name the base that it was made from"
        )
    before, after = headers(folder), headers(edited)
    config = config_of(base, folder)
    yield from _other_fields(config, config_of(str(edited), edited), after)
    yield from _other_tokenizer(folder, edited)
    for name, old in before.items():
        match = counterpart(name, after)
        if match is None:
            shared = config.tie_word_embeddings and _is_head(name, config)
            if not shared and not name.endswith(IDLE):
                yield f"and it lacks {name}; save the whole model, or give its adapter folder"
            continue
        new = after[match]
        if new.shape != old.shape:
            yield (
                f"and its {match} has shape {new.shape}, in the base {old.shape}; name the base "
                "that it was made from"
            )
        as_loaded = LOADED.get(new.dtype)
        if old.dtype in WIDTH and as_loaded != dtype and not _holds(new.dtype, old.dtype):
            measure = f"measure it with --dtype {as_loaded}, or " if as_loaded else ""
            yield (
                f"and its {match} is {new.dtype}, in the base {old.dtype}: every weight would "
                f"differ by its rounding; {measure}save it as {old.dtype}"
            )
    for name in after:
        if counterpart(name, before) is None and not name.endswith(IDLE):
            if _is_head(name, config):
                continue  # compared with the base's when the weights are read
            yield (
                f"and it holds {name}, which the base has not; name the base that it was made "
                "from, or save it without what is no weight of that base"
            )


def _is_head(name: str, config: Any) -> bool:
    """Tell whether the tensor ``name`` is one that a head may share."""
    head = architecture_of(config).head
    return name.endswith(HEAD) and any(part in head for part in name.split("."))


def _other_fields(mine: Any, theirs: Any, stored: Iterable[str]) -> Iterator[str]:
    """Report fields of the checkpoint's config that change what the model computes."""
    before, after = _plain(mine), _plain(theirs)
    # others are notes of the tools that wrote the file
    for name in sorted(type(mine)().to_dict().keys() & (before.keys() | after.keys())):
        if before.get(name) == after.get(name) or _has_no_effect(name, mine):
            continue
        if name == TIED and before.get(name) and any(_is_head(n, mine) for n in stored):
            continue  # a copy of the embeddings may be stored as a head
        yield (
            f"and its {CONFIG} says {name} {_shown(after.get(name))}, in the base "
            f"{_shown(before.get(name))}; name the base that it was made from"
        )


def _plain(config: Any) -> dict[str, Any]:
    """Return a config's fields as JSON holds them, so that a tuple equals a list."""
    fields: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return fields


def _has_no_effect(name: str, config: Any) -> bool:
    if name == "pad_token_id" and architecture_of(config).counts_from_padding:
        return False
    return WITHOUT_EFFECT.fullmatch(name) is not None


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def _holds(dtype: str, values_of: str) -> bool:
    """Tell whether ``dtype`` can hold every number of the dtype ``values_of``."""
    return dtype == values_of or WIDTH.get(dtype, 0) > WIDTH[values_of]


def counterpart(name: str, others: Iterable[str]) -> str | None:
    """Return what ``others`` call the tensor ``name``, with or without the base model's prefix."""
    known = others if isinstance(others, Mapping | set | frozenset) else set(others)
    shorter = name.partition(".")[2]
    prefixes = dict.fromkeys(other.partition(".")[0] for other in known)
    candidates = (name, shorter, *(f"{prefix}.{name}" for prefix in prefixes))
    return next((candidate for candidate in candidates if candidate in known), None)


def headers(folder: Path) -> dict[str, Header]:
    """Return dtype, shape and file of every tensor of a model's folder.

    Raises:
        ValueError: for a file that cannot be read.
    """
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        weights = read_object(folder / INDEX).get("weight_map", {})
        files = [folder / name for name in sorted(set(weights.values()))]
    return {name: header for file in files for name, header in tensors_of(file).items()}


def tensors_of(file: Path) -> dict[str, Header]:
    """Return dtype and shape of every tensor of a safetensors file.

    Raises:
        ValueError: for a file that cannot be read.
    """
    try:
        with file.open("rb") as opened:
            content = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    except (OSError, ValueError, MemoryError) as error:
        raise ValueError(f"{file}: expected a safetensors file ({first_line(error)})") from None
    return {
        name: Header(about["dtype"], tuple(about["shape"]), file)
        for name, about in content.items()
        if name != "__metadata__"
    }


def _other_tokenizer(folder: Path, edited: Path) -> Iterator[str]:
    """Report a tokenizer of the checkpoint's own that splits texts otherwise than the base's."""
    if not (edited / TOKENIZER).is_file():
        return
    mine, theirs = _splitting(folder), _splitting(edited)
    differing = next((part for part in mine if mine[part] != theirs[part]), None)
    if differing is not None:
        yield (
            f"and its {TOKENIZER} has another {differing}, so that it is another tokenizer; name "
            "the base that it was made from, or remove that file to ask with the base's tokens"
        )


def _splitting(folder: Path) -> dict[str, Any]:
    """Return what decides a text's ids, by its name, as transformers reads it from ``folder``.

    Releases write the same tokenizer in other words, so that files cannot be compared.

    Raises:
        ValueError: for files that are no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
        content = json.loads(loaded.backend_tokenizer.to_str())
    except Exception as error:  # damaged files raise many types
        raise ValueError(
            f"{folder / TOKENIZER}: expected a tokenizer that transformers reads "
            f"({type(error).__name__}: {first_line(error)}); save it again by save_pretrained"
        ) from None
    flags = ("id", "content", "lstrip", "rstrip", "single_word")
    added = content["added_tokens"]
    return {
        "vocabulary": content["model"],
        "set of added tokens": [[token[flag] for flag in flags] for token in added],
        **{part: content[part] for part in ("normalizer", "pre_tokenizer", "post_processor")},
    }
