"""GPUs that are none: tensors in the host's memory, of which torch is told that they lie elsewhere.

While the mode is open, ``tensor.device``, ``.to``, ``.cpu`` and every ``device=`` speak of virtual
GPUs, and an operation on tensors of different ones raises, as it does on real ones. The numbers are
those of the host, so a model that is spread over two must give exactly what it gives on one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kn_bench.model.language_model import LanguageModel

HOST = torch.device("cpu")
MOVES = {torch.Tensor.copy_, torch.Tensor.data.__set__, torch.Tensor.set_}  # type: ignore[attr-defined]
"""What may be done to tensors of different devices."""
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.index_put}
"""Here indices may lie on the host."""


class VirtualGpus(TorchFunctionMode):
    """Open as a context: everything inside believes in them."""

    def __init__(self) -> None:
        super().__init__()
        # by storage: a view, a parameter and its data lie where the storage does. The weak
        # reference keeps the key from being given to another one.
        self._where: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return self.device(args[0])
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return self.device(args[0]).type == "cuda"
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and self.device(args[0]) != HOST:
            raise TypeError(f"can't convert {self.device(args[0])} device type tensor to numpy")
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._to(func, *args, **kwargs)
        given = kwargs.pop("device", None)
        where = self._common(func, args, kwargs)
        result = func(*args, **kwargs)
        if func not in MOVES:
            where = torch.device(given) if given is not None else where
            if func is torch.autograd.grad:
                inputs = args[1] if len(args) > 1 else kwargs["inputs"]
                for tensor, one in zip(result, tree_leaves(inputs), strict=True):
                    self._put(tensor, self.device(one))
            else:
                for tensor in tensors(result):
                    self._put(tensor, where)
        return result

    def device(self, tensor: Tensor) -> torch.device:
        known = self._where.get(_storage(tensor))
        return known[1] if known else HOST

    def _put(self, tensor: Tensor, device: torch.device) -> None:
        if device.type != "cpu":
            storage = tensor.untyped_storage()
            self._where[storage._cdata] = StorageWeakRef(storage), device

    def _common(self, func: Callable[..., Any], args: Any, kwargs: Any) -> torch.device:
        """Where an operation takes place, by its tensors."""
        involved = tensors((args, kwargs))
        # numbers on the host go with everything
        devices = {self.device(t) for t in involved if t.ndim or self.device(t) != HOST}
        if func in INDEXING and devices and self.device(involved[0]) != HOST:
            devices -= {HOST}
        if func in MOVES:
            return self.device(involved[0])
        if len(devices) > 1:
            names = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"{func.__name__}: expected all tensors on one device, not {names}")
        return devices.pop() if devices else HOST

    def _to(self, func: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if func is torch.Tensor.cpu:
            args = (HOST,)
        elif func is torch.Tensor.cuda:
            args = (torch.device("cuda", *args),)
        if args and isinstance(args[0], Tensor):
            args = (self.device(args[0]), args[0].dtype)
        copy = kwargs.pop("copy", False)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        device = self.device(tensor) if device is None else device
        if device == torch.device("cuda"):
            device = torch.device("cuda", 0)
        if device == self.device(tensor) and dtype in (None, tensor.dtype) and not copy:
            return tensor
        moved = tensor.clone() if dtype is None else tensor.to(dtype, copy=True)
        self._put(moved, device)
        return moved


def tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def spread(lm: LanguageModel) -> None:
    """Lay ``lm`` over two virtual GPUs as accelerate does: the later layers on the second.

    Embeddings lie on the first; what follows the layers lies on the second, but for a head that
    shares its matrix with the embeddings.
    """
    from accelerate import dispatch_model

    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    names = {id(module): name for name, module in lm.hf.named_modules()}
    layers = {names[id(layer)]: index for index, layer in enumerate(lm.layers)}
    tied = lm.output_embeddings is lm.input_embeddings
    heads = {names[id(module)].partition(".")[0] for module in lm._heads}
    places: dict[str, torch.device] = {}
    for name, _ in lm.hf.named_parameters(remove_duplicate=False):
        module = name.rpartition(".")[0]
        layer = next((layer_ for layer_ in layers if name.startswith(layer_ + ".")), None)
        if layer is not None:
            places[layer] = first if layers[layer] < lm.n_layers // 2 else second
        elif module.partition(".")[0] in heads:
            places[module] = first if tied else second
        else:
            places[module] = second if layers.keys() & places.keys() else first
    dispatch_model(lm.hf, places, main_device=first)
