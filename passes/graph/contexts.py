"""Contexts (autocast, a choice of attention kernels): lifted off a graph while it is rewritten, and written back.

before   _enter_autocast("cpu", ...)       lifted   x_1 = linear(x)   meta["context"] = (autocast("cpu", ...),)
         x_1 = linear(x)
         _exit_autocast(...)

A node says by itself under which contexts it runs, so it may be cut out, moved or copied like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_graph, drop_dead_code

AUTOCAST = ("_enter_autocast", "_exit_autocast")
KERNELS = "_sdpa_kernel"  # sets what is in force; it has no end of its own


@dataclass(frozen=True, slots=True)
class Context:
    """What is called before nodes of one context, and after.

    Args:
        enter, args: the call before.
        leave: what is called after, with ``left``; where there are none, with what ``enter`` returned.
    """

    enter: Callable[..., Any]
    args: tuple[Any, ...]
    leave: Callable[..., Any]
    left: tuple[Any, ...] = ()


Around = tuple[tuple[str, torch.dtype], ...]  # devices whose operators are cast, and to what


def autocast_around() -> Around:
    """What ``torch.autocast`` is in force here: of a graph that is captured inside of it, none of its nodes."""
    devices = ("cpu", "cuda", "xpu", "mps")
    return tuple(
        [(device, torch.get_autocast_dtype(device)) for device in devices if torch.is_autocast_enabled(device)]
    )


@contextmanager
def under(around: Around) -> Iterator[None]:
    """Inside, what ``autocast_around`` found is in force."""
    with ExitStack() as stack:
        for device, dtype in around:
            stack.enter_context(torch.autocast(device, dtype=dtype))
        yield


def lifted(origin: fx.GraphModule) -> fx.GraphModule:
    """``origin``, or where it has contexts, a copy whose nodes are marked with theirs."""
    if not any(ops.op(node) in (AUTOCAST[0], KERNELS) for node in origin.graph.nodes):
        return origin
    module, _ = copy_graph(origin)
    _lift(module.graph)
    module.recompile()
    return module


def _lift(graph: fx.Graph) -> None:
    kernels = [node for node in graph.nodes if ops.op(node) == KERNELS]
    open_now: dict[object, Context] = {}
    ends = []
    for node in graph.nodes:
        name = ops.op(node)
        if name == AUTOCAST[0]:
            leave = next(user for user in node.users if ops.op(user) == AUTOCAST[1])
            open_now[node] = Context(node.target, node.args, leave.target)
        elif name == AUTOCAST[1]:
            del open_now[node.args[0]]
        elif name == KERNELS:
            open_now.pop(KERNELS, None)
            if _arguments(node) != _arguments(kernels[-1]):  # the last one puts back what was in force before
                open_now[KERNELS] = Context(node.target, _arguments(node), node.target, _arguments(kernels[-1]))
        else:
            if open_now and node.op.startswith("call"):
                node.meta["context"] = tuple(open_now.values())
            continue
        ends.append(node)
    for node in reversed(ends):
        graph.erase_node(node)
    drop_dead_code(graph)


@dataclass(frozen=True, slots=True)
class _Named:
    """An argument that a call makes of its name: Dynamo writes a kernel as ``_backend_from_string("MATH")``."""

    make: Any  # the function
    name: Any


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """Those of a call, so that they can be compared."""
    return tuple(_fixed(value) for value in (*node.args, *node.kwargs.values()))


def _fixed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_fixed(each) for each in value)
    return _Named(value.target, value.args[0]) if isinstance(value, fx.Node) else value


def write_back(origin: fx.GraphModule) -> fx.GraphModule:
    """``origin`` with the contexts of its nodes opened and closed around them, also in the graphs that it calls."""
    inner = {name: module for name, module in origin.named_children() if isinstance(module, fx.GraphModule)}
    written = {name: write_back(module) for name, module in inner.items()}
    same = all(written[name] is module for name, module in inner.items())
    if same and not any("context" in node.meta for node in origin.graph.nodes):
        return origin
    program, _ = copy_graph(origin)
    for name, module in written.items():
        setattr(program, name, module)
    graph = program.graph
    entered: list[tuple[Context, fx.Node]] = []
    for node in list(graph.nodes):
        if not (node.op.startswith("call") or node.op == "output"):
            continue
        wanted = node.meta.pop("context", ())
        with graph.inserting_before(node):
            while entered and tuple(context for context, _ in entered) != wanted[: len(entered)]:
                context, opened = entered.pop()
                _call(graph, context.leave, context.left or (opened,))
            for context in wanted[len(entered) :]:
                entered.append((context, _call(graph, context.enter, context.args)))
    program.graph.lint()
    program.recompile()
    return program


def _call(graph: fx.Graph, target: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
    made = graph.call_function(target, tuple(_argument(graph, value) for value in args))
    made.meta = {"path": "", "calls": (), "side_effect": True}
    return made


def _argument(graph: fx.Graph, value: Any) -> Any:
    if isinstance(value, tuple):
        return [_argument(graph, each) for each in value]
    if not isinstance(value, _Named):
        return value
    made = graph.call_function(value.make, (value.name,))
    made.meta = {"path": "", "calls": ()}
    return made
