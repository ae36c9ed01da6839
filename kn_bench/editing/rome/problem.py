"""What ROME optimises, as token ids and positions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import accumulate

from jaxtyping import Float
from torch import Tensor

from kn_bench.editing.bounds import Count, Rate, Weight, Whole


@dataclass(frozen=True, slots=True)
class ValueRow:
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
    """One target: its contexts, the bare prompt first, and the anchor of the KL term.

    Attributes:
        contexts: rows of one request; where the facts of one subject are merged, of several in
            turn, each with its bare prompt first.
        sizes: rows of each fact; () for a single fact.
    """

    contexts: tuple[ValueRow, ...]
    anchor: ValueRow | None
    sizes: tuple[int, ...] = ()

    @property
    def facts(self) -> tuple[tuple[ValueRow, ...], ...]:
        """Return the rows of each fact, its bare prompt first."""
        ends = tuple(accumulate(self.sizes or (len(self.contexts),)))
        return tuple(self.contexts[a:b] for a, b in zip((0, *ends), ends, strict=False))

    @property
    def rows(self) -> tuple[ValueRow, ...]:
        """Return contexts, then the anchor."""
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
        stop_after_rank_1: a request is finished after so many passes, not necessarily in a row, in
            which every target token is the likeliest in every context but the bare prompt; 0: never
            (ENCORE's |prob_cutoff|).
        rank_1_reads: count a pass when exactly so many target tokens are the likeliest, as ENCORE's
            published code does with 5; 0: all of them.
        settled_nll_factor: weight of the likelihood in the passes after one in which every target
            token is the likeliest; 1 elsewhere (PMET: 0.1). Such a request is finished once the KL
            term is at most ``settled_kl``.
        settled_kl: see there.
        norm_anchor: m of NAS: what the site is to give is scaled to norm m; where it is above 2 m,
            the request is passed over. 0: off.
    """

    v_lr: Rate = 0.5
    v_num_grad_steps: Count = 20
    v_weight_decay: Weight = 0.5
    clamp_norm_factor: Rate = 4.0
    kl_factor: Weight = 0.0625
    stop_loss: Weight = 0.05
    stop_after_rank_1: Whole = 0
    rank_1_reads: Whole = 0
    settled_nll_factor: Weight = 1.0
    settled_kl: Weight = 0.01
    norm_anchor: Weight = 0.0

    @property
    def value_settings(self) -> ValueSettings:
        """Return these alone, of a method that has more."""
        return ValueSettings(**{f.name: getattr(self, f.name) for f in fields(ValueSettings)})


@dataclass(frozen=True)
class Value:
    """The outcome for one request; vectors in float32 or better, on the model's device.

    Attributes:
        keys: site inputs at the subject, one a context, the bare prompt first.
        outputs: what delta is added to there: the site's outputs, bias included, or the layer's.
        delta: what is to be added to ``v_0 = outputs[0]``.
        v_site: the site's own output there plus delta, wherever delta stands: v* of NAS.
        beside: where delta stands at two places, v_0 + delta of the other, the attention's.
        losses: total loss of each forward pass; ``nll``, ``kl``, ``decay`` its weighted parts.
    """

    keys: Float[Tensor, "contexts d_mlp"]
    outputs: Float[Tensor, "contexts d_model"]
    delta: Float[Tensor, " d_model"]
    v_site: Float[Tensor, " d_model"]
    losses: Float[Tensor, " steps"]
    nll: Float[Tensor, " steps"]
    kl: Float[Tensor, " steps"]
    decay: Float[Tensor, " steps"]
    beside: Float[Tensor, " d_model"] | None = None

    @property
    def v_star(self) -> Float[Tensor, " d_model"]:
        """Return v_0 + delta: what the edited site is to answer to the subject's key."""
        return self.outputs[0] + self.delta
