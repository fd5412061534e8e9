"""captured: a copy of Dynamo's graph, out of place where that is safe, with module paths on its nodes.

Requires   a GraphModule handed to a Dynamo backend
Ensures    every computing node has ``meta["path"]``: the dotted path of the module it ran in, from
           the denoiser's root; every placeholder has ``meta["input"]``, its position, and
           ``meta["weight"]``: whether it is a parameter or buffer of the denoiser
"""

from __future__ import annotations

import re

from torch import fx

from hicache_compile.passes.functionalise import functionalise
from hicache_compile.passes.graphs import copy_graph, drop_dead_code, placeholders

_ROOT = re.compile(r"^L\['\w+'\]|^L\[\"\w+\"\]")
_DICT_ITEM = re.compile(r"\.__dict__\['_modules'\]\['(\w+)'\]|\._modules\['(\w+)'\]|\['?(\w+)'?\]")


def module_path(node: fx.Node) -> str:
    """The dotted path of the module ``node`` ran in. Stack *keys* are ids and are never read."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    path = _ROOT.sub("", path)
    path = _DICT_ITEM.sub(lambda found: "." + next(filter(None, found.groups())), path)
    return path.strip(".")


def _is_weight(node: fx.Node) -> bool:
    source = getattr(node, "_dynamo_source", None)
    while source is not None:
        if "ParamBuffer" in type(source).__name__:
            return True
        source = getattr(source, "base", None)
    return False


def capture(dynamo_graph: fx.GraphModule) -> fx.GraphModule:
    """The captured graph of ``dynamo_graph``, which is left as it is."""
    captured, _ = copy_graph(dynamo_graph)
    functionalise(captured.graph)
    drop_dead_code(captured.graph)
    for position, node in enumerate(placeholders(captured)):
        # Placeholders carry the stack of their first user, which says nothing about them.
        node.meta["input"] = position
        node.meta["weight"] = _is_weight(node)
    for node in captured.graph.nodes:
        node.meta["path"] = "" if node.op == "placeholder" else module_path(node)
    captured.recompile()
    return captured
