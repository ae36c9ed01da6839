"""What the methods of ROME's family ask of a model, remembered with it (``lm.memo``).

Methods that edit the same cases share contexts, keys, optimised values and second moments. Keys
hold all settings, and the memo goes by the weights, so that two settings never share anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from kn_bench.cases.case import EditRequest
from kn_bench.editing.bounds import Lengths
from kn_bench.editing.closed_form import Covariance
from kn_bench.editing.edit import NotApplicable
from kn_bench.editing.rome.encoding import encode_problem
from kn_bench.editing.rome.problem import Value, ValueProblem, ValueSettings
from kn_bench.editing.rome.value import optimise_values
from kn_bench.editing.settings import SettingError
from kn_bench.model import embedded
from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.context_templates import contexts
from kn_bench.model.corpus import Corpus, NamedCorpus, TextFile
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.own_text import corpus_named
from kn_bench.model.ragged import Place
from kn_bench.model.second_moment import second_moments


def refuse_lengths(lm: LanguageModel, lengths: Lengths) -> None:
    """Raise SettingError for generated contexts that leave no room in ``lm`` for a prompt."""
    longest, room = max((n for n, _ in lengths), default=0), lm.tokens.max_length
    if longest >= room:
        raise SettingError(
            f"context_template_length_params: expected contexts of less than the {room} tokens "
            f"that {lm.name} takes, and got {longest}; set others"
        )


def read_requests(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    lengths: Lengths,
    seed: int,
) -> list[ValueProblem | NotApplicable]:
    """Return each request's rows, the bare prompt first, or why there are none.

    Args:
        lengths, seed: of the generated contexts, see
            :func:`kn_bench.model.context_templates.contexts`.

    Raises:
        NotApplicable: on a masked model.
    """
    if not lm.is_causal:
        raise NotApplicable("ROME edits causal models: the subject must come before the answer")
    prefixes = contexts(lm, lengths=lengths, seed=seed)
    return [_read(lm, request, prefixes) for request in requests]


def _read(
    lm: LanguageModel, request: EditRequest, prefixes: Sequence[str]
) -> ValueProblem | NotApplicable:
    try:
        return encode_problem(request, lm.tokens, prefixes)
    except NotApplicable as reason:
        return reason


def values_of(
    lm: LanguageModel,
    layer: int,
    problems: Iterable[ValueProblem | NotApplicable],
    settings: ValueSettings,
    *,
    place: Place = "site",
) -> dict[ValueProblem, Value]:
    """Return the optimised value of each problem; those not met before are optimised together."""
    keys = {
        problem: ("value", layer, place, settings, problem)
        for problem in problems
        if isinstance(problem, ValueProblem)
    }

    def optimised(missing: list[Any]) -> list[Value]:
        asked = [problem for *_, problem in missing]
        return optimise_values(lm, layer, asked, settings, place=place)

    values = lm.memo.get_many(keys.values(), optimised)
    return {problem: values[key] for problem, key in keys.items()}


def corpus_for(lm: LanguageModel) -> NamedCorpus:
    """Return the text that C is taken over, chosen once a loaded model.

    It is the one that the user named (``--corpus``, or the environment variable KN_BENCH_CORPUS);
    else the embedded models' own, or a text set of the hub; without any of these, text that the
    model writes itself.

    Raises:
        ValueError: for a text that cannot be had.
    """
    if lm.corpus is None:
        named = os.environ.get("KN_BENCH_CORPUS", "")
        if lm.name in embedded.NAMES and not named:
            lm.corpus = NamedCorpus("embedded", TextFile(embedded.corpus_path()))
        else:
            lm.corpus = corpus_named(lm, named)
    return lm.corpus


def noted_texts(lm: LanguageModel, texts: int) -> str:
    """Return how an edit notes that the first ``texts`` documents of :func:`corpus_for` were read.

    Like the note of C, which counts tokens.
    """
    chosen = corpus_for(lm)
    return f"{chosen.name}, {texts} texts, SHA-256 {chosen.corpus.content_hash[:12]}"


def covariance_of(
    lm: LanguageModel, layer: int, corpus: Corpus | None, max_tokens: int | None
) -> Covariance:
    """Return C of one layer's site, see :func:`covariances_of`."""
    return covariances_of(lm, [layer], corpus, max_tokens)[layer]


def covariances_of(
    lm: LanguageModel, layers: Sequence[int], corpus: Corpus | None, max_tokens: int | None
) -> dict[int, Covariance]:
    """Return C of each layer's site, ready to be solved with, in one pass; kept on disk as well.

    In a sequence of edits it is the unedited model's, as in the published code.

    Args:
        corpus: the text; that of :func:`corpus_for` when None.
        max_tokens: how much of it; None for all, or for what the chosen text states.
    """
    chosen = NamedCorpus("given", corpus) if corpus is not None else corpus_for(lm)
    content, limit = chosen.corpus.content_hash, max_tokens or chosen.max_tokens
    keys = {layer: ("solver", layer, limit, content) for layer in layers}

    def measured(missing: list[Any]) -> list[Covariance]:
        folder = cache_folder() / "second_moments"
        unmeasured = [layer for _, layer, *_ in missing]
        with lm.unedited():
            moments = second_moments(lm, unmeasured, chosen.corpus, max_tokens=limit, cache=folder)
        return [
            Covariance(
                moments[layer].matrix.to(lm.device),
                f"{chosen.name}, {moments[layer].n_tokens} tokens, SHA-256 {content[:12]}",
            )
            for layer in unmeasured
        ]

    covariances = lm.memo.get_many(keys.values(), measured, original=True)
    return {layer: covariances[key] for layer, key in keys.items()}
