"""Capturing a model as a graph, and printing graphs short enough to review."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx, nn

from hicache_compile.operators.anchors import full_or_forecast
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_graph
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.passes.transforms.cut_sites import cut_sites, find_blocks
from hicache_compile.passes.work import Work
from hicache_compile.policy.layout import Layout


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> fx.GraphModule:
    """The captured graph of one call of ``model``."""
    found: list[fx.GraphModule] = []

    def receive(graph: fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(capture(graph))
        return graph.forward

    def denoise(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(denoise, backend=receive)(*args, **kwargs)
    assert len(found) == 1
    return found[0]


def cut(graph: fx.GraphModule, layout: Layout) -> Work:
    """``graph`` with the blocks and the sites of ``layout`` found, and nothing rewritten yet."""
    work = Work(graph, layout, copy_graph(graph)[0])
    find_blocks(work)
    cut_sites(work)
    return work


def count(module: fx.GraphModule) -> Counter[str]:
    """How often each op is called."""
    return Counter(ops.op(node) for node in module.graph.nodes if node.op.startswith("call"))


def listing(module: fx.GraphModule) -> str:
    """One line a node: ``name = op(arguments)``. Weights are left out of inputs and arguments."""
    lines = []
    for node in module.graph.nodes:
        if node.op == "placeholder" and node.meta.get("weight"):
            continue
        if node.op == "placeholder":
            shape = getattr(ops.value(node), "shape", None)
            lines.append(f"{_short(node)}: input{'' if shape is None else list(shape)}")
        elif node.op == "output":
            lines.append(f"return {_arguments(node.args[0])}")
        elif node.op == "get_attr":
            continue
        else:
            lines.append(f"{_short(node)} = {ops.op(node)}({_arguments(_visible(node))})")
    return "\n".join(lines)


def _visible(node: fx.Node) -> Any:
    if node.target is full_or_forecast:
        full, _, operands, carried, rings, _, _ = node.args
        return [full, operands, carried, rings]
    return [argument for argument in node.args if not (isinstance(argument, fx.Node) and argument.meta.get("weight"))]


def _arguments(argument: Any) -> str:
    if isinstance(argument, fx.Node):
        return "" if argument.meta.get("weight") else _short(argument)
    if isinstance(argument, list | tuple):
        inner = [_arguments(item) for item in argument if not (isinstance(item, fx.Node) and item.meta.get("weight"))]
        return "[" + ", ".join(inner) + "]"
    return repr(argument)


def _short(node: fx.Node) -> str:
    return node.name.removeprefix("l_args_").removeprefix("l_")
