"""unfused: a linear of which only some outputs are read makes only those.

before   y = linear(x, w, b);  q, _ = split(y, [n, m])         after    q = linear(x, w[:n], b[:n])

Requires   a graph without dead nodes
Ensures    the same values up to rounding
Refuses    silently leaves a linear that is read in another way than in runs of channels
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.nn import functional

from hicache_compile.passes.analysis.mlps import Projection, part_of
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import fake_mode_of


def unfuse(graph: fx.Graph) -> None:
    """Rewrite ``graph`` in place."""
    for linear in [node for node in graph.nodes if ops.op(node) == "linear"]:
        parts = _parts(linear)
        width = ops.value(linear).shape[-1]
        if parts and sum(stop - start for _, start, stop in parts) < width:
            for part, start, stop in parts:
                part.replace_all_uses_with(_linear(graph, part, Projection(linear, start, stop)))
            for node in dict.fromkeys([*(part for part, _, _ in parts), *linear.users, linear]):
                if not node.users:
                    graph.erase_node(node)


def _parts(linear: fx.Node) -> list[tuple[fx.Node, int, int]]:
    """What is read of ``linear``, as runs of channels; nothing where it is read in another way."""
    readers = [reader for user in linear.users for reader in ([user] if ops.is_tensor(user) else user.users)]
    found = [(reader, part_of(reader)) for reader in readers]
    if any(part is None or part[0] is not linear for _, part in found):
        return []
    return [(reader, part[1], part[2]) for reader, part in found if part is not None]


def _linear(graph: fx.Graph, at: fx.Node, projection: Projection) -> fx.Node:
    """``projection`` as a linear of its own, before ``at``."""
    rows = slice(projection.start, projection.stop)

    def call(function: object, *args: fx.Node | slice | None) -> fx.Node:
        with graph.inserting_before(at):
            made = graph.call_function(function, args)  # type: ignore[arg-type]  # a function
        with fake_mode_of(ops.value(at)), torch.no_grad():
            example = function(*fx.node.map_arg(args, ops.value))  # type: ignore[operator]  # a function
        made.meta = {**projection.node.meta, "example_value": example}
        return made

    weight = call(operator.getitem, projection.weight, rows)
    bias = None if projection.bias is None else call(operator.getitem, projection.bias, rows)
    return call(functional.linear, projection.x, weight, bias)
