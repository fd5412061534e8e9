"""diffusers' layerwise casting, in a form a graph can hold.

``enable_layerwise_casting`` keeps weights in a narrow dtype and casts a layer's parameters in place before and after
each of its calls, which breaks the graph at every layer. The same layer with its weights cast on the way in computes
the same numbers bit for bit and needs no writing, so its hook is told to do that instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hicache_compile import internals
from hicache_compile.internals import CASTING


def cast_in_the_graph(model: nn.Module) -> int:
    """Let the layerwise casting hooks of ``model`` cast without writing; returns how many there are."""
    found = 0
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in getattr(registry, "hooks", {}).values():
            casts = hasattr(hook, "storage_dtype") and hasattr(hook, "compute_dtype")
            if casts and not isinstance(hook.fn_ref.forward, _Casting):
                CASTING.require()
                hook.fn_ref.pre_forward = _as_given
                hook.fn_ref.post_forward = _as_returned
                hook.fn_ref.forward = _Casting(module, hook.fn_ref.forward, hook.compute_dtype)
                found += 1
    return found


class _Casting:
    """``forward`` of ``module`` with its floating parameters and buffers in ``dtype``."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any], dtype: torch.dtype) -> None:
        self.module = module
        self.forward = forward
        self.dtype = dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        cast = {name: tensor.to(self.dtype) for name, tensor in tensors.items() if tensor.is_floating_point()}
        with internals.reparametrize_module(self.module, cast):
            return self.forward(*args, **kwargs)


def _as_given(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def _as_returned(module: nn.Module, output: Any) -> Any:
    return output
