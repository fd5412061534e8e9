"""Small tools every pass uses: copy a graph, drop dead nodes, follow values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile import internals
from hicache_compile.internals import FakeTensor, FakeTensorMode
from hicache_compile.passes.graph import ops


def call_node(
    graph: fx.Graph, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] = {}, **meta: Any
) -> fx.Node:
    """A call of ``function`` where ``graph`` inserts, with its example value; ``kwargs``: no nodes; ``meta``: what else
    is known of it."""
    node = graph.call_function(function, tuple(args), dict(kwargs))
    examples = fx.node.map_arg(tuple(args), ops.value)
    with fake_mode_of(next(example for example in examples if isinstance(example, torch.Tensor))), torch.no_grad():
        node.meta = {"path": "", **meta, "example_value": function(*examples, **kwargs)}
    return node


def copy_node(graph: fx.Graph, node: fx.Node, arg_of: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """Copy ``node`` with its metadata and the attribute by which AOTAutograd recognizes a Dynamo input."""
    new = graph.node_copy(node, arg_of)
    if hasattr(node, "_dynamo_source"):
        new._dynamo_source = node._dynamo_source
    return new


def graph_module(root: torch.nn.Module | dict[str, fx.GraphModule], graph: fx.Graph) -> fx.GraphModule:
    """A GraphModule of ``graph`` that is written as code when it is first called or read: most never are."""
    return (internals._LazyGraphModule if internals.LAZY else fx.GraphModule)(root, graph)


def module_of(
    graph: fx.Graph, origin: fx.GraphModule, attributes: dict[str, fx.GraphModule] | None = None
) -> fx.GraphModule:
    """A GraphModule of ``graph`` with the attributes of ``origin``, or ``attributes``; linted."""
    graph.lint()
    module = graph_module(attributes or origin, graph)
    # Note [Dynamo marks] AOTAutograd treats parameter addresses as fixed only on a module marked as Dynamo's.
    # With these two marks every placeholder needs a `_dynamo_source`; it is None on the placeholders we add.
    module.meta.update(origin.meta)
    module._param_name_to_source = {}  # type: ignore[assignment]  # read by AOTAutograd
    return module


def copy_graph(origin: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A copy of ``origin``, which stays unmodified as the reference, and the map from its nodes to the new ones."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in origin.graph.nodes:
        env[node] = copy_node(graph, node, env.__getitem__)
    return module_of(graph, origin), env


def fake_mode_of(value: torch.Tensor) -> FakeTensorMode:
    """The fake mode of a value recorded by Dynamo. The ambient mode while a backend runs is a different one."""
    assert isinstance(value, FakeTensor)
    return value.fake_mode


def drop_dead_code(graph: fx.Graph) -> int:
    """Remove every pure node without users, except placeholders. Returns the number of removed nodes."""
    removed = 0
    for node in reversed(graph.nodes):
        if not node.users and ops.is_pure(node):
            graph.erase_node(node)
            removed += 1
    return removed


def placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return module.graph.find_nodes(op="placeholder")


def output_node(graph: fx.Graph) -> fx.Node:
    return next(iter(reversed(graph.nodes)))


def reachable_from(roots: Iterable[fx.Node]) -> set[fx.Node]:
    """``roots`` and every node that depends on their data."""
    seen: set[fx.Node] = set()
    queue = list(roots)
    while queue:
        node = queue.pop()
        if node not in seen:
            seen.add(node)
            queue.extend(user for user in node.users if node in ops.data_inputs(user))
            queue.extend(reader for target in ops.mutated(node) for reader in target.users)
    return seen


def numel(node: fx.Node) -> int:
    """How many numbers ``node`` holds; a size that varies counts as in the example."""
    return math.prod(size if isinstance(size, int) else size.node.hint or 1 for size in ops.value(node).shape)
