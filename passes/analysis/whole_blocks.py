"""Blocks without a residual sum: modules of a list, each of which makes the stream that the next one takes.

A gated mixture ``(1 - g) x + g f(x)``, a recurrent cell, torch's fused encoder layer. What such a block adds cannot be
told from what it keeps: its contribution is its output less its input, as for an opaque block.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from hicache_compile.passes.analysis.residuals import Residual, can_be_stream, stream_carriers
from hicache_compile.passes.analysis.units import call_number
from hicache_compile.passes.graph import ops


def whole_blocks(graph: fx.Graph) -> list[Residual]:
    """What stands for the sums of the blocks of the most expensive such list of ``graph``; empty if there is none."""
    found: dict[int, list[Residual]] = {}
    for members in _lists([node for node in graph.nodes if node.meta["path"]], 0):
        chain = _chained(members)
        if len(chain) > 1:
            found[sum(ops.op(node) in ops.HEAVY for nodes in members for node in nodes)] = chain
    return found[max(found)] if found else []


def _lists(nodes: list[fx.Node], below: int) -> Iterator[list[list[fx.Node]]]:
    """The nodes of the expensive members of each module list, call by call; of a list of one, those of its lists.

    ``below``: how much of the paths of ``nodes`` is the same.
    """
    lists: dict[str, dict[tuple[str, int], list[fx.Node]]] = {}
    for node in nodes:
        parts = node.meta["path"].split(".")
        number = next((i for i in range(below, len(parts)) if parts[i].isdigit()), None)
        if number is not None:
            member = ".".join(parts[: number + 1])
            calls = lists.setdefault(".".join(parts[:number]), {})
            calls.setdefault((member, call_number(node, member)), []).append(node)
    for calls in lists.values():
        if len({member for member, _ in calls}) == 1:
            (member, _), *_ = calls
            yield from _lists([node for inside in calls.values() for node in inside], member.count(".") + 1)
        yield [inside for (member, _), inside in calls.items() if _is_block(member, inside)]


def _is_block(member: str, nodes: list[fx.Node]) -> bool:
    """Whether ``member`` is expensive, and more than a single layer."""
    heavy = [node for node in nodes if ops.op(node) in ops.HEAVY]
    return any(node.meta["path"] != member or ops.op(node) == ops.LAYER for node in heavy)


def _chained(members: list[list[fx.Node]]) -> list[Residual]:
    """Each member's output with its stream; empty unless every stream is the output of the member before."""
    found: list[Residual] = []
    for nodes in members:
        inside = set(nodes)
        entering = [n for node in nodes for n in node.all_input_nodes if n not in inside and can_be_stream(n)]
        entering = [node for node in entering if not node.meta.get("weight")]
        leaving = [node for node in nodes if can_be_stream(node) and any(user not in inside for user in node.users)]
        pairs = [(stream, node) for node in leaving for stream in entering if ops.same_shape(stream, node)]
        if found:
            pairs = [(stream, node) for stream, node in pairs if found[-1].node in _carried(stream)]
        if not pairs:
            return []
        stream, node = pairs[0]
        found.append(Residual(node, stream, node))
    return found


def _carried(node: fx.Node) -> set[fx.Node]:
    """``node`` and what it carries."""
    carried = {node}
    queue = [node]
    while queue:
        queue = [carrier for current in queue for carrier in stream_carriers(current) if carrier not in carried]
        carried.update(queue)
    return carried
