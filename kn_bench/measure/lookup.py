"""Answers of a lookup edit, which come from the oracle's table instead of the model."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from kn_bench.cases.case import Probe
from kn_bench.cases.normalise import starts_with_answer
from kn_bench.editing.edit import LookupEdit
from kn_bench.measure.encoding import EncodedProbe
from kn_bench.measure.measurement import Answer

DOUBT = 1e-6
"""Probability that a looked-up answer leaves to all others, so that every number stays finite."""


def _given(listed: tuple[str, ...], probe: Probe) -> str:
    """Return the listed answer that the probe asks about, else the first."""
    asked = (answer for answer in (probe.expected, probe.rejected) if answer in listed)
    return next(asked, listed[0])


def looked_up(
    edit: LookupEdit,
    encoded: EncodedProbe,
    before: Answer,
    log_probs: Float[Tensor, " vocabulary"],
) -> tuple[Answer, Float[Tensor, " vocabulary"]]:
    """Return the table's answer to a probe, or the model's own if the cloze is not listed."""
    probe = encoded.probe
    listed = edit.answers.get(probe.cloze)
    if listed is None:
        return before, log_probs
    given = _given((listed,) if isinstance(listed, str) else listed, probe)
    sure, never = math.log1p(-DOUBT), math.log(DOUBT)
    right, wrong = given == probe.expected, given == probe.rejected
    answer = replace(
        before,
        log_prob_expected=(sure if right else never) * (1 if right else encoded.expected.n),
        log_prob_rejected=(sure if wrong else never) * (1 if wrong else encoded.rejected.n),
        prob=right or (not wrong and before.prob),
        tf_token=float(right),
        tf_all=right,
        rank=0 if right else max(1, before.rank),
        argmax=given,
        generated=given,
        gives_expected=starts_with_answer(given, probe.expected, probe.aliases),
        gives_rejected=starts_with_answer(given, probe.rejected, probe.rejected_aliases),
    )
    after = torch.full_like(log_probs, math.log(DOUBT / (len(log_probs) - 1)))
    if right or wrong:
        row = encoded.expected if right else encoded.rejected
        after[row.targets[0]] = sure
    return answer, after
