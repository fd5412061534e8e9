"""Concrete values of the symbolic sizes of a dynamic graph, from the inputs of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.internals import has_free_unbacked_symbols
from hicache_compile.passes.graph import ops

Bindings = dict[Any, int]
UNBOUNDED = 2**48  # nothing is known of a size that may be larger


def is_dynamic(example: Any) -> bool:
    """Whether an input of the graph is a symbolic size or has one in its shape."""
    if isinstance(example, torch.Tensor):
        return any(isinstance(size, torch.SymInt) for size in example.shape)
    return isinstance(example, torch.SymInt)


def bind_symbols(inputs: Sequence[fx.Node], actual: Sequence[Any]) -> Bindings:
    """Symbol -> value, from the symbolic sizes at capture and the sizes of ``actual``."""
    bindings: Bindings = {}
    for node, given in zip(inputs, actual, strict=True):
        example = ops.value(node)
        if isinstance(example, torch.SymInt):
            _bind(bindings, example, given)
        elif isinstance(example, torch.Tensor):
            for size, real in zip(example.shape, given.shape, strict=True):
                if isinstance(size, torch.SymInt):
                    _bind(bindings, size, real)
    return bindings


def concrete(shape: Sequence[int | torch.SymInt], bindings: Bindings) -> tuple[int, ...]:
    """``shape`` as plain integers; a symbol without a binding has its value at capture, a size that depends on data the
    largest that it may be."""
    return tuple(_whole(size, bindings) if isinstance(size, torch.SymInt) else size for size in shape)


def _whole(size: torch.SymInt, bindings: Bindings) -> int:
    bound = size.node.expr.subs(bindings)
    if not bound.free_symbols:
        return int(bound)
    if size.node.hint is not None:
        return int(size.node.hint)
    largest = size.node.shape_env.bound_sympy(bound).upper
    return int(largest) if largest.is_Integer and largest < UNBOUNDED else 1


def _bind(bindings: Bindings, size: torch.SymInt, real: int) -> None:
    expression = size.node.expr
    if expression.is_Symbol:
        bindings[expression] = int(real)


def share_at_data(captured: fx.GraphModule) -> float:
    """The share of the products and attentions whose sizes depend on data, which no forecast can stand in for."""
    heavy = [node for node in captured.graph.nodes if ops.op(node) in ops.HEAVY and ops.is_tensor(node)]
    return sum(has_free_unbacked_symbols(ops.value(node)) for node in heavy) / max(1, len(heavy))
