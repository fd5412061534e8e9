"""The region of a site: its exclusive cone, the nodes all of whose uses lead to the site's slots.

The whole region is dead when the slots are forecast. A node that writes in place to a value of the region belongs to
the region. A node inside a context (autocast, a level of vmap) belongs to it only with the whole context.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from hicache_compile.passes.graph import ops


class Contexts:
    """The outermost contexts that nodes of a graph open and close."""

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
    """The region of ``slots``. ``order``: the position of each node; ``stops``: the slots of all sites, which bound
    it."""
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
    """For a node that only writes in place: later readers of the written value, or ``node`` itself if there are
    none."""
    target = ops.mutated(node)
    readers = target.users if target is not None and target.op != "placeholder" else ()
    return [user for user in readers if user.users and order[user] > order[node]] or [node]


def _is_split(span: list[fx.Node], cone: set[fx.Node], barred: set[fx.Node]) -> bool:
    """Whether ``cone`` contains a part of ``span`` that cannot run without the rest."""
    working = [node for node in span if node.users and node.op != "get_attr" and ops.op(node) not in ops.OPENS]
    inside = [node for node in working if node in cone]
    return bool(inside) and len(inside) < len(working) and not barred >= set(span)
