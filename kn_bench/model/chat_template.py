"""A chat model asked as it is used: every text is the assistant's answer to one request.

    <|im_start|>user                         from the tokenizer's own chat template,
    Complete the sentence.<|im_end|>         in front of every text, like a BOS
    <|im_start|>assistant
    The capital of Canada is -> Ottawa       what is encoded: prompts, contexts, documents for C

Without ``--chat-template`` a chat model is measured as a base model: it goes on with the bare text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_bench.model.source import on_hub, source_of

if TYPE_CHECKING:
    from kn_bench.model.tokens import Tokens

REQUEST = "Complete the sentence."
"""What the user says."""


def begin_with_template(name: str, tokenizer: Any) -> None:
    """Let every text that ``tokenizer`` encodes begin with its chat template.

    The template's tokens count as special ones: they lie outside of the text.

    Args:
        name: of the model.
        tokenizer: a fast one; its post-processor is replaced.

    Raises:
        ValueError: one sentence, for a tokenizer without a template, or one that fails.
    """
    if not tokenizer.chat_template:
        raise ValueError(_without(name))
    try:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": REQUEST}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    except Exception as error:  # a template is a program of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--chat-template: the template of {name} fails ({reason})") from error
    from tokenizers.processors import TemplateProcessing

    start = {"id": "<chat>", "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<chat> $A", special_tokens=[start]
    )


def digest(tokens: Tokens) -> str:
    """Return SHA-256 of the template's tokens, those of a text without any of its own.

    A template is a program: it may state the date, and then renders otherwise tomorrow.
    """
    return hashlib.sha256(repr(tokens.encode("").ids).encode()).hexdigest()


def refuse_without(name: str) -> None:
    """Refuse a model on disk that has no chat template; one on the hub is refused when loaded.

    Raises:
        ValueError: one sentence.
    """
    if not on_hub(name) and not has_template(name):
        raise ValueError(_without(name))


def _without(name: str) -> str:
    return f"--chat-template: the tokenizer of {name} has no chat template; leave the option out"


def has_template(name: str) -> bool:
    """Tell whether the model in a folder has a chat template; False where that is not on disk."""
    folder = Path(source_of(name)[0])
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        return bool(config.get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def sentence(name: str, chosen: bool) -> str:
    """State how a model with a chat template is measured; "" for one without."""
    if chosen:
        return f"asked by its chat template: user '{REQUEST}', then the prompt as its own words"
    if has_template(name):
        return "has a chat template and is measured as a base model (else: --chat-template)"
    return ""
