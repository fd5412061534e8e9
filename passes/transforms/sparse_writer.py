"""Writes what takes the place of a marked node: calls before it, and memory that lasts from step to step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from hicache_compile.operators import measurements
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import fake_mode_of
from hicache_compile.passes.graph.inputs import add_input, memory, state_of
from hicache_compile.policy.sparsity.chipmunk import Chipmunk

_to = torch.ops.aten.to.dtype
MARK = "sparse"  # in the meta of a node that may be sparse: its number


class SparseWriter:
    """Writes nodes before ``node``, which is marked."""

    def __init__(self, graph: fx.Graph, node: fx.Node, chipmunk: Chipmunk) -> None:
        self.graph = graph
        self.node = node
        self.chipmunk = chipmunk
        self.number = int(node.meta[MARK])

    def value(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call of ``function``, named after it."""
        name = getattr(function, "__name__", "").split(".")[0]
        with self.graph.inserting_before(self.node):
            made = self.graph.create_node("call_function", function, args, name=name)
        example = self.example(function, *fx.node.map_arg(args, ops.value))
        made.meta = {"path": self.node.meta["path"], "calls": self.node.meta.get("calls", ()), "example_value": example}
        return made

    def values(self, function: Callable[..., Any], *args: Any) -> list[fx.Node]:
        """The results of a call of ``function`` that has several."""
        made = self.value(function, *args)
        return [self.value(operator.getitem, made, index) for index in range(len(ops.value(made)))]

    def cast(self, value: Any) -> Any:
        """``value`` in the dtype that the marked node computes in, which autocast may choose; ``None`` as it is."""
        dtype = ops.value(self.node).dtype
        return value if value is None or ops.value(value).dtype == dtype else self.value(_to, value, dtype)

    def example(self, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function`` returns for fake values."""
        with fake_mode_of(ops.value(self.node)), torch.no_grad():
            return function(*args)

    def changing(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call of ``function``, which writes into memory."""
        made = self.value(function, *args)
        made.meta["side_effect"] = True
        return made

    def memory(self, name: str, like: torch.Tensor) -> fx.Node:
        """An input that lasts from step to step, of the form of ``like``, made zero at the start of a run."""
        state = memory(name, self.number)
        known = next((node for node in self.graph.find_nodes(op="placeholder") if state_of(node) == state), None)
        if known is not None:
            return known
        made = self.example(lambda: torch.empty(like.shape, dtype=like.dtype, device=like.device))
        return add_input(self.graph, state, made)

    def keep(self, name: str, value: fx.Node) -> None:
        """Write ``value`` into the memory ``name``."""
        kept = self.memory(name, ops.value(value))
        with self.graph.inserting_before(self.node):
            written = self.graph.call_function(measurements.keep, (kept, value))
        written.meta = {"path": self.node.meta["path"], "calls": (), "side_effect": True}
