"""The value of a stream if its blocks contributed nothing: the base a residual is measured against.

carry(x + contribution) = carry(x)        carry(cat(a, b)) = cat(carry(a), carry(b))
carry(slice(x)) = slice(carry(x))         carry(x) = x                     outside the blocks
"""

from __future__ import annotations

from torch import fx

from hicache_compile.passes.analysis.blocks import Block, Streams
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.slices import part_of_join


def carry(graph: fx.Graph, exit_node: fx.Node, streams: Streams, blocks: list[Block]) -> fx.Node | None:
    """The carried value of ``exit_node`` over ``blocks``, built in ``graph``; None when it is on no stream."""
    sums = {residual.node: residual.stream for block in blocks for residual in block.residuals}
    built: dict[fx.Node, fx.Node] = {}
    copies: list[fx.Node] = []
    parts: set[fx.Node] = set()  # of what enters the blocks: a rank's part of the tokens, taken in the first block

    def build(node: fx.Node) -> fx.Node:
        if node not in streams.inside:
            return node
        if node not in built:
            built[node] = rebuild(node)
        return built[node]

    def rebuild(node: fx.Node) -> fx.Node:
        if node in sums:
            return build(sums[node])
        on_stream = streams.carriers(node)
        if ops.op(node) in ops.CLAMP | ops.DROPOUT or (ops.op(node) in ops.SUMS and len(on_stream) == 1):
            return build(on_stream[0])
        casts = ops.op(node) in ops.CAST
        if casts:  # `type_as` reads a dtype off the stream too
            on_stream = [argument for argument in node.all_input_nodes if streams.roots(argument)]
        carried = {carrier: build(carrier) for carrier in on_stream}
        # A cast in the first block (Wan sums in float32) is made once more before it.
        if not casts and all(new is old for old, new in carried.items()):
            outside = all(read in parts or read not in streams.inside for read in node.all_input_nodes)
            if outside and ops.op(node) in ops.SELECT:
                parts.add(node)
            return node
        part = part_of_join(node, carried.get(on_stream[0], on_stream[0]))
        if part is not None:
            return part
        with graph.inserting_after(max(carried.values(), key=_position(graph).__getitem__)):
            copy = graph.node_copy(node, lambda argument: carried.get(argument, argument))
        copy.meta["carried"] = True  # not an op of the captured graph
        copies.append(copy)
        return copy

    if not streams.roots(exit_node):
        return None
    result = build(exit_node)
    # A join with a value computed in the blocks is not independent of them.
    made_inside = streams.inside - parts
    whole = not any(read in made_inside for copy in copies for read in copy.all_input_nodes)
    for copy in reversed(copies):
        if not copy.users and (copy is not result or not whole):
            graph.erase_node(copy)
    return result if whole else None


def _position(graph: fx.Graph) -> dict[fx.Node, int]:
    return {node: index for index, node in enumerate(graph.nodes)}
