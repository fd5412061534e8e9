"""What writes in place to inputs of the denoiser, in the order of the graph."""

from __future__ import annotations

from torch import fx

from hicache_compile.passes.graph import ops


class InputWrites:
    """What writes in place to inputs of the denoiser, and what reads them before and after."""

    def __init__(self, graph: fx.Graph) -> None:
        given = {ops.storage(node) for node in graph.find_nodes(op="placeholder") if "input" in node.meta}
        self._of: list[tuple[fx.Node, list[fx.Node], list[fx.Node]]] = []
        readers: dict[object, list[fx.Node]] = {}
        for node in graph.nodes:
            for held in {ops.storage(target) for target in ops.mutated(node)} & given:
                self._of.append((node, list(readers.get(held, [])), readers.setdefault(held, [])))
            for held in {ops.storage(argument) for argument in node.all_input_nodes} & given:
                readers.setdefault(held, []).append(node)

    def wanted_by(self, closure: set[fx.Node]) -> list[fx.Node]:
        """Writes that something in ``closure`` comes after, and what has to come before these writes."""
        found: list[fx.Node] = []
        for writer, before, readers in self._of:
            if writer in closure or any(node in closure for node in readers[len(before) :] if node is not writer):
                found += [node for node in (*before, writer) if node not in closure and node.op != "output"]
        return found
