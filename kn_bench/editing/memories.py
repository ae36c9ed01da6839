"""Side memories: what stands beside one linear module, as a value.

    Codebook      keys, values, radii     inside a key's ball the output is its value    GRACE
    SideWeights   changes of the weight   the output changes where a change is large     WISE

Every position of a text is routed by itself, by the module's input there. So it matters neither
where a prompt ends, nor what pads it, nor whether earlier positions come from a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Codebook:
    """Keys, their values and radii, and the answer that each is for.

    Attributes:
        answers: token ids, padded with -1 on the right.
    """

    keys: Float[Tensor, "n d_in"]
    values: Float[Tensor, "n d_out"]
    epsilons: Float[Tensor, " n"]
    answers: Tensor

    def nearest(self, queries: Float[Tensor, "... d_in"]) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest key of each query, and which it is."""
        # not by the matrix product, whose rounding moves what lies on a ball's edge
        gaps = (queries[..., None, :].to(self.keys) - self.keys).square().sum(-1).sqrt()
        smallest = gaps.min(-1)
        return smallest.values, smallest.indices

    def replaced(
        self,
        inputs: Float[Tensor, "rows T d_in"],
        outputs: Float[Tensor, "rows T d_out"],
        *,
        before_last: bool = False,
    ) -> Float[Tensor, "rows T d_out"]:
        """Return ``outputs`` with values where positions lie in a ball.

        Args:
            before_last: choose the ball by the last position, and replace all before it.
        """
        if not len(self.keys):
            return outputs
        distance, index = self.nearest(inputs[:, -1:] if before_last else inputs)
        inside = distance <= self.epsilons[index] * (1 + SLACK)
        chosen = self.values[index].to(outputs.dtype)
        if before_last:
            body = torch.where(inside[..., None], chosen, outputs[:, :-1])
            return torch.cat([body, outputs[:, -1:]], 1)
        return torch.where(inside[..., None], chosen, outputs)

    def with_key(self, key: Tensor, value: Tensor, epsilon: float, answer: Tensor) -> Codebook:
        """Return the codebook with one key more."""
        width = max(self.answers.shape[1], len(answer))
        rows = [*self.answers, answer]
        padded = [nn.functional.pad(row, (0, width - len(row)), value=-1) for row in rows]
        return Codebook(
            torch.cat([self.keys, key[None]]),
            torch.cat([self.values, value[None]]),
            torch.cat([self.epsilons, self.epsilons.new_tensor([epsilon])]),
            torch.stack(padded),
        )

    def same_answer(self, index: int, answer: Tensor) -> bool:
        """Return whether the key of ``index`` is for ``answer``."""
        kept = self.answers[index]
        return torch.equal(kept[kept >= 0], answer)


SLACK = 1e-9
"""A radius that was set to a prompt's distance is to hold that prompt in other batches too."""


@dataclass(frozen=True)
class SideWeights:
    """Changes of the module's weight, each with the distance from which on it is used.

    Attributes:
        deltas: W' - W of each, as maps from inputs to outputs.
        epsilons: |x (W' - W)| from which on W' takes W's place.
    """

    deltas: Float[Tensor, "n d_in d_out"]
    epsilons: Float[Tensor, " n"]

    def replaced(
        self,
        inputs: Float[Tensor, "rows T d_in"],
        outputs: Float[Tensor, "rows T d_out"],
        *,
        before_last: bool = False,
    ) -> Float[Tensor, "rows T d_out"]:
        """Return ``outputs``, changed by the largest of the changes past their own distance.

        Args:
            before_last: not used here; a codebook's.
        """
        change = torch.zeros_like(outputs)
        largest = torch.zeros(outputs.shape[:-1], dtype=self.epsilons.dtype, device=outputs.device)
        for delta, epsilon in zip(self.deltas, self.epsilons, strict=True):
            proposed = inputs.to(delta) @ delta
            distance = proposed.norm(dim=-1)
            taken = (distance >= epsilon) & (distance > largest)
            change = torch.where(taken[..., None], proposed.to(outputs.dtype), change)
            largest = torch.where(taken, distance, largest)
        return outputs + change


Memory = Codebook | SideWeights
