"""FSDP2's sharded weights, in a form a graph can hold.

``fully_shard`` gathers a module's weights in a hook before each of its calls and frees them in another one after it,
which breaks the graph at every module. While Dynamo traces, the hooks do nothing and the module gathers its weights
itself, as operators of the graph: so blocks are found as anywhere else, and a step that does not compute a block does
not gather its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hicache_compile import internals
from hicache_compile.internals import pytree
from hicache_compile.operators.collectives import is_dtensor


def gather_in_the_graph(model: nn.Module) -> list[str]:
    """Let the modules of ``model`` that FSDP2 shards gather their weights in the graph.

    Returns:
        of which modules the hooks break the graph as before, and why.
    """
    found = []
    for module in model.modules():
        state_of: Any = getattr(module, "_get_fsdp_state", None)
        if state_of is not None and internals.SHARDED and internals.CASTING:  # which has reparametrize_module
            with internals.SHARDED:  # a torch that keeps them in another way costs this feature
                found += _gather(module, state_of())
    return found


def _gather(module: Any, state: Any) -> list[str]:
    """Let ``module`` gather its weights where Dynamo traces it; else why it cannot."""
    if any(group.is_unsharded for group in state._fsdp_param_groups):
        module.reshard()  # a root keeps its weights gathered after a call of its own
    if isinstance(vars(module).get("forward"), _Gathering):
        return []
    mine = {id(each.sharded_param): each for group in state._fsdp_param_groups for each in group.fsdp_params}
    names = [name for name, weight in module.named_parameters() if id(weight) in mine]
    if len(state._modules) > 1 or len(names) < len(mine):
        return [f"{type(module).__name__} is sharded by FSDP2 in a group of modules"]
    if any(each.sharded_param.device_mesh != each.mesh_info.mesh for each in mine.values()):
        return [f"{type(module).__name__} is sharded by FSDP2 and in another way too"]
    if any(each.offload_to_cpu for each in mine.values()):
        return [f"{type(module).__name__} is sharded by FSDP2 with its weights on the CPU"]
    before, after = state._pre_forward_hook_handle.id, state._post_forward_hook_handle.id
    forward = _Gathering(module, module.forward, names, state._mp_policy)
    module._forward_pre_hooks[before] = _Before(module._forward_pre_hooks[before])
    module._forward_hooks[after] = _After(module._forward_hooks[after])
    module.forward = forward
    return []


class _Gathering:
    """``forward`` of ``module``, which gathers the weights ``names`` where Dynamo traces it."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any], names: Sequence[str], policy: Any) -> None:
        functools.update_wrapper(self, forward)
        self.module = module
        self.forward = forward
        self.names = names
        self.dtype: torch.dtype | None = policy.param_dtype
        self.returns: torch.dtype | None = policy.output_dtype
        self.takes: torch.dtype | None = policy.param_dtype if policy.cast_forward_inputs else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.forward(*args, **kwargs)
        args, kwargs = _cast(self.takes, args), _cast(self.takes, kwargs)
        weights = dict(self.module.named_parameters())
        gathered = {name: _gathered(weights[name], self.dtype) for name in self.names}
        with internals.reparametrize_module(self.module, gathered):
            return _cast(self.returns, self.forward(*args, **kwargs))


def _gathered(weight: Any, dtype: torch.dtype | None) -> torch.Tensor:
    """The whole of ``weight``, cast before it is sent."""
    given = weight if dtype is None else weight.to(dtype)
    return given.full_tensor() if is_dtensor(given) else given


def _cast(dtype: torch.dtype | None, values: Any) -> Any:
    if dtype is None:
        return values
    return pytree.tree_map_only(torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)


class _Hook:
    """A hook of FSDP2's, which does nothing while Dynamo traces."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own


class _Before(_Hook):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return args, kwargs
        return self.own(module, args, kwargs)


class _After(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_compiling():
            return output
        return self.own(module, args, output)
