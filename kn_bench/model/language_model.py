"""LanguageModel: tokens, sites, and running a Hugging Face model, whatever its architecture.

Nothing above this module names an architecture or calls the Hugging Face model by itself.

    LanguageModel
    ├── tokens        text <-> ids                                  (kn_bench.model.tokens)
    ├── site          down-projection of a layer: mlp_in, its neurons, to mlp_out
    ├── forward       ids -> logits at the positions that are read
    ├── neurons       mlp_in of some layers
    ├── site_hooks    sees mlp_in and replaces mlp_out
    ├── input_hooks   sees and replaces what goes into layers
    ├── batcher       how much of its work is run at once           (kn_bench.model.batching)
    └── memo          what is remembered between passes             (kn_bench.model.memo)
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_bench.model.architecture import (
    Architecture,
    architecture_of,
    config_hash,
    parameter_bytes,
    positions_of,
    submodule,
)
from kn_bench.model.batching import Batcher, default_memory
from kn_bench.model.corpus import NamedCorpus
from kn_bench.model.generating import Choose, continued, most_probable, prompt_ids
from kn_bench.model.given import check_type, whole
from kn_bench.model.held import HeldEdits
from kn_bench.model.memo import Memo
from kn_bench.model.modules import fused, layers_of
from kn_bench.model.progress import Progress
from kn_bench.model.tokens import Tokens
from kn_bench.model.weights import Weights, reset

SiteHook = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, mlp_in [rows, T, d_mlp], mlp_out [rows, T, d_model]) -> the mlp_out to go on with."""

InputHook = Callable[[int, Tensor], Tensor | None]
"""(layer, what goes into it [rows, T, d_model]) -> what is to go into it instead, if not None."""


class LanguageModel:
    """A loaded model and tokenizer behind one interface.

    Layers may lie on other devices; tensors that this class takes and returns lie on ``device``.

    Attributes:
        name: as the user gave it.
        prompt_prefix: a text that :meth:`generate` puts in front of every prompt; see ``edited``.
        hf: the Hugging Face model, in eval mode, its parameters frozen, its GELUs fused.
        held: the edits in force.
        tokens: its tokenizer.
        architecture: where its parts are.
        corpus: text that statistics of its activations are taken over; None until it is chosen.
        batcher: how much of its work is run at once; set ``batcher.memory`` to change that.
        memo: what is remembered between passes, for the weights as they are.

    Args:
        weights: reads parameters and buffers again, by name, to undo what a method should not have
            done to them; see :meth:`restore`.
    """

    def __init__(
        self,
        name: str,
        hf: Any,
        tokenizer: Any,
        *,
        architecture: Architecture | None = None,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.name = name
        self._weights = weights
        self.prompt_prefix = ""
        self.corpus: NamedCorpus | None = None
        self.hf = fused(hf.eval().requires_grad_(False))
        self.held = HeldEdits(name, self.hf)
        self.architecture = architecture or architecture_of(hf.config)
        self._config_hash = config_hash(hf.config, self.architecture)
        self.tokens = Tokens(
            tokenizer, self.architecture.kind, positions_of(hf.config, self.architecture)
        )
        # transformers warns of rows without a mask that hold the padding id, which in GPT-2-like
        # models also ends a text; padded rows always have a mask here
        self.hf.config.pad_token_id = None
        self.layers: list[nn.Module] = layers_of(hf, self.architecture)
        self._heads = [submodule(hf, path) for path in self.architecture.head]
        softcap = self.architecture.softcap
        self._softcap: float | None = getattr(hf.config, softcap) if softcap else None
        self._factor = self.architecture.factor(hf.config)
        self.batcher = Batcher(default_memory(parameter_bytes(hf), self.device))
        self._digests = Weights(hf)
        # neither refers to this object, so that it is freed, memory included, with its last user
        self.memo = Memo(self.batcher, self._digests)

    @property
    def progress(self) -> Progress:
        """Where long work on the model reports to; nowhere, unless it is set."""
        return self.batcher.progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self.batcher.progress = progress

    @property
    def is_causal(self) -> bool:
        return self.architecture.kind == "causal"

    @property
    def device(self) -> torch.device:
        """Where the input embeddings lie; layers may lie elsewhere."""
        return self.input_embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.hf.parameters()).dtype
        return dtype

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def d_mlp(self) -> int:
        return self.weight(0).shape[0]

    @cached_property
    def d_model(self) -> int:
        return self.weight(0).shape[1]

    @cached_property
    def vocabulary(self) -> int:
        """Number of rows of the output embedding; may exceed the tokenizer's."""
        return self.output_embeddings.shape[0]

    def site(self, layer: int) -> nn.Module:
        """Return the down-projection of ``layer``."""
        return submodule(self.layers[layer], self.architecture.down)

    def weight_name(self, layer: int) -> str:
        """Return the name of the site's weight in ``hf.named_parameters()``."""
        weight = self.site(layer).weight
        parameters: list[tuple[str, Tensor]] = list(self.hf.named_parameters())
        return next(name for name, parameter in parameters if parameter is weight)

    def transposed(self, layer: int) -> bool:
        """Tell whether the stored weight is [d_model, d_mlp], as in nn.Linear."""
        return isinstance(self.site(layer), nn.Linear)

    def weight(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the site's weight as the map key -> value; row i is the value of neuron i.

        Only to be read: a view, or a copy where the layer lies on another device.
        """
        weight = self.site(layer).weight
        assert isinstance(weight, Tensor)
        return (weight.T if self.transposed(layer) else weight).to(self.device)

    @property
    def output_embeddings(self) -> Float[Tensor, "vocabulary d_model"]:
        """Rows e(token) of the matrix that reads the last hidden state; only to be read."""
        matrix: Tensor = self.hf.get_output_embeddings().weight
        return matrix.to(self.device)

    @property
    def input_embeddings(self) -> Float[Tensor, "vocabulary d_embedding"]:
        """Word embeddings, never positional ones."""
        matrix: Tensor = self.hf.get_input_embeddings().weight
        return matrix

    @property
    def content_hash(self) -> str:
        """Hash of the model as it is now: its :attr:`original_hash` and the edits that it holds."""
        if not self.held_edits:
            return self.original_hash
        return hashlib.sha256(f"{self.original_hash}+{self.held_edits}".encode()).hexdigest()

    @cached_property
    def original_hash(self) -> str:
        """SHA-256 over the family, all parameters and buffers as loaded, and the tokenizer.

        Results memoised under it must be computed under :meth:`unedited`.
        """
        digest = hashlib.sha256(self.architecture.family.encode())
        digest.update(self.verified_hash.encode())
        digest.update(self.tokens.content_hash.encode())
        return digest.hexdigest()

    @property
    def behaviour_hash(self) -> str:
        """Hash of what decides the model's answers beside its weights: config and end of a text.

        What is kept on disk goes by it and by :attr:`content_hash` or :attr:`original_hash`.
        """
        ends = sorted(self.end_ids)
        return hashlib.sha256(f"{self._config_hash}+{ends}".encode()).hexdigest()[:32]

    @cached_property
    def verified_hash(self) -> str:
        """:meth:`parameter_hash` of the model as it was loaded."""
        return self.parameter_hash()

    def parameter_hash(self) -> str:
        """Return SHA-256 over the names and bytes of all parameters and buffers as they are now."""
        return self._digests.digest()

    def holding(
        self, edits: str, originals: Mapping[str, Tensor], *, elsewhere: bool = False
    ) -> AbstractContextManager[None]:
        """Record, while open, that the model holds edits, beside those that it holds already.

        Args:
            edits: hash of the edits, in order; becomes part of :attr:`content_hash`.
            originals: the changed parameters as they were before, by name.
            elsewhere: the edits are not in the weights, and nothing can put these back.
        """
        return self.held.holding(edits, originals, elsewhere=elsewhere)

    def unedited(self) -> AbstractContextManager[None]:
        """Put the weights back as they were loaded while open, where they hold edits.

        Raises:
            ValueError: while the model holds an edit that is not in its weights.
        """
        return self.held.put_aside()

    @property
    def held_edits(self) -> str:
        """Hash of the edits that the model holds; "" as loaded."""
        return self.held.hash

    def restore(self) -> None:
        """Put back the model as it was loaded, whatever edits, dtype and shape it has now.

        Raises:
            RuntimeError: when they cannot be read again, or still differ.
        """
        if self._weights is None:
            raise RuntimeError(
                f"{self.name}: expected a source to restore the changed weights from"
            )
        self.held.clear()
        self.prompt_prefix = ""
        reset(self.hf, self._weights())
        self.hf.requires_grad_(False)
        if self.parameter_hash() != self.verified_hash:
            raise RuntimeError(
                f"{self.name}: expected its source to hold the weights that were loaded, and it "
                "has changed"
            )

    # -- running ---------------------------------------------------------------------------

    def tensor(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows T"]:
        """Return rows of equal length as a tensor on the model's device."""
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def logits(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocabulary"]:
        """Return the logits of last hidden states: the head, the family's scale and soft cap."""
        for head in self._heads:
            hidden = head(hidden)
        hidden = hidden.to(self.device)
        if self._factor != 1.0:
            hidden = hidden * self._factor
        cap = self._softcap
        return torch.tanh(hidden / cap) * cap if cap else hidden

    def hidden(
        self,
        ids: Int[Tensor, "rows T"],
        mask: Int[Tensor, "rows T"] | Float[Tensor, "#rows 1 T keys"] | None = None,
        **options: Any,
    ) -> Any:
        """Run the base model; its output's ``last_hidden_state`` is [rows, T, d_model].

        Args:
            mask: 1 for tokens and 0 for padding; or what is added to attention scores.
        """
        output = self.hf.base_model(input_ids=ids, attention_mask=mask, **options)
        output.last_hidden_state = output.last_hidden_state.to(self.device)
        return output

    def forward(
        self,
        ids: Int[Tensor, "rows T"],
        positions: Int[Tensor, "rows n"],
        mask: Int[Tensor, "rows T"] | None = None,
    ) -> Float[Tensor, "rows n vocabulary"]:
        """Return logits at ``positions`` only: the vocabulary is projected where it is read."""
        hidden = self.hidden(ids, mask, **self._no_cache).last_hidden_state
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        return self.logits(hidden[rows, positions])

    @torch.no_grad()
    def generate(
        self, prompt: str, *, max_new_tokens: int = 20, choose: Choose = most_probable
    ) -> str:
        """Return a continuation of ``prompt``, greedy by default, or the word at its mask.

        Args:
            prompt: the text; for a masked model with one mask token in it.
            max_new_tokens: tokens to generate at most; generation stops at the end of a text.
            choose: picks each token of a causal model by its logits.

        Raises:
            TypeError: for a prompt that is not text, or a number of tokens that is not whole.
            ValueError: for a prompt that :func:`~kn_bench.model.generating.prompt_ids` refuses.

        Examples:
            >>> import kn_bench as kn
            >>> kn.load_model("tiny-gpt2").generate("The capital of France is", max_new_tokens=1)
            ' Paris'
        """
        check_type("prompt", prompt, str, "one text")
        max_new_tokens = whole("max_new_tokens", max_new_tokens, least=1)
        if self.prompt_prefix:
            prompt = f"{self.prompt_prefix} {prompt}"
        ids = prompt_ids(self.name, self.tokens, prompt, max_new_tokens)
        row = self.tensor([ids])
        if not self.is_causal:
            mask = self.tensor([[ids.index(self.tokens.mask_id or 0)]])
            return self.tokens.decode([int(self.forward(row, mask)[0, 0].argmax())]).strip()
        new = continued(self.hf, row, max_new_tokens, ends=self.end_ids, choose=choose)
        return self.tokens.decode(new)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text: the tokenizer's, and special ones that the model names."""
        stated = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        named = {stated} if isinstance(stated, int) else set(stated or ())
        # a config of another tokenizer's defaults may name an ordinary token
        own = () if self.tokens.eos_id is None else (self.tokens.eos_id,)
        return frozenset(named & self.tokens.special_ids).union(own)

    @property
    def _no_cache(self) -> dict[str, Any]:
        return {"use_cache": False} if self.is_causal else {}

    @contextmanager
    def site_hooks(self, hook: SiteHook, layers: Sequence[int]) -> Iterator[None]:
        """Let ``hook`` see mlp_in and replace mlp_out at the sites of ``layers`` while open."""
        home = self.device
        with ExitStack() as stack:
            stack.enter_context(self.memo.suspended())
            for layer in layers:

                def run(_: nn.Module, inputs: Any, output: Tensor, layer: int = layer) -> Tensor:
                    return hook(layer, inputs[0].to(home), output.to(home)).to(output.device)

                hook_here = self.own_call(layer, run)
                stack.callback(self.site(layer).register_forward_hook(hook_here).remove)
            yield

    @contextmanager
    def input_hooks(self, hook: InputHook, layers: Iterable[int]) -> Iterator[None]:
        """Let ``hook`` see and replace what goes into ``layers`` while it is open."""
        home = self.device
        with ExitStack() as stack:
            stack.enter_context(self.memo.suspended())
            for layer in layers:

                def run(_: nn.Module, args: Any, kwargs: Any, layer: int = layer) -> Any:
                    hidden = args[0] if args else kwargs["hidden_states"]
                    replaced = hook(layer, hidden.to(home))
                    if replaced is None:
                        return None
                    replaced = replaced.to(hidden.device)
                    if args:
                        return (replaced, *args[1:]), kwargs
                    return args, {**kwargs, "hidden_states": replaced}

                handle = self.layers[layer].register_forward_pre_hook(
                    self.own_call(layer, run), with_kwargs=True
                )
                stack.callback(handle.remove)
            yield

    def sharers(self, layer: int) -> list[int]:
        """Return the layers that have ``layer``'s site: several where layers share weights."""
        return [i for i, other in enumerate(self.layers) if other is self.layers[layer]]

    def own_call(self, layer: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``hook``, called only when a shared module (ALBERT's) runs as ``layer``."""
        sharers = self.sharers(layer)
        if len(sharers) == 1:
            return hook
        place, calls = sharers.index(layer), itertools.count()

        def only(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if next(calls) % len(sharers) == place else None

        return only

    def neurons(
        self, ids: Int[Tensor, "rows T"], layers: Sequence[int], mask: Tensor | None = None
    ) -> dict[int, Float[Tensor, "rows T d_mlp"]]:
        """Return mlp_in, the neurons, of each of ``layers``. No gradient."""
        neurons: dict[int, Tensor] = {}

        def keep(layer: int, mlp_in: Tensor, mlp_out: Tensor) -> Tensor:
            neurons[layer] = mlp_in.reshape(*ids.shape, -1)
            return mlp_out

        with torch.no_grad(), self.site_hooks(keep, layers):
            self.hidden(ids, mask, **self._no_cache)
        return neurons
