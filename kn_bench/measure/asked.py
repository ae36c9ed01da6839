"""What a model said to a probe, and the row of the log that two such answers become."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.case import Case
from kn_bench.measure.encoding import EncodedProbe
from kn_bench.measure.measurement import Answer, Measurement


class Asked(NamedTuple):
    """What the model said: the answer, and the log-probabilities it was read from."""

    answer: Answer
    log_probs: Float[Tensor, " vocabulary"]


def content_of(encoded: EncodedProbe) -> Any:
    """Return everything that an answer depends on besides the model."""
    probe = encoded.probe
    return (
        encoded.prompt_ids,
        encoded.answer_position,
        encoded.expected,
        encoded.rejected,
        probe.expected,
        probe.rejected,
        probe.aliases,
        probe.rejected_aliases,
    )


def divergence(
    before: Float[Tensor, "*rows vocabulary"], after: Float[Tensor, "*rows vocabulary"]
) -> float:
    """Return KL(before || after) in nats, the mean over rows; NaN where ``after`` holds NaN.

    A token whose probability underflows before counts nothing, whatever it is after (0 * inf).
    """
    if bool(after.isnan().any()):
        return math.nan
    kl = (before.exp() * (before - after)).nansum(-1).mean()
    return max(0.0, float(kl))


def measurement_of(
    model: str, method: str, case: Case, encoded: EncodedProbe, before: Asked, after: Asked
) -> Measurement:
    """Return the row of one probe."""
    probe = encoded.probe
    return Measurement(
        model=model,
        method=method,
        case=case.id,
        criterion=probe.criterion,
        probe=probe.id,
        kind=probe.kind,
        task=probe.task,
        relation=case.relation,
        source=case.source,
        cluster=case.cluster,
        expected=probe.expected,
        rejected=probe.rejected,
        n_expected=encoded.expected.n,
        n_rejected=encoded.rejected.n,
        before=before.answer,
        after=after.answer,
        kl=divergence(before.log_probs, after.log_probs),
    )
