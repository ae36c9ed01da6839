"""Check that what was given as a model is one that is loaded."""

from __future__ import annotations

from kn_bench.model.language_model import LanguageModel


def check_model(model: object) -> None:
    """Check that ``model`` is a loaded model, not its name or a model of transformers.

    Raises:
        TypeError: if it is not, saying how to load one.
    """
    if isinstance(model, LanguageModel):
        return
    if isinstance(model, str):
        raise TypeError(
            f"model {model!r}: expected a loaded model; load it with kn_bench.load_model({model!r})"
        )
    raise TypeError(
        f"model: expected a loaded model, as kn_bench.load_model(NAME) or kn_bench.LanguageModel("
        f"NAME, model, tokenizer) gives it, and got {type(model).__name__}"
    )
