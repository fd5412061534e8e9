"""Capturing a denoiser outside of sampling: one call, one graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from hicache_compile.errors import HiCacheError
from hicache_compile.internals import (
    READINGS,
    dynamo_config,
    error_on_graph_break,
    maybe_mark_dynamic,
    optimize,
    pytree,
)
from hicache_compile.passes.graph.shapes import share_at_data
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.runtime.call_arguments import by_name
from hicache_compile.runtime.replay.dispatch_modes import set_aside
from hicache_compile.runtime.replay.frames import BREAKS_SET, DATA_DEPENDENT_OPS, UNTRACED, own_frame
from hicache_compile.runtime.replay.readings import Read, reading_frame
from hicache_compile.runtime.replay.state_kept import state_kept


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
    """Call ``model`` once, eagerly, and keep its graph. What its code reads of data on the host is constant there.

    Args:
        model: the denoiser; on the ``meta`` device nothing is computed, and nothing can be read.
        example_inputs: the arguments of one call, by name or in order.
        owner: whose argument that is, for messages.
        dynamic: which sizes may vary: all, none, or with ``"batch"`` the first of every tensor that has the first
            tensor's.

    Raises:
        HiCacheError: the arguments are of no use, or Dynamo cannot capture the call as one graph.
    """
    args, kwargs = as_call(example_inputs, owner)
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise HiCacheError(
            f"{owner}.example_inputs: {error}; must be the arguments of one call of {type(model).__name__}"
        ) from None
    if dynamic == "batch":
        args, kwargs = _batch_may_vary(args, kwargs, owner)
    reasons = list[str]()
    # Once more after a call has warmed the model up; no sizes stay that depend on data, so nothing is gained by JOINED.
    more = (Read.PICKED, Read.SWITCHES) if READINGS else ()
    for read in (Read.NOTHING, Read.NOTHING, *more):
        try:
            captured, inputs, outputs, returned = _traced(model, read, args, kwargs, dynamic is True)
        except UNTRACED as error:
            if not reasons:  # a first call may fill in what Dynamo cannot trace, as tables of rotary embeddings
                with set_aside(), state_kept(model, lambda: model(*args, **kwargs)):
                    model(*args, **kwargs)
            reasons.append((str(error).splitlines() or [type(error).__name__])[0])
        else:
            if share_at_data(captured) and more and read < more[-1]:
                reasons.append("the sizes of what it computes depend on data")
                continue
            arguments = by_name(inspect.signature(model.forward), args, kwargs)
            return CapturedCall(model, captured, inputs, arguments, outputs, returned)
    raise HiCacheError(f"{owner}.model cannot be captured as one graph: must be one; {reasons[0]}")


def _traced(
    model: nn.Module, read: Read, args: Any, kwargs: Any, dynamic: bool
) -> tuple[fx.GraphModule, Sequence[Any], Sequence[Any], Any]:
    """The graph of a call, what it was run on and returned, and what the call returned."""
    seen: list[tuple[fx.GraphModule, Sequence[Any], Sequence[Any]]] = []

    def receive(dynamo_graph: fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        captured = capture(dynamo_graph)

        def run(*inputs: Any) -> Any:
            outputs = dynamo_graph(*inputs)
            seen.append((captured, inputs, outputs))
            return outputs

        return run

    frame = reading_frame(model, read) if read else own_frame(model)
    compiled = optimize(receive, dynamic=dynamic)(frame)
    floats_are_fixed = dynamo_config.patch(specialize_float=True)  # else a norm's epsilon becomes an input
    one_graph = error_on_graph_break(True)
    kept = state_kept(model, lambda: model(*args, **kwargs))
    with kept, set_aside(), DATA_DEPENDENT_OPS(), floats_are_fixed, BREAKS_SET, one_graph:
        returned = compiled(*args, **kwargs)
    return *seen[0], returned


def _batch_may_vary(args: Any, kwargs: Any, owner: str) -> Any:
    """The same arguments in tensors of their own, marked."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    batch = tensors[0].shape[0] if tensors else 0
    if batch < 2:
        raise HiCacheError(f"{owner}.example_inputs have a batch of {batch}: must be 2 or more where it may vary")

    def marked(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.detach()
        if own.dim() and own.shape[0] == batch:
            maybe_mark_dynamic(own, 0)
        return own

    return pytree.tree_map_only(torch.Tensor, marked, (args, kwargs))
