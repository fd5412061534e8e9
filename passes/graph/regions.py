"""The region of a site: its exclusive cone, the nodes all of whose uses lead to the site's slots.

The whole region is dead when the slots are forecast. A node that writes in place to a value of the region belongs to
the region. A node inside a context that cannot be lifted (a level of vmap) belongs to it only with the whole
context.
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
    writes = _Writes(order)
    while True:
        cone = _cone(set(leaving), stops | barred, order, writes)
        split = [node for span in contexts.spans if _is_split(span, cone, barred) for node in span]
        split += [node for node in cone if not node.users and not cone.issuperset(writes.aliases(node))]
        if not split:
            return cone | {node for span in contexts.spans if cone & set(span) for node in span}
        barred.update(split)


class _Writes:
    """What nodes write in place, which a value's views share with it."""

    def __init__(self, order: dict[fx.Node, int]) -> None:
        self._order = order
        self._by_storage: dict[object, list[fx.Node]] = {}
        written = {ops.storage(target) for node in order for target in ops.mutated(node)}
        for node in order:
            if (storage := ops.storage(node)) in written:
                self._by_storage.setdefault(storage, []).append(node)

    def aliases(self, writer: fx.Node) -> list[fx.Node]:
        """What ``writer`` writes to, and all that shares its memory."""
        return [alias for target in ops.mutated(writer) for alias in self._by_storage[ops.storage(target)]]

    def read_after(self, writer: fx.Node) -> list[fx.Node]:
        """Later readers of what ``writer`` wrote; itself if there are none."""
        users = [user for alias in self.aliases(writer) for user in alias.users]
        return [user for user in users if user.users and self._order[user] > self._order[writer]] or [writer]


def _cone(slots: set[fx.Node], stops: set[fx.Node], order: dict[fx.Node, int], writes: _Writes) -> set[fx.Node]:
    cone = set(slots)
    for node in sorted(order, key=order.__getitem__, reverse=True):
        if node in stops or node.op in ("placeholder", "output", "get_attr"):
            continue
        if all(user in cone for user in (node.users or writes.read_after(node))):
            cone.add(node)
    return cone


def _is_split(span: list[fx.Node], cone: set[fx.Node], barred: set[fx.Node]) -> bool:
    """Whether ``cone`` contains a part of ``span`` that cannot run without the rest."""
    working = [node for node in span if node.users and node.op != "get_attr" and ops.op(node) not in ops.OPENS]
    inside = [node for node in working if node in cone]
    return bool(inside) and len(inside) < len(working) and not barred >= set(span)
