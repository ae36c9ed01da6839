"""What ROME optimises, as token ids and positions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class Row:
    """One text of an edit request.

    Attributes:
        ids: all tokens that are run: ``context + prompt + target`` without the target's last.
        subject: position of the subject's last token, where delta is added.
        reads: positions whose next token is predicted; for the anchor, the subject's.
        targets: the token each of ``reads`` is to predict; empty for the anchor.
        context: how many first tokens are a context, which stands in front of other prompts too.
    """

    ids: tuple[int, ...]
    subject: int
    reads: tuple[int, ...]
    targets: tuple[int, ...] = ()
    context: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.subject <= min(self.reads) <= max(self.reads) < len(self.ids):
            raise ValueError(
                f"positions out of order: subject {self.subject}, read {self.reads}, "
                f"{len(self.ids)} tokens; the subject must come before the answer"
            )


@dataclass(frozen=True, slots=True)
class ValueProblem:
    """One request: its contexts, the bare prompt first, and the anchor of the KL term."""

    contexts: tuple[Row, ...]
    anchor: Row | None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Contexts, then the anchor."""
        return self.contexts if self.anchor is None else (*self.contexts, self.anchor)


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """Hyperparameters of the optimisation of delta, in the paper's terms.

    Attributes:
        v_lr: Adam's learning rate.
        v_num_grad_steps: forward passes; one update fewer is made, as in the published code.
        v_weight_decay: weight of ``|delta| / |v_0|^2``.
        clamp_norm_factor: delta is kept within this many times ``|v_0|``.
        kl_factor: weight of KL(edited || initial) at the anchor.
        stop_loss: a request is finished when its total loss, before an update, is below this.
    """

    v_lr: float = 0.5
    v_num_grad_steps: int = 20
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    stop_loss: float = 0.05

    @property
    def value_settings(self) -> ValueSettings:
        """These alone, of a method that has more."""
        return ValueSettings(**{f.name: getattr(self, f.name) for f in fields(ValueSettings)})


@dataclass(frozen=True)
class Value:
    """The outcome for one request; vectors in float32 or better, on the model's device.

    Attributes:
        keys: site inputs at the subject, one a context, the bare prompt first.
        outputs: what delta is added to there: the site's outputs, bias included, or the layer's.
        delta: what is to be added to ``v_0 = outputs[0]``.
        losses: total loss of each forward pass; ``nll``, ``kl``, ``decay`` its weighted parts.
    """

    keys: Float[Tensor, "contexts d_mlp"]
    outputs: Float[Tensor, "contexts d_model"]
    delta: Float[Tensor, " d_model"]
    losses: Float[Tensor, " steps"]
    nll: Float[Tensor, " steps"]
    kl: Float[Tensor, " steps"]
    decay: Float[Tensor, " steps"]

    @property
    def v_star(self) -> Float[Tensor, " d_model"]:
        """v_0 + delta: what the edited site is to answer to the subject's key."""
        return self.outputs[0] + self.delta
