"""Edited models as others read them: a Hugging Face folder, or a PEFT LoRA adapter.

checkpoint    config, tokenizer, safetensors: transformers loads it
adapter       adapter_config.json, adapter_model.safetensors: W' = W + B A, peft loads it
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kn_bench import __version__
from kn_bench.editing.composition import Composition
from kn_bench.editing.edit import DenseEdit, Edit, LowRank, LowRankEdit, describe, norm
from kn_bench.editing.provenance import Provenance
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.output import progress_on_terminals_only
from kn_bench.model.rights import with_usual_rights


def save_checkpoint(lm: LanguageModel, edits: Sequence[Edit], folder: Path) -> None:
    """Write the model with all ``edits`` in its weights; the model itself is left as it was.

    Raises:
        ValueError: for an edit that is not a change of weights.
    """
    _refuse_others(edits, (LowRankEdit, DenseEdit), "a change of weights")
    config = dict(vars(lm.hf.config))
    with Composition(lm) as composition:
        composition.add(edits)
        with progress_on_terminals_only():
            lm.hf.save_pretrained(folder)
    with_usual_rights(*folder.glob("*.safetensors"))
    vars(lm.hf.config).update(config)  # transformers leaves the dtype as a text in it
    lm.tokens.tokenizer.save_pretrained(folder)


def save_adapter(lm: LanguageModel, edits: Sequence[Edit], folder: Path) -> None:
    """Write low-rank ``edits`` as one LoRA adapter.

    W' = W + u v over keys and values is B A with B = v^T, A = u^T, scaled by alpha / r = 1.

    Raises:
        ValueError: for an edit that is not of low rank.
    """
    _refuse_others(edits, (LowRankEdit,), "a low-rank change of down-projections")
    updates = [up for edit in edits if isinstance(edit, LowRankEdit) for up in edit.updates]
    if not updates:
        raise ValueError(f"{lm.name}: expected an update to write, and no edit has any")
    by_name: defaultdict[str, list[LowRank]] = defaultdict(list)
    for update in updates:
        by_name[lm.weight_name(update.layer).removesuffix(".weight")].append(update)
    rank = max(sum(up.u.shape[1] for up in group) for group in by_name.values())
    tensors = {}
    for name, group in by_name.items():
        a, b = _padded(group, rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "adapter_model.safetensors"
    save_file(tensors, weights, {"format": "pt"})
    with_usual_rights(weights)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if lm.is_causal else None,
        "base_model_name_or_path": lm.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not lm.transposed(updates[0].layer),
        "target_modules": sorted(by_name),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _padded(updates: Sequence[LowRank], rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B of one module, with zeros up to the rank that all modules share."""
    u = torch.cat([update.u for update in updates], 1)
    v = torch.cat([update.v for update in updates])
    a, b = u.new_zeros(rank, u.shape[0]), v.new_zeros(v.shape[1], rank)
    a[: u.shape[1]], b[:, : v.shape[0]] = u.T, v.T
    return a.cpu().contiguous(), b.cpu().contiguous()


def _refuse_others(edits: Sequence[Edit], kinds: tuple[type[Edit], ...], expected: str) -> None:
    for edit in edits:
        if not isinstance(edit, kinds):
            raise ValueError(
                f"{type(edit).__name__} ({describe(edit)}): expected {expected}, which is all that "
                "such a folder can hold; save the edits alone by kn_bench.save_edit"
            )


def model_card(
    provenance: Provenance,
    edits: Mapping[str, Edit],
    facts: Mapping[str, str],
    left_out: Mapping[str, str],
    scores: str = "",
) -> str:
    """Return a README: what was changed, by what, and how to measure it.

    Args:
        edits: by name: a case's id, or what they were made for together.
        facts: case id -> what the model was asked to say, as a sentence.
        left_out: case id -> why there is no edit of it.
        scores: a table of what was measured, in Markdown; "" where nothing was.
    """
    settings = [f"- {name}: `{value}`" for name, value in provenance.settings.items()]
    measured_in = f" --dtype {provenance.dtype}" * (provenance.dtype not in ("", "float32"))
    n_facts = "1 fact was" if len(facts) == 1 else f"{len(facts)} facts were"
    lines = [
        "---",
        f"base_model: {provenance.model}",
        "tags: [model-editing, kn_bench]",
        "---",
        "",
        f"# {provenance.model}, edited by {provenance.method}",
        "",
        f"{n_facts} edited by {provenance.method} (kn_bench {__version__}) in {provenance.dtype}, "
        f"in which the base's content hash is `{provenance.model_hash}`. The edits lie in "
        "`edits/`, each with its provenance. Several edits were made on the unedited model and "
        "summed, unless the method makes one edit of all.",
        "",
        "| case | the edited model is to say |",
        "|---|---|",
        *(f"| {case} | {_cell(text)} |" for case, text in facts.items()),
        "",
        "| edit | what it changes | Frobenius norm |",
        "|---|---|---|",
        *(f"| {name} | {_cell(describe(e))} | {norm(e):.4g} |" for name, e in edits.items()),
        "",
        *(["Settings:", "", *settings, ""] if settings else []),
        *(f"Not edited: {case} ({reason})." for case, reason in left_out.items()),
        *(
            ["Measured on these facts, all edits together, by kn_bench:", "", scores, ""]
            if scores
            else ["The scores were not measured when this was written."]
        ),
        f"To measure: `kn-bench evaluate --base {provenance.model} --edited FOLDER --cases FILE"
        f"{measured_in}`.",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
