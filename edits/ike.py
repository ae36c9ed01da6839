"""IKE: the new fact in the prompt, after demonstrations of what an edit does and does not change.

Zheng et al., "Can We Edit Factual Knowledge by In-Context Learning?", EMNLP 2023.

    copy     another fact changed, and asked in the same words: the new answer
    update   another fact changed, and asked in other words: the new answer
    retain   another fact changed, and something else asked: the old answer

The other facts are those that come with the request, its relation's; the most similar texts stand
last, by tf-idf of character n-grams (scikit-learn, the extra ``ike``). ICE, without demonstrations,
is ``in-context``.

A minimal pair is edited like a fact: its other facts are the other pairs of its paradigm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kn_bench.cases.case import EditRequest, Query
from kn_bench.editing.bounds import Share, Whole
from kn_bench.editing.edit import NotApplicable, PromptEdit
from kn_bench.editing.registry import edit_method
from kn_bench.editing.settings import Settings, recorded
from kn_bench.model.language_model import LanguageModel

RATIO = ("copy", "update", "update", "update", "retain", "retain", "retain", "retain")
"""1 : 3 : 4, as published."""


@dataclass(frozen=True, kw_only=True)
class IkeSettings(Settings):
    """IKE's parameters.

    Attributes:
        demonstrations: how many at most; the published code has 32.
        context_share: the prefix takes at most this share of the model's positions.
    """

    demonstrations: Whole = 8
    context_share: Share = 0.5


class Ike:
    """IKE on one model."""

    def __init__(self, lm: LanguageModel, settings: IkeSettings) -> None:
        self.lm = lm
        self.settings = settings

    def edit(self, requests: Sequence[EditRequest]) -> list[PromptEdit | NotApplicable]:
        """Return a prefix a request, or why there is none.

        Raises:
            NotApplicable: where scikit-learn is missing.
        """
        return [self._edit(request) for request in requests]

    def _edit(self, request: EditRequest) -> PromptEdit | NotApplicable:
        facts = [bag for bag in request.background if bag]
        if len(facts) < 2:
            return NotApplicable("the request comes with no other facts to demonstrate with")
        fact = request.cloze.fill(request.target_new)
        texts = [bag[0].cloze.fill(bag[0].answer) for bag in facts]
        order = most_similar(fact, texts)[: self.settings.demonstrations]
        shown = [
            _demonstration(facts, index, RATIO[place % len(RATIO)])
            for place, index in enumerate(order)
        ]
        last = f"New Fact: {_closed(fact)}\nPrompt:"
        room = int(self.lm.tokens.max_length * self.settings.context_share)
        while shown and self._length([*shown[::-1], last]) > room:
            shown.pop()  # the least similar first
        notes = {"demonstrations": len(shown), **recorded(self.settings)}
        return PromptEdit("\n\n".join([*shown[::-1], last]), notes=notes)

    def _length(self, parts: Sequence[str]) -> int:
        return len(self.lm.tokens.encode("\n\n".join(parts)).ids)


def most_similar(text: str, others: Sequence[str]) -> list[int]:
    """Return the indices of ``others``, the most similar first.

    Raises:
        NotApplicable: where scikit-learn is missing, naming the extra.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise NotApplicable("ike needs scikit-learn: pip install 'kn_bench[ike]'") from None
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform([text, *others])
    likeness = (vectors[1:] @ vectors[0].T).toarray()[:, 0]
    return [int(i) for i in (-likeness).argsort(kind="stable")]


def _demonstration(facts: Sequence[tuple[Query, ...]], index: int, kind: str) -> str:
    """Return a fact of the relation, changed to another's answer, and what is asked of it."""
    fact, other = facts[index], facts[(index + 1) % len(facts)]
    answer = next((bag[0].answer for bag in (*facts[index:], *facts)
                   if bag[0].answer != fact[0].answer), fact[0].answer)  # fmt: skip
    asked = {
        "copy": fact[0].cloze.fill(answer),
        "update": fact[-1].cloze.fill(answer),
        "retain": other[0].cloze.fill(other[0].answer),
    }[kind]
    return f"New Fact: {_closed(fact[0].cloze.fill(answer))}\nPrompt: {_closed(asked)}"


def _closed(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


@edit_method("ike", by_default=False, settings=IkeSettings)
def ike(language_model: LanguageModel, settings: IkeSettings) -> Ike:
    """The new fact after demonstrations."""
    return Ike(language_model, settings)
