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


class Symbols:
    """Where the symbolic sizes of a dynamic graph are among its ``inputs``: looked up once, read at every call."""

    def __init__(self, inputs: Sequence[fx.Node]) -> None:
        found: dict[Any, tuple[int, int | None]] = {}  # the place of an input, and its dimension; None: it is the size
        for place, node in enumerate(inputs):
            example = ops.value(node)
            if isinstance(example, torch.SymInt) and not example.node.is_nested_int():
                found.setdefault(example.node.expr, (place, None))
            elif isinstance(example, torch.Tensor) and not example.is_nested:  # lengths of its parts are no numbers
                for dim, size in enumerate(example.shape):
                    if isinstance(size, torch.SymInt):
                        found.setdefault(size.node.expr, (place, dim))
        self._found = [(symbol, *where) for symbol, where in found.items() if symbol.is_Symbol]

    def bind(self, actual: Sequence[Any]) -> Bindings:
        """Symbol -> value, from the sizes of ``actual``, the inputs of a call."""
        return {
            symbol: int(actual[place] if dim is None else actual[place].shape[dim])
            for symbol, place, dim in self._found
        }


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


def share_at_data(captured: fx.GraphModule) -> float:
    """The share of the products and attentions whose sizes depend on data, which no forecast can stand in for."""
    heavy = [node for node in captured.graph.nodes if ops.op(node) in ops.HEAVY and ops.is_tensor(node)]
    return sum(has_free_unbacked_symbols(ops.value(node)) for node in heavy) / max(1, len(heavy))
