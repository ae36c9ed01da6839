"""Clean and corrupted runs of a prompt (Meng et al. 2022, section 2.1).

clean       the prompt as it is: P(answer) is high
corrupted   noise on the embeddings of the subject's tokens, some samples of it: P is low
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kn_bench.model.attention import attention_hooks
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.resuming import CleanRun, clean_run
from kn_bench.model.scoring import log_prob_of, share_of_two
from kn_bench.model.seeding import seeded

Kind = Literal["hidden", "mlp", "attention"]
"""A layer's output, what its MLP adds to the residual stream, or what its attention adds."""


@dataclass(frozen=True, slots=True)
class TracePrompt:
    """A prompt to trace.

    Attributes:
        ids: tokens; for a causal model they end where the answer is read.
        position: where the answer is read: the last token, or the mask.
        subject: the first token that noise is added to, and one past the last.
        answer: the token whose probability is followed.
        rival: the other answer of a minimal pair; the answer's share of the probability of the two
            is then followed instead.

    Raises:
        ValueError: for a subject or an answer position outside the prompt.
    """

    ids: tuple[int, ...]
    position: int
    subject: tuple[int, int]
    answer: int
    rival: int | None = None

    def __post_init__(self) -> None:
        start, stop = self.subject
        if not 0 <= start < stop <= len(self.ids) or not 0 <= self.position < len(self.ids):
            raise ValueError(
                f"subject {start} to {stop}, answer read at {self.position}: expected both within "
                f"the {len(self.ids)} tokens of the prompt"
            )


@dataclass(frozen=True)
class Corrupted:
    """Prompts of equal length, run clean and with noise.

    Attributes:
        prompts: the prompts; each has 1 clean row and then ``samples`` noisy ones.
        samples: noisy rows of each prompt.
        run: of all rows.
        mlp, attention: outputs of each layer's MLP and attention.
        probability: P(answer), clean in the first column.
    """

    lm: LanguageModel
    prompts: tuple[TracePrompt, ...]
    samples: int
    run: CleanRun
    mlp: tuple[Float[Tensor, "rows T d_model"], ...]
    attention: tuple[Float[Tensor, "rows T d_model"], ...]
    probability: Float[Tensor, "prompts runs"]

    def rows(self, prompt: int) -> range:
        """Return the noisy rows of a prompt; its clean row is the one before."""
        first = prompt * (1 + self.samples) + 1
        return range(first, first + self.samples)

    def states(self, kind: Kind, layer: int) -> Float[Tensor, "rows T d_model"]:
        """Return all states of a kind.

        The output of layer -1 is the input of layer 0, and that of the last layer what the head
        reads.
        """
        if kind != "hidden":
            return (self.mlp if kind == "mlp" else self.attention)[layer]
        inputs = self.run.layer_inputs
        return inputs[layer + 1] if layer + 1 < len(inputs) else self.run.last_hidden


def embedding_std(lm: LanguageModel, tokens: Sequence[int]) -> float:
    """Return the standard deviation of all entries of the embeddings of ``tokens``."""
    with torch.no_grad():
        embedded: Tensor = lm.hf.get_input_embeddings()(torch.tensor(tokens, device=lm.device))
    return float(embedded.std())


def noise(
    prompt: TracePrompt, std: float, width: int, *, samples: int = 10, seed: int = 0
) -> Float[Tensor, "samples subject d_embedding"]:
    """Return normal noise for the subject of ``prompt``, which with the seed determines it.

    Args:
        std: of the noise; Meng et al. take 3 standard deviations of the embeddings.
        width: of the embeddings.
    """
    start, stop = prompt.subject
    generator = seeded(seed, "noise", *prompt.ids)
    shape = samples, stop - start, width
    return std * torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def corrupt(
    lm: LanguageModel,
    prompts: Sequence[TracePrompt],
    noises: Sequence[Float[Tensor, "samples subject d_embedding"]],
    *,
    replace: bool = False,
) -> Corrupted:
    """Run prompts of equal length clean and under noise, keeping every state.

    Args:
        noises: of each prompt, equally many samples.
        replace: the noise replaces the embeddings instead of being added.
    """
    samples = len(noises[0])
    ids = lm.tensor([p.ids for p in prompts]).repeat_interleave(1 + samples, 0)
    mlp: dict[int, Tensor] = {}
    attention: dict[int, Tensor] = {}

    def keep(layer: int, _: Tensor, values: Tensor) -> Tensor:
        mlp[layer] = values.reshape(*ids.shape, -1).clone()  # Falcon adds to it in place
        return values

    def attend(layer: int, output: Tensor) -> None:
        attention[layer] = output.reshape(*ids.shape, -1).clone()

    with ExitStack() as stack:
        stack.enter_context(_noisy(lm, prompts, noises, replace))
        stack.enter_context(attention_hooks(lm, attend, range(lm.n_layers)))
        stack.enter_context(lm.site_hooks(keep, range(lm.n_layers)))
        run = clean_run(lm, ids)
    layers = range(lm.n_layers)
    return Corrupted(
        lm,
        tuple(prompts),
        samples,
        run,
        tuple(mlp[layer] for layer in layers),
        tuple(attention[layer] for layer in layers),
        answer_probability(lm, run.last_hidden, prompts, 1 + samples).reshape(len(prompts), -1),
    )


def answer_probability(
    lm: LanguageModel,
    hidden: Float[Tensor, "rows Tq d_model"],
    prompts: Sequence[TracePrompt],
    each: int,
    start: int = 0,
) -> Float[Tensor, " rows"]:
    """Return P(answer) from last hidden states, ``each`` rows per prompt.

    Where a prompt has a rival: the answer's share of the probability of the two.

    Args:
        hidden: of the positions from ``start`` on.
    """

    def of_rows(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=hidden.device).repeat_interleave(each)

    rows = torch.arange(len(hidden), device=hidden.device)
    logits = lm.logits(hidden[rows, of_rows([p.position - start for p in prompts])])
    answers = of_rows([p.answer for p in prompts])
    rivals = of_rows([p.answer if p.rival is None else p.rival for p in prompts])
    return torch.where(
        of_rows([p.rival is None for p in prompts]),
        log_prob_of(logits, answers).exp(),
        share_of_two(logits, answers, rivals),
    )


@contextmanager
def _noisy(
    lm: LanguageModel, prompts: Sequence[TracePrompt], noises: Sequence[Tensor], replace: bool
) -> Iterator[None]:
    """Add noise to the subject's embeddings in all rows but each prompt's first."""

    def put(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for number, (prompt, added) in enumerate(zip(prompts, noises, strict=True)):
            first = number * (1 + len(added)) + 1
            place = slice(first, first + len(added)), slice(*prompt.subject)
            # summed in float64: float32 embeddings and noise are rounded once
            base = torch.zeros_like(embedded[place]) if replace else embedded[place]
            embedded[place] = (base.double() + added.to(base.device)).to(base.dtype)
        return embedded

    handle = lm.hf.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
