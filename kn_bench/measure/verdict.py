"""What a criterion says of one case: the outcome of one test, and what the board needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kn_bench.measure.ranges import AT_LEAST_ZERO, COUNT, DIFFERENCE, SHARE

Status = Literal["holds", "missed", "not_applicable", "excluded", "error"]
STATUSES: tuple[Status, ...] = ("holds", "missed", "not_applicable", "excluded", "error")


@dataclass(frozen=True, slots=True)
class Readings:
    """The four readings of the literature after the edit, each the mean over counted probes.

    ``prob`` (ROME's ES/PS/NS), ``tf_token`` (EasyEdit), ``tf_all`` (MEMIT, AlphaEdit) and
    ``generated`` (free running), all of the probe's expected answer, each in [0, 1].
    """

    prob: float = field(metadata=SHARE)
    tf_token: float = field(metadata=SHARE)
    tf_all: float = field(metadata=SHARE)
    generated: float = field(metadata=SHARE)


@dataclass(frozen=True, slots=True)
class KindCount:
    """How many counted probes of one kind held: ``same_relation``, ``other_task``, ..."""

    kind: str
    held: int = field(metadata=COUNT)
    counted: int = field(metadata=COUNT)


@dataclass(frozen=True, slots=True)
class SymmetryOutcome:
    """The four outcomes of symmetry, stored apart; None where the question was not put.

    Attributes:
        new_learned: asked inversely about the new object, the edited model gives the subject.
        old_revoked: asked inversely about the true object, it no longer gives the subject.
        displaced_kept: asked inversely about the new object, it still gives the displaced subject.
        other: asked inversely about the new object, it gives neither.
    """

    new_learned: bool
    old_revoked: bool | None
    displaced_kept: bool
    other: bool


@dataclass(frozen=True, slots=True)
class OverturnOutcome:
    """What became of the categorical answer; None where it was wrong before.

    Attributes:
        generated: by what the model generates (facts; None for pairs).
        within_pair: by the log-probabilities of the two answers.
        argmax: by the most probable token of the vocabulary.
        reverse: wrong before and right after the edit, by the verdict's own reading.
        shift: probability moved towards ``target_new`` within the pair, p'(new) - p(new) with
            p(new) = sigmoid(log p(new) - log p(true)), in [-1, 1].
    """

    generated: bool | None
    within_pair: bool | None
    argmax: bool | None
    reverse: bool
    shift: float = field(metadata=DIFFERENCE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A criterion's reading of one case.

    Attributes:
        status: ``holds`` when every counted probe does; ``missed`` otherwise; ``not_applicable``
            where the criterion or the method is not defined; ``excluded`` when no probe counts;
            ``error`` when the edit or the measurement failed.
        score: share of the counted probes that hold, in [0, 1]; None unless holds or missed.
        explanation: one sentence for the reader of the test.
        reason: why nothing was scored ("" if it was); equal reasons are counted together.
        counted: probes that count for the score.
        left_out: probes of the criterion that do not: excluded, or not known before the edit.
        known_before: whether the unedited model gave ``target_true``; None when it was
            not asked.
        inverse_known: symmetry only: whether the unedited model knew the inverse of the true fact.
        mean_kl: locality only: mean KL(unedited || edited) over the neighbours, in nats.
        kinds: the counted probes by kind, in order of kind.
        readings: the four readings of the literature over the counted probes.
    """

    status: Status
    score: float | None = field(metadata=SHARE)
    explanation: str
    reason: str = ""
    counted: int = field(default=0, metadata=COUNT)
    left_out: int = field(default=0, metadata=COUNT)
    known_before: bool | None = None
    inverse_known: bool | None = None
    mean_kl: float | None = field(default=None, metadata=AT_LEAST_ZERO)
    kinds: tuple[KindCount, ...] = ()
    readings: Readings | None = None
    symmetry: SymmetryOutcome | None = None
    overturn: OverturnOutcome | None = None

    @property
    def holds(self) -> bool:
        """Whether the criterion was measured and holds."""
        return self.status == "holds"

    @property
    def scored(self) -> bool:
        """Whether the case counts for the criterion's mean."""
        return self.score is not None
