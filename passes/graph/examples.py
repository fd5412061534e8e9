"""Example values of a graph that something else edited: made again where an op, or what it reads, has changed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import fake_mode_of, placeholders

Calls = Mapping[str, object]
_PLACE = ("path", "calls", "block", "group")  # what a new node takes over of what it reads


def calls_of(program: fx.GraphModule) -> Calls:
    """What each node calls, by name: the same for two nodes that compute the same of nodes of the same names."""
    return {node.name: _call(node) for node in program.graph.nodes}


def _call(node: fx.Node) -> object:
    given = fx.node.map_arg((node.args, dict(node.kwargs)), lambda argument: f"%{argument.name}")
    return node.op, node.target, repr(given)


def update_metadata(program: fx.GraphModule, origin: fx.GraphModule) -> None:
    """Give every node of ``program``, which was made of ``origin``, its example value and its place.

    A node that calls the same as the one of its name in ``origin`` has the metadata of that one, also where ``program``
    was written anew and lost it; the example value of what calls something else, or reads what looks otherwise now, is
    computed.

    Raises:
        ExampleError: an op does not run on what it is given.
    """
    before = {node.name: node for node in origin.graph.nodes}
    calls = calls_of(origin)
    changed: set[fx.Node] = set()
    like = next(ops.value(node) for node in placeholders(origin) if ops.is_tensor(node))
    with fake_mode_of(like), torch.no_grad():
        for node in program.graph.nodes:
            same = calls.get(node.name) == _call(node)
            if same:
                node.meta = {**before[node.name].meta, **node.meta}
            if node.op in ("placeholder", "output") or (same and not changed.intersection(node.all_input_nodes)):
                continue
            value = _evaluated(program, node)
            if form(value) != form(ops.value(node)):
                changed.add(node)
            _place(node)
            node.meta["example_value"] = value


class ExampleError(Exception):
    """An op does not run on the example values of what it reads."""


def _evaluated(program: fx.GraphModule, node: fx.Node) -> Any:
    if node.op == "get_attr":
        held = operator.attrgetter(str(node.target))(program)
        return held if not isinstance(held, torch.Tensor) else torch.empty_like(held)
    args: Any = fx.node.map_arg(node.args, ops.value)
    kwargs: Any = fx.node.map_arg(dict(node.kwargs), ops.value)
    try:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a function
    except Exception as error:  # whatever an op says of its arguments
        raise ExampleError(f"`{node.format_node()}` does not run: {type(error).__name__}: {error}") from error


def _place(node: fx.Node) -> None:
    """``node`` belongs where the last call that it reads does."""
    read = [argument.meta for argument in node.all_input_nodes if argument.op.startswith("call")]
    near = read[-1] if read else {}
    node.meta = {"path": "", "calls": (), **{key: near[key] for key in _PLACE if key in near}, **node.meta}


def form(value: Any) -> object:
    """What must not change of a value: sizes, strides, dtype and device of a tensor, the type of anything else."""
    if isinstance(value, torch.Tensor):
        return (*map(str, value.shape), "by", *map(str, value.stride()), str(value.dtype), str(value.device))
    if isinstance(value, tuple | list):
        return tuple(map(form, value))
    return type(value).__name__
