"""What a layer gives at one position when the value of its site there is changed.

    added   output = clean output + change of the value          norm first: GPT, Llama, ModernBERT
    rerun   output = the layer's last module at that position    norm last: BERT, RoBERTa, ELECTRA

Neither runs the whole layer again. Rows that differ from a clean run by the value of one site
therefore join at the next layer's input, and rows changed at the last layer need no layer at all.
Which of the two holds is found by a test on the model, not read from a table. Where neither holds
(a norm between MLP and residual stream), rows join at the site's own layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from kn_bench.model.architecture import submodule
from kn_bench.model.language_model import LanguageModel
from kn_bench.model.resuming import (
    CleanRun,
    clean_run,
    may_resume,
    replaced_forward,
    resume,
    skipping,
)


@dataclass(frozen=True)
class Ways:
    """How a model's layers continue after their sites.

    Attributes:
        after: ``added`` or ``rerun``, the same for all layers; ``layer`` where each has to run.
        narrow: whether the last layer can be cut to one position after its attention.
    """

    after: Literal["added", "rerun", "layer"]
    narrow: bool = False


@dataclass(frozen=True)
class CleanSites:
    """A clean run, with what its sites saw at one position of each row.

    Attributes:
        run: the clean run.
        positions: the position of each row.
        keys, values: input and output of the sites there.
        outputs: the layers' outputs there.
        arguments: those of each layer's last module there, ``[B, 1, ...]`` each, on the layer's
            device.
        ways: how layers continue after their sites.
    """

    lm: LanguageModel
    run: CleanRun
    positions: Int[Tensor, " B"]
    keys: Float[Tensor, "B n_layers d_mlp"]
    values: Float[Tensor, "B n_layers d_model"]
    outputs: Float[Tensor, "B n_layers d_model"]
    arguments: tuple[tuple[Tensor, ...], ...]
    ways: Ways

    @property
    def start(self) -> int:
        """First position that changed rows run: the last for a causal model, else 0."""
        return self.run.ids.shape[1] - 1 if self.lm.is_causal else 0

    @property
    def last_hidden(self) -> Float[Tensor, "B d_model"]:
        """What the head reads at the positions."""
        at = self.positions
        return self.run.last_hidden[torch.arange(len(at), device=at.device), at]

    def changed(
        self,
        rows: Mapping[int, Int[Tensor, " n"]],
        values: Mapping[int, Float[Tensor, "n d_model"]],
    ) -> Float[Tensor, "all_rows d_model"]:
        """Return what the head reads at the positions where one site of each row is changed.

        Args:
            rows: layer -> which clean rows; the result has them in the order of layers.
            values: layer -> the value of its site at each row's position. Gradients flow.
        """
        if self.ways.after == "layer":
            return self._from_the_layer(rows, values)
        last = self.lm.n_layers - 1
        hidden = []
        if early := {layer: rows[layer] for layer in sorted(rows) if layer < last}:
            hidden.append(self._from_the_next(early, values))
        if last in rows:
            hidden.append(_ended(self.lm, self.output(last, rows[last], values[last])))
        return torch.cat(hidden)

    def output(
        self, layer: int, rows: Int[Tensor, " n"], values: Float[Tensor, "n d_model"]
    ) -> Float[Tensor, "n d_model"]:
        """Return the output of ``layer`` at the rows' positions, its site giving ``values``."""
        if self.ways.after == "added":
            return self.outputs[rows, layer] + values - self.values[rows, layer]
        where = self.arguments[layer][0].device
        with _giving(self.lm.site(layer), values[:, None].to(where)):
            arguments = [argument[rows.to(where)] for argument in self.arguments[layer]]
            result: Tensor = _last_module(self.lm, layer)(*arguments)
        return result[:, 0].to(self.lm.device)

    def _from_the_next(
        self, rows: Mapping[int, Tensor], values: Mapping[int, Tensor]
    ) -> Float[Tensor, "all_rows d_model"]:
        def arriving(layer: int, before: Tensor) -> Tensor:
            if layer - 1 not in rows:
                return before
            asked = rows[layer - 1]
            clean = self.run.layer_inputs[layer][asked][:, self.start :]
            new = self.output(layer - 1, asked, values[layer - 1])
            return torch.cat([before, clean.index_put(self._at(asked), new)])

        at = self._at(torch.cat(list(rows.values())))
        with _narrowed(self.lm, at) if self.ways.narrow else nullcontext():
            hidden = resume(
                self.lm,
                self.run,
                joins={layer + 1: asked for layer, asked in rows.items()},
                start=self.start,
                hook=lambda _, __, unchanged: unchanged,
                arriving=arriving,
            )
        return hidden[:, 0] if self.ways.narrow else hidden[at]

    def _from_the_layer(
        self, rows: Mapping[int, Tensor], values: Mapping[int, Tensor]
    ) -> Float[Tensor, "all_rows d_model"]:
        def change(layer: int, _: Tensor, old: Tensor) -> Tensor:
            if layer not in rows:
                return old
            n = len(rows[layer])
            new = old[-n:].detach().index_put(self._at(rows[layer]), values[layer])
            return torch.cat([old[:-n], new])

        hidden = resume(self.lm, self.run, joins=rows, start=self.start, hook=change)
        return hidden[self._at(torch.cat([rows[layer] for layer in sorted(rows)]))]

    def _at(self, rows: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """Return the index of the rows' positions in ``[n, Tq]``."""
        return torch.arange(len(rows), device=rows.device), self.positions[rows] - self.start


@torch.no_grad()
def clean_sites(
    lm: LanguageModel, ids: Int[Tensor, "B T"], positions: Int[Tensor, " B"]
) -> CleanSites:
    """Run rows of equal length once, remembering what sites see at ``positions``.

    Args:
        positions: one for each row; for a causal model the last.
    """
    if not may_resume(lm, ids.shape[1]) or lm.architecture.unrolled:
        return _clean_sites(lm, ids, positions, Ways("layer"))
    ways = lm.memo.get(
        ("ways after a site",),
        lambda: _find_ways(_clean_sites(lm, ids[:1], positions[:1], Ways("rerun"))),
    )
    return _clean_sites(lm, ids, positions, ways)


def _clean_sites(lm: LanguageModel, ids: Tensor, positions: Tensor, ways: Ways) -> CleanSites:
    at = torch.arange(len(ids), device=ids.device), positions
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    arguments: dict[int, tuple[Tensor, ...]] = {}
    outputs: list[Tensor] = []

    def keep(layer: int, entering: Tensor, leaving: Tensor) -> Tensor:
        keys[layer], values[layer] = (t.reshape(*ids.shape, -1)[at] for t in (entering, leaving))
        return leaving

    def keep_arguments(layer: int, args: Any) -> None:
        if all(isinstance(arg, Tensor) and arg.shape[:2] == ids.shape for arg in args):
            arguments[layer] = tuple(arg[_on(arg.device, at)][:, None] for arg in args)

    def keep_output(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).to(lm.device)[at])

    with ExitStack() as stack:
        stack.enter_context(lm.site_hooks(keep, range(lm.n_layers)))
        stack.callback(lm.layers[-1].register_forward_hook(keep_output).remove)
        for layer in range(lm.n_layers) if ways.after == "rerun" else ():
            hook = _last_module(lm, layer).register_forward_pre_hook(
                lambda _, args, layer=layer: keep_arguments(layer, args)
            )
            stack.callback(hook.remove)
        run = clean_run(lm, ids)
    layers = range(lm.n_layers)
    outputs = [*(entering[at] for entering in run.layer_inputs[1:]), outputs[-1]]
    return CleanSites(
        lm,
        run,
        positions,
        torch.stack([keys[layer] for layer in layers], 1),
        torch.stack([values[layer] for layer in layers], 1),
        torch.stack(outputs, 1),
        tuple(arguments.get(layer, ()) for layer in layers),
        ways,
    )


# -- asking the model ----------------------------------------------------------------------


def _find_ways(clean: CleanSites) -> Ways:
    """Return the first way that gives, for every layer, what running the layer gives."""
    lm = clean.lm
    rows = {
        layer: torch.zeros(1, dtype=torch.long, device=lm.device) for layer in range(lm.n_layers)
    }
    # on the scale of what it is added to, so that half precision does not round it away
    size = clean.outputs.float().square().mean().sqrt().clamp_min(1).to(lm.dtype)
    probe = torch.linspace(-2, 2, lm.d_model, device=lm.device, dtype=lm.dtype) * size
    values = {layer: clean.values[:, layer] + probe for layer in rows}
    expected = replace(clean, ways=Ways("layer")).changed(rows, values)
    effect = (expected - clean.last_hidden).float().abs().amax(1)
    rounding = 64 * torch.finfo(lm.dtype).eps * (float(expected.float().abs().max()) + 1)

    def holds(ways: Ways) -> bool:
        if ways.after == "rerun" and not all(clean.arguments):
            return False
        try:
            changed = replace(clean, ways=ways).changed(rows, values)
        except (RuntimeError, TypeError, IndexError):  # shapes that do not fit
            return False
        error = (changed - expected).float().abs().amax(1)
        # in half precision, rounding alone may reach the size of the effect: bound by that as well
        return bool((error <= rounding).all() and (error <= 0.1 * effect).all())

    for way in (Ways("added"), Ways("rerun")):
        if holds(way):
            narrow = replace(way, narrow=True)
            return narrow if not lm.is_causal and holds(narrow) else way
    return Ways("layer")


# -- pieces of a forward pass --------------------------------------------------------------


def _last_module(lm: LanguageModel, layer: int) -> nn.Module:
    return submodule(lm.layers[layer], lm.architecture.mlp)


@contextmanager
def _giving(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Let ``module`` return ``output`` whatever it is given."""
    with replaced_forward(module, lambda *_, **__: output):
        yield


def _on(device: torch.device, at: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return an index of tensors that lie on ``device``."""
    return tuple(index.to(device) for index in at)


def _narrowed(lm: LanguageModel, at: tuple[Tensor, Tensor]) -> AbstractContextManager[object]:
    """Cut the last layer's attention output to one position of each row, ``[rows, 1, d_model]``."""

    def cut(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0][_on(output[0].device, at)][:, None], *output[1:])
        return output[_on(output.device, at)][:, None]

    stack = ExitStack()
    attention = submodule(lm.layers[-1], lm.architecture.attention)
    stack.callback(attention.register_forward_hook(cut).remove)
    return stack


def _ended(lm: LanguageModel, output: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Return what the head reads where the last layer gives ``output``, a final norm included."""
    with ExitStack() as stack:
        stack.enter_context(skipping(lm, range(lm.n_layers)))
        stack.enter_context(lm.input_hooks(lambda _, __: output[:, None], [0]))
        ids = torch.zeros(len(output), 1, dtype=torch.long, device=output.device)
        # without a cache, transformers waits for the device to see whether rows are packed
        cache = {"past_key_values": DynamicCache()} if lm.is_causal else {}
        hidden: Tensor = lm.hidden(ids, **cache).last_hidden_state
    return hidden[:, 0]
