"""A site's region: its exclusive cone, the nodes every use of which ends in the site's slots.

All of it is dead when the slots are forecast. What writes in place into a value the region made belongs to it. What
runs inside a context (autocast, a level of vmap) belongs to it with everything in that context, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from hicache_compile.passes.graph import ops


class Contexts:
    """The contexts that are opened and closed by nodes of a graph, outermost only."""

    def __init__(self, graph: fx.Graph) -> None:
        self.spans: list[list[fx.Node]] = []
        depth = 0
        for node in graph.nodes:
            if ops.op(node) in ops.OPENS:
                if depth == 0:
                    self.spans.append([])
                depth += 1
            if depth:
                self.spans[-1].append(node)
            if ops.op(node) in ops.CLOSES:
                depth -= 1


def exclusive_cone(
    slots: Iterable[fx.Node], stops: set[fx.Node], order: dict[fx.Node, int], contexts: Contexts
) -> set[fx.Node]:
    """The region of ``slots`` in a graph with node ``order``; never beyond ``stops``, the slots of all sites."""
    leaving = set(slots)
    barred: set[fx.Node] = set()
    while True:
        cone = _cone(set(leaving), stops | barred, order)
        split = [node for span in contexts.spans if _is_split(span, cone, barred) for node in span]
        split += [node for node in cone if not node.users and ops.mutated(node) not in cone]
        if not split:
            return cone | {node for span in contexts.spans if cone & set(span) for node in span}
        barred.update(split)


def _cone(slots: set[fx.Node], stops: set[fx.Node], order: dict[fx.Node, int]) -> set[fx.Node]:
    cone = set(slots)
    for node in sorted(order, key=order.__getitem__, reverse=True):
        if node in stops or node.op in ("placeholder", "output", "get_attr"):
            continue
        if all(user in cone for user in (node.users or _read_after(node, order))):
            cone.add(node)
    return cone


def _read_after(node: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """What reads the value that ``node`` only writes into, afterwards; ``node`` itself when that is nothing."""
    target = ops.mutated(node)
    readers = target.users if target is not None and target.op != "placeholder" else ()
    return [user for user in readers if user.users and order[user] > order[node]] or [node]


def _is_split(span: list[fx.Node], cone: set[fx.Node], barred: set[fx.Node]) -> bool:
    """Whether ``cone`` holds a part of ``span`` that cannot run without the rest."""
    working = [node for node in span if node.users and node.op != "get_attr" and ops.op(node) not in ops.OPENS]
    inside = [node for node in working if node in cone]
    return bool(inside) and len(inside) < len(working) and not barred >= set(span)
