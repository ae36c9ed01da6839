"""Where a model keeps a fact: knowledge neurons and causal tracing of one request."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from kn_bench.api.arguments import check_requests
from kn_bench.api.methods import with_queries
from kn_bench.cases.case import EditRequest
from kn_bench.localise import locating, tracing
from kn_bench.localise.corruption import Kind, embedding_std, noise
from kn_bench.localise.locating import Bag, Located, Locating
from kn_bench.localise.token_positions import trace_prompt
from kn_bench.localise.tracing import KINDS, Trace
from kn_bench.measure.encoding import Unencodable, try_query
from kn_bench.model.given import check_type, finite, listed, whole
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.loaded import check_model


def locate(
    model: LanguageModel, request: EditRequest, *, settings: Locating | None = None
) -> Located:
    """Locate the knowledge neurons of a fact by integrated gradients (Dai et al. 2022).

    Args:
        model: the model.
        request: the fact, located by its ``queries``; by its own prompt where it has none.
        settings: thresholds and integration; the paper's by default.

    Raises:
        TypeError: for a model that is not loaded, anything but one edit request, or settings that
            are none.
        ValueError: when no prompt of the request can be put to this model.

    Examples:
        >>> import kn_bench as kn
        >>> model = kn.load_model("tiny-bert")
        >>> fact = kn.load_cases("embedded", relation="P36", limit=1)[0].request
        >>> sorted(kn.locate(model, fact).neurons)[0]  # doctest: +ELLIPSIS
        Neuron(layer=..., unit=...)
    """
    check_model(model)
    check_requests([request])
    if settings is not None:
        check_type("settings", settings, Locating, "kn_bench.localise.locating.Locating, or None")
    bag = Bag(with_queries(request).queries, request.task)
    (located,) = locating.locate(model, [bag], settings)
    if not located.queries:
        tried = [try_query(query, model.tokens, bag.task) for query in bag.queries]
        reasons = dict.fromkeys(each.reason for each in tried if isinstance(each, Unencodable))
        raise ValueError(
            f"{request.id}: expected a query that {model.name} can be asked, and none of "
            f"{len(bag.queries)} can be ({'; '.join(reasons)}); give others"
        )
    return located


def trace(
    model: LanguageModel,
    request: EditRequest,
    *,
    kinds: Kind | Iterable[Kind] = KINDS,
    window: int = 10,
    samples: int = 10,
    multiplier: float = 3.0,
    seed: int = 0,
) -> Trace:
    """Trace which hidden states carry a fact (causal tracing, Meng et al. 2022).

    Args:
        model: the model.
        request: the fact; noise is put on its subject, and ``target_true`` is followed.
        kinds: what to restore: ``hidden``, ``mlp``, ``attention``.
        window: layers restored at once for MLP and attention outputs.
        samples: of the noise.
        multiplier: of the noise, in standard deviations of the subject's embeddings.
        seed: of the noise.

    Raises:
        TypeError: for a model that is not loaded, anything but one edit request, or an option of
            another type.
        ValueError: when the prompt cannot be put to this model, for an unknown kind or one that is
            named twice, fewer than one sample or layer, or noise below 0, not finite or too large.

    Examples:
        >>> import kn_bench as kn
        >>> model = kn.load_model("tiny-gpt2")
        >>> fact = kn.load_cases("embedded", relation="P36", limit=1)[0].request
        >>> traced = kn.trace(model, fact, kinds=["hidden"], samples=2)
        >>> traced.scores.shape[-1] == model.n_layers  # kind, token, layer
        True
    """
    check_model(model)
    check_requests([request])
    chosen = _chosen(kinds)
    window, samples = whole("window", window, least=1), whole("samples", samples, least=1)
    multiplier, seed = finite("multiplier", multiplier, least=0), whole("seed", seed)
    prompt = trace_prompt(model, request)
    if isinstance(prompt, Unencodable):
        raise ValueError(f"{request.id}: expected a prompt to trace; {prompt.reason}")
    std = multiplier * embedding_std(model, prompt.ids[slice(*prompt.subject)])
    width = model.input_embeddings.shape[1]
    noises = [noise(prompt, std, width, samples=samples, seed=seed)]
    (traced,) = tracing.trace(model, [prompt], noises, kinds=chosen, window=window)
    if math.isfinite(traced.clean) and not bool(torch.isfinite(traced.scores).all()):
        raise ValueError(
            f"multiplier {multiplier:g}: expected noise that {model.name} can compute with, and "
            "probabilities under it are not finite (NaN or infinity); give a smaller one"
        )
    return traced


def _chosen(kinds: Kind | Iterable[Kind]) -> list[Kind]:
    expected = f"some of {', '.join(KINDS)}"
    chosen: list[Kind] = listed("kinds", [kinds] if isinstance(kinds, str) else kinds, expected)
    if not chosen or any(kind not in KINDS for kind in chosen):
        raise ValueError(f"kinds {chosen!r}: expected {expected}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"kinds {chosen!r}: expected each kind once; name it once")
    return chosen
