"""Write ``x += y`` as ``x = x + y`` where nobody can tell the difference.

before   x_1 = iadd(x, y)         after   x_1 = add(x, y)

Requires   a captured graph
Ensures    the same values, bit for bit
Refuses    silently leaves an op in place when its target is an input of the denoiser or a view of
           one, when the target or a view of it is read later, or when the sum has another dtype
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from hicache_compile.passes.graph import ops

OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "iadd": operator.add,
    "add_": torch.add,
    "isub": operator.sub,
    "sub_": torch.sub,
    "imul": operator.mul,
    "mul_": torch.mul,
    "itruediv": operator.truediv,
    "div_": torch.div,
}


def functionalise(graph: fx.Graph) -> int:
    """Rewrite ``graph`` in place; returns how many ops were rewritten."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    rewritten = 0
    for node in list(graph.nodes):
        if ops.op(node) in OUT_OF_PLACE and ops.mutated(node) and _is_private(node, order):
            with graph.inserting_before(node):
                new = graph.call_function(OUT_OF_PLACE[ops.op(node)], node.args, node.kwargs)
            new.meta = dict(node.meta)
            order[new] = order[node]
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            rewritten += 1
    return rewritten


def _is_private(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    target = node.args[0]
    assert isinstance(target, fx.Node)
    operands = [argument for argument in node.all_input_nodes if ops.is_tensor(argument)]
    dtype = ops.value(target).dtype
    for operand in operands:
        wider = ops.value(operand).dim() > 0 and torch.promote_types(dtype, ops.value(operand).dtype) != dtype
        if wider or (operand is not target and ops.shares_storage(operand, target)):
            return False
    return not any(_sees(other, node, target, order) for other in order if other is not node)


def _sees(other: fx.Node, node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether writing to ``target`` would show in ``other``: a view of it that is an input or is read later."""
    if not ops.shares_storage(other, target):
        return False
    came_before = order[other] < order[node]
    read_later = any(order[user] > order[node] for user in other.users)
    return came_before and (other.op in ("placeholder", "get_attr") or read_later)
