"""The loss of ROME's delta (equation 4), for the rows of many requests in one pass.

Three index spaces, each with the number of the next larger one beside it::

    request   0                       1            one delta each; what may leave the batch
    row       0      1      2 anchor  3      4     one text each; owner = 0 0 0 1 1
    read      0 1    2 3              4      5     one target token each; read_row = 0 0 1 1 3 4

A read's token is looked up at its row, and its log-probability is added to the row's request: so
one matrix product over the vocabulary serves all reads, however many a row has. Rows begin at their
subject, for nothing before it depends on delta: positions of reads are counted from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div

from kn_bench.editing.rome.problem import ValueProblem, ValueSettings
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.ragged import Ragged, Rerun
from kn_bench.model.scoring import log_probs_of


class Losses(NamedTuple):
    """The loss of each request and its weighted parts.

    ``right`` counts the target tokens that are the likeliest, ``right_in_contexts`` those of them
    that stand in a context other than the bare prompt.
    """

    total: Float[Tensor, " requests"]
    nll: Float[Tensor, " requests"]
    kl: Float[Tensor, " requests"]
    decay: Float[Tensor, " requests"]
    right: Float[Tensor, " requests"]
    right_in_contexts: Float[Tensor, " requests"]


@dataclass(frozen=True)
class Batch:
    """The rows of several requests, and where their losses read the vocabulary.

    Attributes:
        owner: request of each row.
        read_row, read_at: row, and position counted from the row's subject, of every read.
        read_target: token to predict there.
        read_weight: share of a read in its fact's mean over contexts of means over tokens.
        read_in_context: 1 for a read of another row than a bare prompt.
        anchor_row, anchor_initial: row and initial log-probabilities of each KL anchor.
        first_rows: row of each request's bare prompt, in the batch as it was made.
        counts: target tokens of each request, in all its rows and in contexts, in the batch as it
            was made; on the host, so that no step has to ask the device for them.
    """

    lm: LanguageModel
    rerun: Rerun
    owner: Int[Tensor, " rows"]
    read_row: Int[Tensor, " reads"]
    read_at: Int[Tensor, " reads"]
    read_target: Int[Tensor, " reads"]
    read_weight: Float[Tensor, " reads"]
    read_in_context: Float[Tensor, " reads"]
    anchor_row: Int[Tensor, " anchors"]
    anchor_initial: Float[Tensor, "anchors vocabulary"]
    first_rows: Int[Tensor, " requests"]
    counts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lm: LanguageModel, problems: Sequence[ValueProblem], ragged: Ragged) -> Batch:
        """Lay out the rows of ``problems``, in the order of ``ragged``."""
        owner: list[int] = []
        firsts: list[int] = []
        anchors: list[int] = []
        reads: list[tuple[int, int, int, float, float]] = []
        for index, problem in enumerate(problems):
            firsts.append(len(owner))
            for fact in problem.facts:
                for number, row in enumerate(fact):
                    # each context counts the same, however many tokens its target has
                    weight, inside = 1 / (len(fact) * len(row.targets)), float(number > 0)
                    reads += [
                        (len(owner), at - row.subject, target, weight, inside)
                        for at, target in zip(row.reads, row.targets, strict=True)
                    ]
                    owner.append(index)
            if problem.anchor is not None:
                anchors.append(len(owner))
                owner.append(index)
        read_row, read_at, read_target = torch.tensor(
            [read[:3] for read in reads], device=lm.device
        ).T
        anchor_row = torch.tensor(anchors, dtype=torch.long, device=lm.device)
        with torch.no_grad():
            initial = log_probs_of(lm, ragged.last_hidden[anchor_row, 0])
        return cls(
            lm=lm,
            rerun=ragged.rerun,
            owner=torch.tensor(owner, device=lm.device),
            read_row=read_row,
            read_at=read_at,
            read_target=read_target,
            read_weight=torch.tensor(
                [read[3] for read in reads], dtype=initial.dtype, device=lm.device
            ),
            read_in_context=torch.tensor(
                [read[4] for read in reads], dtype=initial.dtype, device=lm.device
            ),
            anchor_row=anchor_row,
            anchor_initial=initial,
            first_rows=torch.tensor(firsts, device=lm.device),
            counts=tuple(
                (
                    sum(len(row.targets) for fact in problem.facts for row in fact),
                    sum(len(row.targets) for fact in problem.facts for row in fact[1:]),
                )
                for problem in problems
            ),
        )

    def losses(
        self,
        deltas: Float[Tensor, "requests *places d_model"],
        v_0: Float[Tensor, "requests *places d_model"],
        settings: ValueSettings,
        nll_factor: Float[Tensor, " requests"] | None = None,
    ) -> Losses:
        """Return each request's loss at its delta; row i of ``deltas`` belongs to the batch's i-th.

        Args:
            nll_factor: weight of the likelihood of each request; None for 1.
        """
        hidden = self.rerun.run(deltas[self.owner])
        # sums by request are index_add: requests have different numbers of rows and reads
        zeros = deltas.new_zeros(len(deltas))
        # one product with the vocabulary: of few rows it costs as much as of one
        read = torch.cat([hidden[self.read_row, self.read_at], hidden[self.anchor_row, 0]])
        log_probs = log_probs_of(self.lm, read)
        wanted, edited = log_probs[: len(self.read_row)], log_probs[len(self.read_row) :]
        of_target = wanted.gather(1, self.read_target[:, None])[:, 0]
        read_owner = self.owner[self.read_row]
        nll = zeros.index_add(0, read_owner, -of_target * self.read_weight)
        nll = nll if nll_factor is None else nll * nll_factor
        right = (wanted.argmax(1) == self.read_target).to(zeros.dtype)
        kl = zeros
        if len(self.anchor_row):
            # KL(edited || initial), as published
            each = kl_div(self.anchor_initial, edited, log_target=True, reduction="none").sum(1)
            kl = zeros.index_add(0, self.owner[self.anchor_row], settings.kl_factor * each)
        # |delta| / |v_0|^2, as the published code has it: not squared above
        ratios = torch.linalg.vector_norm(deltas, dim=-1) / v_0.square().sum(-1)
        decay = settings.v_weight_decay * ratios.reshape(len(deltas), -1).sum(1)
        return Losses(
            nll + kl + decay,
            nll,
            kl,
            decay,
            zeros.index_add(0, read_owner, right),
            zeros.index_add(0, read_owner, right * self.read_in_context.to(zeros.dtype)),
        )

    def select(self, going: Bool[Tensor, " requests"]) -> Batch:
        """Return the same for the requests that go on."""
        # what stays is renumbered: its new number is how many before it stay too
        going = going.to(self.owner.device)
        rows, reads = going[self.owner], going[self.owner[self.read_row]]
        anchors = going[self.owner[self.anchor_row]]
        row_number, request_number = rows.cumsum(0) - 1, going.cumsum(0) - 1
        return replace(
            self,
            rerun=self.rerun.select(rows.nonzero()[:, 0]),
            owner=request_number[self.owner[rows]],
            read_row=row_number[self.read_row[reads]],
            read_at=self.read_at[reads],
            read_target=self.read_target[reads],
            read_weight=self.read_weight[reads],
            read_in_context=self.read_in_context[reads],
            anchor_row=row_number[self.anchor_row[anchors]],
            anchor_initial=self.anchor_initial[anchors],
            first_rows=self.first_rows[going],
        )
