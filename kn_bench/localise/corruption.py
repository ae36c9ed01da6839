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
        subject: first and one past the last token that noise is put on.
        answer: the token whose probability is followed.
        rival: where there is one, the answer's share of the probability of the two is followed
            instead: the preference within a minimal pair.

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
                f"a prompt of {len(self.ids)} tokens cannot have its subject at tokens {start} to "
                f"{stop} and its answer read at {self.position}: both must lie inside of it"
            )


@dataclass(frozen=True)
class Corrupted:
    """Prompts of equal length, run clean and with noise.

    Attributes:
        prompts: the prompts; each has 1 clean row and then ``samples`` noisy ones.
        samples: noisy rows of each prompt.
        run: of all rows.
        mlp, attention: what each layer's MLP and attention gave.
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
        """The noisy rows of a prompt; its clean row is the one before."""
        first = prompt * (1 + self.samples) + 1
        return range(first, first + self.samples)

    def states(self, kind: Kind, layer: int) -> Float[Tensor, "rows T d_model"]:
        """All states of a kind; what layer -1 gives is what goes into layer 0, and what the last
        layer gives is what the head reads."""
        if kind != "hidden":
            return (self.mlp if kind == "mlp" else self.attention)[layer]
        inputs = self.run.layer_inputs
        return inputs[layer + 1] if layer + 1 < len(inputs) else self.run.last_hidden


def embedding_std(lm: LanguageModel, tokens: Sequence[int]) -> float:
    """Standard deviation of all entries of the embeddings of ``tokens`` (subjects' tokens)."""
    with torch.no_grad():
        embedded: Tensor = lm.hf.get_input_embeddings()(torch.tensor(tokens, device=lm.device))
    return float(embedded.std())


def noise(
    prompt: TracePrompt, std: float, width: int, *, samples: int = 10, seed: int = 0
) -> Float[Tensor, "samples subject d_embedding"]:
    """Normal noise for the subject of ``prompt``; it depends on the prompt and the seed alone.

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
        replace: the noise stands in for the embeddings instead of being added.
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
    """P(answer) of last hidden states, ``each`` rows a prompt, of positions from ``start`` on.

    Where a prompt has a rival: the answer's share of the probability of the two.
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
    """Put noise on the subject's embeddings of all rows but each prompt's first."""

    def put(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for number, (prompt, one) in enumerate(zip(prompts, noises, strict=True)):
            first = number * (1 + len(one)) + 1
            place = slice(first, first + len(one)), slice(*prompt.subject)
            # summed in float64: float32 embeddings and noise are rounded once
            base = torch.zeros_like(embedded[place]) if replace else embedded[place]
            embedded[place] = (base.double() + one.to(base.device)).to(base.dtype)
        return embedded

    handle = lm.hf.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
