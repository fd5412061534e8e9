"""Write what a call of a graph within the graph computes in its place: of an activation checkpoint, which only a
backward pass needs, and of a region that ``torch.compiler.nested_compile_region`` compiles once.

before   y = tag_activation_checkpoint(body, x, ...)[0]         after   what body computes of x, ...

Requires   a captured graph
Ensures    the same values, bit for bit; blocks that are called so are found as any other
"""

from __future__ import annotations

import operator

from torch import fx

from hicache_compile.passes.graph import ops

# The calls, and how many of their arguments come before those of the body.
CALLS = {"tag_activation_checkpoint": 1, "invoke_subgraph": 2}


def inline_bodies(module: fx.GraphModule) -> int:
    """Rewrite ``module`` in place; returns how many calls were inlined."""
    graph, inlined = module.graph, 0
    for node in list(graph.nodes):
        if ops.op(node) not in CALLS:
            continue
        body: fx.Node = node.args[0]
        inner = getattr(module, str(body.target))
        inlined += 1 + inline_bodies(inner)
        given = node.args[CALLS[ops.op(node)] :]
        values = dict(zip(inner.graph.find_nodes(op="placeholder"), given, strict=True))
        with graph.inserting_before(node):
            returned = graph.graph_copy(inner.graph, values)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(returned[user.args[1]])  # type: ignore[index]  # a body returns a tuple
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)
    return inlined
