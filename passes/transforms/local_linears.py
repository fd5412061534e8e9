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

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile.operators.collectives import is_dtensor, local_part
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import call_node, drop_dead_code
from hicache_compile.passes.work import Work


def localise_linears(work: Work) -> int:
    """Write the linears of the working copy as those of this rank; returns how many."""
    graph = work.module.graph
    found = [split for node in graph.nodes if (split := _split(node)) is not None]
    for split in found:
        (_write_rows if split.by_rows else _write_columns)(graph, split)
    if found:
        drop_dead_code(graph)
        graph.lint()
        work.module.recompile()
    return len(found)


@dataclass(frozen=True, slots=True)
class _Split:
    """A linear over rows (or columns) of a weight: what made its input of this rank's, what moves its output between
    ranks, and what is left of that on this rank."""

    linear: fx.Node
    entry: fx.Node
    moved: fx.Node
    left: fx.Node
    by_rows: bool

    @property
    def weight(self) -> fx.Node:
        node: fx.Node = ops.argument(self.linear, 1, "weight")
        return node

    @property
    def bias(self) -> fx.Node | None:
        node: fx.Node | None = ops.argument(self.linear, 2, "bias")
        return node


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
    width = ops.value(entry).dim() - 1
    by_rows = not others and made.is_shard(0) and given.is_replicate() and to.is_shard(width)
    by_columns = not others and made.is_shard(1) and given.is_shard(width) and to.is_replicate()
    return _Split(node, entry, moved, left, by_rows) if by_rows or by_columns else None


def _write_rows(graph: fx.Graph, split: _Split) -> None:
    node = split.linear
    with graph.inserting_before(node):
        parts = [_of_this_rank(graph, given) for given in (split.weight, split.bias) if given is not None]
        mine = call_node(graph, node.target, (split.entry.args[0], *parts), **node.meta)  # type: ignore[arg-type]
    split.left.replace_all_uses_with(mine)


def _write_columns(graph: fx.Graph, split: _Split) -> None:
    """The bias is added once, to the sum over ranks."""
    node, left = split.linear, split.left
    x, mesh, _ = split.entry.args
    with graph.inserting_before(node):
        mine = call_node(graph, node.target, (x, _of_this_rank(graph, split.weight)), **node.meta)  # type: ignore[arg-type]
        joined = graph.node_copy(split.entry)
    joined.args = (mine, mesh, ops.value(node).placements)
    joined.meta = dict(node.meta)
    split.moved.replace_input_with(node, joined)
    if split.bias is not None:
        with graph.inserting_before(left.next):
            whole = call_node(graph, torch.add, (left, _of_this_rank(graph, split.bias)), **left.meta)
        left.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)


def _of_this_rank(graph: fx.Graph, value: fx.Node) -> fx.Node:
    part = graph.call_method("to_local", (value,))
    part.meta = {"path": "", "calls": (), "example_value": local_part(ops.value(value))}
    return part


def _placements(node: fx.Node) -> Any:
    return ops.value(node).placements


def _only_user(node: fx.Node, name: str) -> fx.Node | None:
    (user, *others) = node.users
    return user if not others and ops.op(user) == name else None
