"""local: a linear over weights that ranks have parts of (tensor parallel) is a linear over this rank's part.

before   d = from_local(x, mesh, [R]);  y = linear(d, W, b)             W: rows of it on each rank
         y = redistribute(y, [S(-1)]).to_local()
after    y = linear(x, W.to_local(), b.to_local())

before   d = from_local(x, mesh, [S(-1)]);  y = linear(d, W, b)         W: columns of it on each rank
         y = redistribute(y, [R]).to_local()
after    y = linear(x, W.to_local());  d = from_local(y, mesh, [P])
         y = redistribute(d, [R]).to_local() + b.to_local()

Requires   a captured graph
Ensures    the same values up to the order of sums, and the same collectives; what looks for linears finds those that
           are split over ranks as well, by their sizes on this rank
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hicache_compile.operators.collectives import is_dtensor, local_part
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import drop_dead_code
from hicache_compile.passes.work import Work


def localise_linears(work: Work) -> int:
    """Write the linears of the working copy as those of this rank; returns how many."""
    graph = work.module.graph
    found = [split for node in graph.nodes if (split := _split(node)) is not None]
    for split in found:
        split.write(graph)
    if found:
        drop_dead_code(graph)
        graph.lint()
        work.module.recompile()
    return len(found)


class _Split:
    """A linear over parts of a weight: what it is given, and the value that it leaves on this rank."""

    def __init__(self, node: fx.Node, entry: fx.Node, moved: fx.Node, left: fx.Node, by_rows: bool) -> None:
        self.node, self.entry, self.moved, self.left, self.by_rows = node, entry, moved, left, by_rows

    def write(self, graph: fx.Graph) -> None:
        node, x = self.node, self.entry.args[0]
        weight, bias = (ops.argument(node, place, name) for place, name in ((1, "weight"), (2, "bias")))
        with graph.inserting_before(node):
            mine = (x, _mine(graph, weight), *([_mine(graph, bias)] if self.by_rows and bias is not None else []))
            linear = graph.call_function(node.target, mine)  # type: ignore[arg-type]  # a function
        linear.meta = {**node.meta, "example_value": local_part(ops.value(node))}
        if self.by_rows:
            self.left.replace_all_uses_with(linear)
            return
        with graph.inserting_before(node):
            (_, mesh, _), settings = self.entry.args, self.entry.kwargs
            joined = graph.call_function(self.entry.target, (linear, mesh, ops.value(node).placements), settings)  # type: ignore[arg-type]
        joined.meta = dict(node.meta)
        self.moved.replace_input_with(node, joined)
        if bias is not None:
            with graph.inserting_after(self.left):
                total = graph.call_function(torch.add, (self.left, self.left))
            self.left.replace_all_uses_with(total)
            with graph.inserting_before(total):
                total.args = (self.left, _mine(graph, bias))
            total.meta = dict(self.left.meta)


def _mine(graph: fx.Graph, value: fx.Node) -> fx.Node:
    """This rank's part of ``value``."""
    part = graph.call_method("to_local", (value,))
    part.meta = {"path": "", "calls": (), "example_value": local_part(ops.value(value))}
    return part


def _split(node: fx.Node) -> _Split | None:
    """``node``, if it is a linear that is written as this rank's."""
    if ops.op(node) != "linear" or not is_dtensor(ops.value(node)):
        return None
    entry, weight = ops.argument(node, 0, "input"), ops.argument(node, 1, "weight")
    moved = _only_user(node, "redistribute")
    left = None if moved is None else _only_user(moved, "to_local")
    if moved is None or left is None or ops.op(entry) != "from_local" or not is_dtensor(ops.value(weight)):
        return None
    (made, *others), (given, *_), (to, *_) = (_placements(one) for one in (weight, entry, moved))
    if others or made.is_replicate() or made.is_partial():
        return None
    width = ops.value(entry).dim() - 1
    if made.is_shard(0) and given.is_replicate() and to.is_shard(width):
        return _Split(node, entry, moved, left, by_rows=True)
    if made.is_shard(1) and given.is_shard(width) and to.is_replicate():
        return _Split(node, entry, moved, left, by_rows=False)
    return None


def _placements(node: fx.Node) -> Any:
    return ops.value(node).placements


def _only_user(node: fx.Node, name: str) -> fx.Node | None:
    (user, *others) = node.users
    return user if not others and ops.op(user) == name else None
