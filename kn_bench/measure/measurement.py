"""What one probe gave, before and after an edit; the rows of a run's log.

All four readings of the literature come from the same forward passes and are kept apart:
``prob`` (ROME's ES/PS/NS), ``tf_token`` (EasyEdit), ``tf_all`` (MEMIT, AlphaEdit) and
``generated`` (free running; WILD / QAEdit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from kn_bench.cases.case import Criterion, Exclusion, Task
from kn_bench.measure.protocols import ONCE, Occasion
from kn_bench.measure.ranges import (
    AT_LEAST_ZERO,
    COUNT,
    LOG_PROBABILITY,
    POSITIVE_COUNT,
    SECONDS,
    SHARE,
)

CONTROL = "control:"
"""Begins the names of controls in the log; no method's own name has a colon."""


def control_name(method: str) -> str:
    """Return the name in the log of the edits of equal size that ``method`` is compared with."""
    return CONTROL + method


@dataclass(frozen=True, slots=True)
class Answer:
    """How one model, edited or not, answers one probe.

    Attributes:
        log_prob_expected: log p of the expected answer's tokens, summed, in nats. For a pair
            scored as a sentence: of all tokens from the differing span on.
        log_prob_rejected: the same of the rejected answer.
        prob: nll(expected) < nll(rejected), each divided by its number of tokens (ROME's ES).
        tf_token: share of the expected answer's tokens that are the argmax under teacher forcing.
        tf_all: all of them are.
        rank: rank of the expected answer's first token in the vocabulary, 0 for the argmax.
        argmax: the most probable token at the answer position, decoded.
        generated: greedy free-running continuation (masked model: the argmax at the mask).
        gives_expected: ``generated`` begins with the expected answer, after normalisation.
        gives_rejected: ``generated`` begins with the rejected answer, or another that counts as it.
    """

    log_prob_expected: float = field(metadata=LOG_PROBABILITY)
    log_prob_rejected: float = field(metadata=LOG_PROBABILITY)
    prob: bool
    tf_token: float = field(metadata=SHARE)
    tf_all: bool
    rank: int = field(metadata=COUNT)
    argmax: str
    generated: str
    gives_expected: bool
    gives_rejected: bool

    @property
    def prefers_expected(self) -> bool:
        """Summed log-probability of expected above rejected: BLiMP's own metric."""
        return self.log_prob_expected > self.log_prob_rejected

    @property
    def probability(self) -> float:
        """Probability of the expected answer, in [0, 1]."""
        return math.exp(min(0.0, self.log_prob_expected))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of a run's log: one probe of one case, under one method on one model.

    Attributes:
        model, method, case, probe: the row's identity, with ``criterion`` and ``occasion``.
        criterion: what the probe is counted for.
        kind, task, relation, source, cluster: copied from the case and the probe, so that a row
            can be aggregated without the case files.
        expected, rejected: the two answers as text.
        before, after: what the unedited and the edited model answered.
        kl: KL(unedited || edited) of the next-token distributions at the answer position, in nats.
        n_expected, n_rejected: tokens scored.
        occasion: under which protocol, and when it was asked.
    """

    model: str
    method: str
    case: str
    criterion: Criterion
    probe: str
    kind: str
    task: Task
    relation: str
    source: str
    cluster: str
    expected: str
    rejected: str
    n_expected: int = field(metadata=POSITIVE_COUNT)
    n_rejected: int = field(metadata=POSITIVE_COUNT)
    before: Answer
    after: Answer
    kl: float = field(metadata=AT_LEAST_ZERO)
    occasion: Occasion = field(default=ONCE, kw_only=True)


@dataclass(frozen=True, slots=True)
class EditRecord:
    """What is kept of an edit itself.

    Attributes:
        seconds: wall time of making it: the method's call over its requests, divided by their
            number (batched methods share it).
        description: one line: kind, sites, rank or neurons.
        norm: Frobenius norm of the weight change, 0 where no weight changes.
        notes: what the method recorded (final loss, ROME's denominator, |dW|/|W|, |KN|, ...).
    """

    seconds: float = field(metadata=SECONDS)
    description: str
    norm: float = field(metadata=AT_LEAST_ZERO)
    notes: dict[str, float | int | str | bool]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the unedited and the edited model wrote after one prompt."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Written:
    """What the models wrote about the subject of a case, see :mod:`kn_bench.measure.writing`.

    Attributes:
        continuations: one a prompt.
        fluency_before, fluency_after: mean entropy of the texts' n-grams, in bits.
        reference_before, reference_after: likeness to texts about the new target, from 0 to 1; None
            where there are none.
    """

    continuations: tuple[Continuation, ...]
    fluency_before: float
    fluency_after: float
    reference_before: float | None = None
    reference_after: float | None = None


@dataclass(frozen=True, slots=True)
class CaseResult:
    """All that one case gave under one method on one model.

    Attributes:
        case: case id.
        edit: record of the edit, None when there was none.
        measurements: one per measured probe.
        exclusions: probes (or the case) that could not be put to this model, with reasons.
        not_applicable: why the method does not apply to this case or model at all ("" if it does).
        error: why an attempted edit failed ("" if it did not); makes the case's tests errors.
        control: what an edit of equal size gave on the same probes; None where there is none.
        written: what the models wrote freely; None where that was not asked for.
    """

    case: str
    edit: EditRecord | None
    measurements: tuple[Measurement, ...]
    exclusions: tuple[Exclusion, ...] = ()
    not_applicable: str = ""
    error: str = ""
    control: CaseResult | None = None
    written: Written | None = None


@dataclass(frozen=True, slots=True)
class NormGrowth:
    """|dW|_F / |W|_F of one edited matrix, W as loaded."""

    parameter: str
    relative: float = field(metadata=AT_LEAST_ZERO)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The edited model after some steps of a sequence: what is left of its abilities.

    Shares and means are over the same fixed questions at every checkpoint, but for those that do
    not fit behind a prompt edit's prefix; None where there are none. Step 0 is the unedited model.

    Attributes:
        step: steps so far.
        edits: edits so far.
        retained: share of the edits so far whose edited prompt still gives the new answer; with
            ``n_retained`` of them asked.
        blimp: accuracy on a fixed sample of ``n_blimp`` minimal pairs of paradigms not edited.
        perplexity: on a fixed text of ``n_tokens`` tokens (masked model: pseudo-perplexity); as
            1e30 where it is not finite.
        kl: mean KL(unedited || edited) at the next token of ``n_neutral`` neutral prompts, in
            nats.
        known: share of ``n_known`` facts, known to the unedited model and never edited, that are
            still answered.
        norms: of every edited matrix.
        collapsed_at: first step whose perplexity exceeded 10 times the unedited model's on the
            same tokens or was not finite, as far as checkpoints show; 0 where there is none so far.
    """

    step: int = field(metadata=COUNT)
    edits: int = field(metadata=COUNT)
    retained: float | None = field(metadata=SHARE)
    n_retained: int = field(metadata=COUNT)
    blimp: float | None = field(metadata=SHARE)
    n_blimp: int = field(metadata=COUNT)
    perplexity: float | None = field(metadata=AT_LEAST_ZERO)
    n_tokens: int = field(metadata=COUNT)
    kl: float | None = field(metadata=AT_LEAST_ZERO)
    n_neutral: int = field(metadata=COUNT)
    known: float | None = field(metadata=SHARE)
    n_known: int = field(metadata=COUNT)
    norms: tuple[NormGrowth, ...] = ()
    collapsed_at: int = field(default=0, metadata=COUNT)


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What one unit (model x method x a few dozen cases) gave, with where its time went (s).

    Attributes:
        results: by case; of a sequence the immediate readings.
        retained: of a sequence the readings after its last step.
        checkpoints: of a sequence, step 0 first.
    """

    model: str
    method: str
    results: dict[str, CaseResult]
    edit_seconds: float
    measure_seconds: float
    retained: dict[str, CaseResult] = field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()
