"""captured: a copy of Dynamo's graph, out of place where that is safe, with module paths on its nodes.

Requires   a GraphModule handed to a Dynamo backend
Ensures    every computing node has ``meta["path"]``: the dotted path of the module it ran in, from
           the denoiser's root, and ``meta["calls"]``: the same of the modules around it, with the number
           of the call; every placeholder has ``meta["input"]``, its position, and
           ``meta["weight"]``: whether it is a parameter or buffer of the denoiser; and ``meta["autocast"]``,
           what was in force around the call
"""

from __future__ import annotations

import re

from torch import fx

from hicache_compile.passes.analysis.attentions import settle_floats
from hicache_compile.passes.graph.contexts import autocast_around
from hicache_compile.passes.graph.graphs import copy_graph, drop_dead_code, placeholders
from hicache_compile.passes.transforms.functionalise import functionalise
from hicache_compile.passes.transforms.inline_bodies import inline_bodies

_ROOT = re.compile(r"""^L\[['"]\w+['"]\](\.__self__)*""")
_OURS = re.compile(r"hicache_compile/(frontend|runtime/replay)/\w+\.py")  # code that is traced around the user's
_GETATTR = re.compile(r"""getattr\((.*), ['"](\w+)['"]\)""")  # of a name that is no identifier: an entry of a list
_THROUGH_FORWARD = re.compile(r"\.forward(\.(forward|module|__self__|func))+")  # what stands in for a module's forward
_IN_A_DICT = re.compile(r"\b_(parameters|buffers)\b")
_DICT_ITEM = re.compile(r"\.__dict__\['_modules'\]\['(\w+)'\]|\._modules\['(\w+)'\]|\['?(\w+)'?\]")


def module_calls(node: fx.Node, within: str = "") -> tuple[tuple[str, int], ...]:
    """The modules ``node`` ran in, outermost first: dotted path, and how often it had been called before.

    The keys of the stack are ids, of which only the number of the call is read: ``...@2`` is the third.
    """
    stack = node.meta.get("nn_module_stack") or {}
    calls = [(_dotted(path), int(f"{key}@0".split("@")[1])) for key, (path, _) in stack.items()]
    inner = [(f"{within}.{path}" if within else path, number) for path, number in calls if path or not within]
    return ((within, 0), *inner) if within else tuple(inner)


def _dotted(path: str) -> str:
    while found := _GETATTR.search(path):
        path = f"{path[: found.start()]}{found[1]}.{found[2]}{path[found.end() :]}"
    path = _THROUGH_FORWARD.sub("", _ROOT.sub("", path))
    return _DICT_ITEM.sub(lambda found: "." + next(filter(None, found.groups())), path).strip(".")


def _is_weight(node: fx.Node) -> bool:
    """Whether an input is a parameter or buffer of a module. Where a class has a ``__getattr__`` of its own (diffusers'
    models), Dynamo reads it out of the module's ``__dict__``."""
    source = getattr(node, "_dynamo_source", None)
    read_from_dict = source is not None and _IN_A_DICT.search(source.name) is not None
    while source is not None:
        kind = type(source).__name__
        if "ParamBuffer" in kind or ("NNModule" in kind and read_from_dict):
            return True
        source = getattr(source, "base", None)
    return False


def capture(dynamo_graph: fx.GraphModule, within: str = "") -> fx.GraphModule:
    """The captured graph of ``dynamo_graph``, which is left as it is. ``within``: the path of the submodule it is of,
    where Dynamo does not compile what calls that one."""
    captured, _ = copy_graph(dynamo_graph)
    inline_bodies(captured)
    settle_floats(captured.graph)
    functionalise(captured.graph)
    drop_dead_code(captured.graph)
    for position, node in enumerate(placeholders(captured)):
        # Placeholders carry the stack of their first user, which says nothing about them.
        node.meta["input"] = position
        node.meta["weight"] = _is_weight(node)
        node.meta["autocast"] = autocast_around()
    for node in captured.graph.nodes:
        node.meta["calls"] = () if node.op in ("placeholder", "output") else module_calls(node, within)
        node.meta["path"] = node.meta["calls"][-1][0] if node.meta["calls"] else ""
        while _OURS.search(str(node.stack_trace).rpartition("  File ")[2]):
            node.stack_trace = str(node.stack_trace).rpartition("  File ")[0]
    captured.recompile()
    return captured
