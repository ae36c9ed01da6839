"""What fitting gives: cases, probes, queries and requests in a tokenizer's ids, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kn_bench.cases.case import Case, EditRequest, Exclusion, Probe

Ids = tuple[int, ...]

BUDGET = 8
"""Tokens of a free-running answer: never the target's length, which would give it away."""

NOT_LAST = "the answer is followed by more text: only a masked model can be asked"
NO_CONTEXT = "nothing stands before the answer to predict it from"
NO_TOKEN = "the answer has no token"
SEVERAL = "the answer is several word pieces"
SPECIAL = "the answer has a special or unknown token"
BOUNDARY = "the answer does not begin or end at a token's border"
AROUND = "the text around the answer is tokenised differently with either answer"
SAME = "the two answers are the same to the tokenizer"
LONG = "the text is longer than the model takes"
NO_ROOM = "the text leaves the model no room to answer"
UNNAMED = "the prompt does not name its subject"
AFTER = "the answer stands before the word it agrees with: no prompt to predict it from"


class AnswerRow(NamedTuple):
    """One row for the model.

    Attributes:
        ids: what is fed.
        positions: where logits are read; those at ``positions[i]`` are for ``targets[i]``.
        targets: the ids whose log-probabilities are summed.
        further: rows whose log-probabilities are added. Only where a masked model compares words of
            several pieces: one row for each piece, masked while the others are seen, so that the
            sum is the pseudo-log-likelihood of the words (Salazar et al. 2020).
    """

    ids: Ids
    positions: Ids
    targets: Ids
    further: tuple[AnswerRow, ...] = ()

    @property
    def parts(self) -> tuple[AnswerRow, ...]:
        """All rows to score: this one, and those whose log-probabilities are added."""
        return (self, *self.further)

    @property
    def n(self) -> int:
        """Number of tokens scored."""
        return sum(len(part.targets) for part in self.parts)


class EncodedProbe(NamedTuple):
    """A probe in ids.

    Attributes:
        probe: the probe.
        prompt_ids: the text up to the answer; for a masked model all of it, a mask in the gap.
        answer_position: where the answer is read: the prompt's last index, or the mask.
        expected, rejected: the two rows to score.
        first_expected: the expected answer's first token, whose rank is read at
            ``answer_position``.
    """

    probe: Probe
    prompt_ids: Ids
    answer_position: int
    expected: AnswerRow
    rejected: AnswerRow
    first_expected: int


@dataclass(frozen=True, slots=True)
class EncodedCase:
    """A case with the probes that fit, in order, and what was left out."""

    case: Case
    probes: tuple[EncodedProbe, ...]
    exclusions: tuple[Exclusion, ...] = ()

    @property
    def n_bytes(self) -> int:
        """About what it takes in memory, without looking at each token."""
        return 2048 * (1 + len(self.probes))


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query in ids, for attribution.

    Attributes:
        ids: the prompt; for a masked model with one mask for every token of the answer.
        answer_position: the last prompt token, or the first mask.
        answer_ids: the answer's tokens.
    """

    ids: Ids
    answer_position: int
    answer_ids: Ids


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """An edit request in ids.

    Attributes:
        request: the request.
        prompt_ids, answer_position: as in :class:`FittedProbe`.
        subject_position: index of the subject's last token in ``prompt_ids``.
        true_ids, new_ids: the two targets as they stand after the prompt (or in the gap).
    """

    request: EditRequest
    prompt_ids: Ids
    answer_position: int
    subject_position: int
    true_ids: Ids
    new_ids: Ids


class Unencodable(NamedTuple):
    """Why something cannot be put to a model."""

    reason: str
    detail: str = ""
