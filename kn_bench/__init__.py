"""Does an edit change what a language model knows? A pytest benchmark of model editing.

The names in ``__all__`` are the public API; everything else may change without notice. They are
imported when they are first used, so that ``import kn_bench`` itself costs nothing.

    import kn_bench as kn

    model = kn.load_model("tiny-gpt2")
    fact = kn.EditRequest(subject="Canada", prompt="The capital of {} is", target_true="Ottawa",
                          target_new="Rome")
    edit = kn.method("rome", model).edit(fact)
    with kn.edited(model, edit):
        print(model.generate("The capital of Canada is"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kn_bench.api.evaluating import Evaluation, evaluate, load_cases
    from kn_bench.api.localising import locate, trace
    from kn_bench.api.methods import BoundMethod, method, methods
    from kn_bench.cases.case import Case, EditRequest
    from kn_bench.editing.applying import edited
    from kn_bench.editing.edit import (
        DenseEdit,
        Edit,
        LowRank,
        LowRankEdit,
        NeuronEdit,
        NeuronScale,
        NoEdit,
        NotApplicable,
        PromptEdit,
        WrapperEdit,
    )
    from kn_bench.editing.provenance import Provenance
    from kn_bench.editing.registry import edit_method
    from kn_bench.editing.saving import load_edit, save_edit
    from kn_bench.measure.encoding import Unencodable, encode_request
    from kn_bench.model.language_model import LanguageModel
    from kn_bench.model.loading import load_model

__version__ = "0.1.0"
__all__ = [
    "BoundMethod",
    "Case",
    "DenseEdit",
    "Edit",
    "EditRequest",
    "Evaluation",
    "LanguageModel",
    "LowRank",
    "LowRankEdit",
    "NeuronEdit",
    "NeuronScale",
    "NoEdit",
    "NotApplicable",
    "PromptEdit",
    "Provenance",
    "Unencodable",
    "WrapperEdit",
    "edit_method",
    "edited",
    "encode_request",
    "evaluate",
    "load_cases",
    "load_edit",
    "load_model",
    "locate",
    "method",
    "methods",
    "save_edit",
    "trace",
]

_HOMES = {
    "api.evaluating": ("Evaluation", "evaluate", "load_cases"),
    "api.localising": ("locate", "trace"),
    "api.methods": ("BoundMethod", "method", "methods"),
    "cases.case": ("Case", "EditRequest"),
    "editing.applying": ("edited",),
    "editing.edit": (
        "DenseEdit",
        "Edit",
        "LowRank",
        "LowRankEdit",
        "NeuronEdit",
        "NeuronScale",
        "NoEdit",
        "NotApplicable",
        "PromptEdit",
        "WrapperEdit",
    ),
    "editing.registry": ("edit_method",),
    "editing.provenance": ("Provenance",),
    "editing.saving": ("load_edit", "save_edit"),
    "measure.encoding": ("Unencodable", "encode_request"),
    "model.language_model": ("LanguageModel",),
    "model.loading": ("load_model",),
}
"""Module -> the public names that it defines."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"kn_bench.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'kn_bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
