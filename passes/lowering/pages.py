"""paged: a program whose rows are of several runs, each at a step of its own.

before   y = x + gate * forecast(anchors_0, weights);  remember(anchors_0, position, value)
after    y = x + gate * forecast_rows(anchors_0, rows, weights, 0);  remember_rows(anchors_0, rows, position, value, 0)

Requires   a straight-line program of a graph that was captured with a symbolic batch
Ensures    what lasts is read and written by page (see ``operators.pages``); inputs ``rows [B]``, ``weights [B, K]`` (or
           ``[B, R, K]``) and ``position [B, groups]`` are of each row; what is measured is ``[B, n]``;
           ``meta["rows"]`` has the batch dimension of what probes hand over
Refuses    what lasts without a batch dimension, and is written by an operator of another kind
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.operators import anchors, measurements, pages
from hicache_compile.passes.analysis.batch import Batch, NotByRowError
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, module_of, placeholders
from hicache_compile.passes.graph.inputs import KEPT, MEASURED, SCALE, Role, StateInput, add_input, role_of, state_of
from hicache_compile.passes.graph.parts import how

ROWS = StateInput(Role.ROWS)


def by_pages(program: fx.GraphModule, batch: Batch, capacity: int) -> fx.GraphModule:
    """``program`` by pages of pools that hold ``capacity``.

    Raises:
        NotByRowError: its rows cannot be told apart.
    """
    return _Writer(program, batch, capacity).write()


def page_dim(state: StateInput, value: torch.Tensor, batch: Batch) -> int | None:
    """The batch dimension of a row of the ring, or of the memory, ``state``.

    Raises:
        NotByRowError: it has none, and is of no kind that can be kept by row.
    """
    shape = value[0] if state.role is Role.ANCHORS else value
    found = batch.dim_of(shape, str(state))
    if found is None and not state.name.startswith((MEASURED, SCALE)):
        if state.role is Role.MEMORY and value.dim() and value.shape[0] == 1:
            return 0  # of something that all rows have in common, at steps of their own
        raise NotByRowError(f"{state}: it has no batch dimension")
    return found


class _Writer:
    def __init__(self, program: fx.GraphModule, batch: Batch, capacity: int) -> None:
        self.origin = program
        self.batch = batch
        self.capacity = capacity
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.kept = {node: state for node in placeholders(program) if (state := state_of(node)) and state.role in KEPT}
        self.dims = {node: page_dim(state, ops.value(node), batch) for node, state in self.kept.items()}
        self.rows: fx.Node | None = None

    def write(self) -> fx.GraphModule:
        inputs = placeholders(self.origin)
        for node in inputs:
            self._input(node)
        if self.kept:
            like = ops.value(next(iter(self.kept)))
            with fake_mode_of(like):
                example = torch.zeros(self.batch.size, dtype=torch.int64, device=like.device)
            self.rows = add_input(self.graph, ROWS, example)
        for node in self.origin.graph.nodes:
            if node.op != "placeholder":
                self.env[node] = self._node(node)
        made = module_of(self.graph, self.origin)
        handed = {state_of(node): node for node in inputs if role_of(node) is Role.VALUE}
        made.meta["rows"] = {state: self.batch.dim_of(ops.value(node), node.name) for state, node in handed.items()}
        return made

    def _input(self, node: fx.Node) -> None:
        new = self.env[node] = copy_node(self.graph, node, self.env.__getitem__)
        example = ops.value(node)
        if node in self.kept:
            page = [1 if self.batch.is_size(size) else size for size in example.shape]
            new.meta = {**node.meta, "example_value": self._fake(example, (self.capacity, *page))}
        elif role_of(node) in (Role.POSITION, Role.WEIGHTS, Role.DRAW):
            new.meta = {**node.meta, "example_value": self._fake(example, (self.batch.size, *example.shape))}

    def _fake(self, like: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
        with fake_mode_of(like):
            return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)

    def _node(self, node: fx.Node) -> fx.Node:
        arguments: Any = node.args
        if ops.op(node) == "getitem" and role_of(arguments[0]) in (Role.POSITION, Role.WEIGHTS):
            source, place = arguments
            picked = self._call(node, operator.getitem, self.env[source], (slice(None), place))
            one = role_of(source) is Role.POSITION and isinstance(place, slice)
            return self._call(node, torch.squeeze, picked, 1) if one else picked
        made = _WRITERS.get(node.target)
        if made is not None:
            return made(self, node, *arguments)
        written = node.all_input_nodes if ops.op(node) == ops.OPAQUE else ops.mutated(node)
        if self.kept.keys() & set(written):
            raise NotByRowError(f"{node.name}: what it keeps from step to step cannot be told apart by row")
        new = copy_node(self.graph, node, self._value)
        if node.target in measurements.BY_ROW:
            self._check_measured(node)
            new.kwargs = {**new.kwargs, "by_row": True}
        return new

    def _check_measured(self, node: fx.Node) -> None:
        """Measurements take the first dimension of a value for its samples."""
        for value in node.all_input_nodes:
            dim = self.batch.dim_of(ops.value(value), value.name)
            if dim:
                raise NotByRowError(f"{value.name}: a guard measures it, and its samples are in dimension {dim}, not 0")

    def _value(self, node: fx.Node) -> fx.Node:
        """``node`` as other nodes read it; what lasts is gathered."""
        if node not in self.kept:
            return self.env[node]
        return self._call(node, pages.read, self.env[node], self.rows, self.dims[node])

    def _call(self, of: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call in place of the node ``of``."""
        new = self.graph.call_function(function, args)
        new.meta = {key: value for key, value in of.meta.items() if key not in _OF_INPUTS}
        return new

    def forecast(
        self, node: fx.Node, ring: fx.Node, weights: fx.Node, dtype: torch.dtype | None = None, parts: Any = None
    ) -> fx.Node:
        row = self._value(weights)
        read = self.env[ring], self.rows, row, self.dims[ring], *how(dtype, parts)
        return self._call(node, pages.forecast_rows, *read)

    def remember(self, node: fx.Node, ring: fx.Node, position: fx.Node, value: fx.Node) -> fx.Node:
        row = self.env[position]
        if role_of(position) is Role.POSITION:
            row = self._call(node, torch.squeeze, row, 1)
        return self._call(node, pages.remember_rows, self.env[ring], self.rows, row, self.env[value], self.dims[ring])

    def keep(self, node: fx.Node, memory: fx.Node, value: fx.Node) -> fx.Node:
        return self._call(node, pages.write, self.env[memory], self.rows, self._value(value), self.dims[memory])

    def scale_of(self, node: fx.Node, value: fx.Node, dtype: torch.dtype) -> fx.Node:
        return self._call(node, pages.scale_of_rows, self.env[value], dtype, self._dim(value))

    def quantised(self, node: fx.Node, value: fx.Node, scale: fx.Node, dtype: torch.dtype) -> fx.Node:
        factor = self._call(node, pages.along, self.env[scale], self.env[value], self._dim(value))
        return self._call(node, anchors.quantised, self.env[value], factor, dtype)

    def _dim(self, node: fx.Node) -> int:
        found = self.batch.dim_of(ops.value(node), node.name)
        if found is None:
            raise NotByRowError(f"{node.name}: it has no batch dimension")
        return found


_OF_INPUTS = ("state", "slot", "input", "tensor_dict")
_WRITERS: dict[Any, Callable[..., fx.Node]] = {
    anchors.forecast: _Writer.forecast,
    anchors.remember: _Writer.remember,
    measurements.keep: _Writer.keep,
    anchors.scale_of: _Writer.scale_of,
    anchors.quantised: _Writer.quantised,
}
