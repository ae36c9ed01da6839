"""Where an edit comes from: recorded with it, and held against the model it is loaded for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from kn_bench import __version__
from kn_bench.cases.case import EditRequest
from kn_bench.model.language_model import LanguageModel

Scalar = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a saved edit comes from.

    Attributes:
        model: the model's name, as the user gave it.
        model_hash: ``LanguageModel.content_hash`` of the model that the edit was made for.
        method: the method's name; ``""`` for an edit made by hand.
        settings: the method's hyperparameters, by name.
        case: id of the request that the edit is for, where it is one; see :meth:`of`.
        kn_bench: version of the package that made it.
        dtype: of the model's weights as it was made, such as ``bfloat16``; ``""`` where unknown.
        request: ``EditRequest.content_hash`` of that request; ``""`` where unknown.
    """

    model: str
    model_hash: str
    method: str = ""
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    case: str = ""
    kn_bench: str = __version__
    dtype: str = ""
    request: str = ""

    def of(self, request: EditRequest) -> Provenance:
        """Return the provenance of the edit that is for ``request``, and for no other.

        Examples:
            >>> import kn_bench as kn
            >>> fact = kn.EditRequest(id="capital", subject="Canada", prompt="The capital of {} is",
            ...                       target_true="Ottawa", target_new="Rome")
            >>> kn.Provenance(model="tiny-gpt2", model_hash="").of(fact).case
            'capital'
        """
        return replace(self, case=request.id, request=request.content_hash)


def settings_of(method: object) -> dict[str, Scalar]:
    """Return the hyperparameters of a method, by name, for its provenance.

    They are the fields of its ``settings``, or its own where it is a dataclass; of nested
    ones ``outer.inner``. What is not a plain value is given by its text.
    """
    holder = getattr(method, "settings", method)
    return dict(_flat("", holder)) if is_dataclass(holder) else {}


def _flat(prefix: str, holder: Any) -> list[tuple[str, Scalar]]:
    settings: list[tuple[str, Scalar]] = []
    for declared in fields(holder):
        value, name = getattr(holder, declared.name), f"{prefix}{declared.name}"
        if isinstance(value, LanguageModel):
            continue
        if is_dataclass(value):
            settings += _flat(f"{name}.", value)
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            settings.append((name, value if plain else str(value)))
    return settings
