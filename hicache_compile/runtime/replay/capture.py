"""Capturing a denoiser outside of sampling: one call, one graph."""

from __future__ import annotations

import functools
import inspect
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.runtime.call_arguments import by_name
from hicache_compile.runtime.replay.dispatch_modes import set_aside

_frames = itertools.count()
DATA_DEPENDENT_OPS = functools.partial(torch._dynamo.config.patch, capture_dynamic_output_shape_ops=True)
# Entries for one piece of code: the sizes of a denoiser, or submodules that break the graph in many denoisers.
MOST_ENTRIES = 256
ENTRIES = functools.partial(
    torch._dynamo.config.patch, recompile_limit=MOST_ENTRIES, accumulated_recompile_limit=8 * MOST_ENTRIES
)


def own_frame(model: Callable[..., Any]) -> types.FunctionType:
    """A function that calls ``model``, with a code object of its own."""

    def denoise(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return with_own_code(denoise)


def with_own_code(function: Any) -> types.FunctionType:
    """``function`` with a code object of its own.

    Dynamo counts recompiles by code object, and all models of one class share that of ``forward``: many
    compiled denoisers in a process would use up one another's limit and silently run eagerly. It has a name of its
    own too, by which Dynamo remembers the sizes it saw: they would make another denoiser's sizes dynamic.
    """
    name = f"{function.__name__}_{next(_frames)}"
    return types.FunctionType(
        function.__code__.replace(co_name=name), function.__globals__, name, None, function.__closure__
    )


def as_call(example_inputs: Any, owner: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``example_inputs`` as positional and named arguments.

    Raises:
        HiCacheError: it is neither a mapping nor a sequence of arguments.
    """
    if isinstance(example_inputs, torch.Tensor | str) or not isinstance(example_inputs, Mapping | Sequence):
        kind = type(example_inputs).__name__
        raise HiCacheError(f"{owner}.example_inputs is a {kind}: must be a dict, a tuple or a list of arguments")
    return ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (tuple(example_inputs), {})


@dataclass(frozen=True, slots=True)
class CapturedCall:
    """One call of a denoiser: its graph, what went into the graph, what the denoiser was given and returned."""

    model: nn.Module
    captured: fx.GraphModule
    inputs: Sequence[Any]
    arguments: dict[str, Any]
    outputs: Sequence[Any]
    returned: Any


def capture_call(model: nn.Module, example_inputs: Any, owner: str, dynamic: bool | str = False) -> CapturedCall:
    """Call ``model`` once, eagerly, and keep its graph.

    Args:
        model: the denoiser; on the ``meta`` device nothing is computed.
        example_inputs: the arguments of one call, by name or in order.
        owner: whose argument that is, for messages.
        dynamic: which sizes may vary: all, none, or with ``"batch"`` the first of every tensor that has the first
            tensor's.

    Raises:
        HiCacheError: the arguments are of no use, or Dynamo captures several graphs.
    """
    args, kwargs = as_call(example_inputs, owner)
    if dynamic == "batch":
        args, kwargs = _batch_may_vary(args, kwargs, owner)
    seen: list[tuple[fx.GraphModule, Sequence[Any], Sequence[Any]]] = []

    def receive(dynamo_graph: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        captured = capture(dynamo_graph)

        def run(*inputs: Any) -> Any:
            outputs = dynamo_graph(*inputs)
            seen.append((captured, inputs, outputs))
            return outputs

        return run

    compiled = torch._dynamo.optimize(receive, dynamic=dynamic is True)(own_frame(model))
    floats_are_fixed = torch._dynamo.config.patch(specialize_float=True)  # else a norm's epsilon becomes an input
    with torch.no_grad(), set_aside(), DATA_DEPENDENT_OPS(), floats_are_fixed:
        returned = compiled(*args, **kwargs)
    if len(seen) != 1:
        raise HiCacheError(f"{owner}.model was captured in {len(seen)} graphs: must be one")
    arguments = by_name(inspect.signature(model.forward), args, kwargs)
    captured, inputs, outputs = seen[0]
    return CapturedCall(model, captured, inputs, arguments, outputs, returned)


def _batch_may_vary(args: Any, kwargs: Any, owner: str) -> Any:
    """The same arguments in tensors of their own, marked."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    batch = tensors[0].shape[0] if tensors else 0
    if batch < 2:
        raise HiCacheError(f"{owner}.example_inputs have a batch of {batch}: must be 2 or more where it may vary")

    def marked(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach()
        if own.dim() and own.shape[0] == batch:
            torch._dynamo.maybe_mark_dynamic(own, 0)
        return own

    return pytree.tree_map_only(torch.Tensor, marked, (args, kwargs))
