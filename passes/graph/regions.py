"""The region of a site: its exclusive cone, the nodes all of whose uses lead to the site's slots.

The whole region is dead when the slots are forecast. A node that writes in place to a value of the region belongs to
the region, and so do checks of its values alone (that a size which depends on data is within its bounds). A node inside
a context that cannot be lifted (a level of vmap) belongs to it only with the whole context.
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
    writes, checks = _Writes(order), _checks(order)
    while True:
        cone = _cone(set(leaving), stops | barred, order, writes, checks)
        mine = _checks_of(cone, checks)
        cone |= mine
        split = [node for span in contexts.spans if _is_split(span, cone, barred) for node in span]
        split += [node for node in cone if not node.users and not cone.issuperset(writes.aliases(node))]
        split += [read for node in checks if node not in mine for read in node.all_input_nodes if read in cone]
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


def _checks(order: dict[fx.Node, int]) -> list[fx.Node]:
    """What only checks, in graph order, and is of no use to anything else."""
    found: dict[fx.Node, None] = {}
    for node in sorted(order, key=order.__getitem__, reverse=True):
        only = bool(node.users) and node.op != "placeholder" and all(user in found for user in node.users)
        if only or ops.op(node) in ops.CHECKS:
            found[node] = None
    return list(reversed(found))


def _checks_of(cone: set[fx.Node], checks: list[fx.Node]) -> set[fx.Node]:
    """Those of ``checks`` that look at values of ``cone`` alone, in all their parts."""
    mine = set(cone)
    for node in checks:
        if node.all_input_nodes and mine.issuperset(node.all_input_nodes):
            mine.add(node)
    for node in reversed(checks):
        if not mine.issuperset(node.users):
            mine.discard(node)
    return mine.intersection(checks)


def _cone(
    slots: set[fx.Node], stops: set[fx.Node], order: dict[fx.Node, int], writes: _Writes, checks: list[fx.Node]
) -> set[fx.Node]:
    cone, unread = set(slots), set(checks)
    for node in sorted(order, key=order.__getitem__, reverse=True):
        if node in stops or node in unread or node.op in ("placeholder", "output", "get_attr"):
            continue
        users = [user for user in node.users if user not in unread]
        if all(user in cone for user in (users or writes.read_after(node))):
            cone.add(node)
    return cone


def _is_split(span: list[fx.Node], cone: set[fx.Node], barred: set[fx.Node]) -> bool:
    """Whether ``cone`` contains a part of ``span`` that cannot run without the rest."""
    working = [node for node in span if node.users and node.op != "get_attr" and ops.op(node) not in ops.OPENS]
    inside = [node for node in working if node in cone]
    return bool(inside) and len(inside) < len(working) and not barred >= set(span)
