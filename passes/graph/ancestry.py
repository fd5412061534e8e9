"""Data-dependency ancestors of every node, as bit sets: one bit per node, in graph order."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from hicache_compile.passes.graph import ops

Bits = int


class Ancestry:
    """The ancestors of every node of ``graph``. ``inputs``: the direct data inputs of each node."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.index = {node: position for position, node in enumerate(self.nodes)}
        self._above: list[Bits] = []
        self._writers: dict[object, list[fx.Node]] = {}  # by storage: in-place writers among the nodes visited so far
        self.inputs: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            above = 0
            self.inputs[node] = self._numbers_of(node)
            for argument in self.inputs[node]:
                position = self.index[argument]
                above |= self._above[position] | (1 << position)
            self._above.append(above)

    def _numbers_of(self, node: fx.Node) -> list[fx.Node]:
        """The data inputs of ``node``: its arguments and the nodes that wrote to them, or to a view, before."""
        read = ops.data_inputs(node)
        written = [writer for argument in read for writer in self._writers.get(ops.storage(argument), ())]
        for target in ops.mutated(node):
            self._writers.setdefault(ops.storage(target), []).append(node)
        return [*read, *written]

    def bit(self, node: fx.Node) -> Bits:
        return 1 << self.index[node]

    def bits(self, nodes: Iterable[fx.Node]) -> Bits:
        found = 0
        for node in nodes:
            found |= self.bit(node)
        return found

    def above(self, node: fx.Node) -> Bits:
        """The ancestors of ``node``."""
        return self._above[self.index[node]]

    def above_all(self, nodes: Iterable[fx.Node]) -> Bits:
        """The union of the ancestors of ``nodes``."""
        found = 0
        for node in nodes:
            found |= self.above(node)
        return found

    def within(self, bits: Bits) -> set[fx.Node]:
        """The nodes whose bit is set in ``bits``."""
        return {node for node in self.nodes if bits & self.bit(node)}

    def between(self, zone: Bits) -> set[fx.Node]:
        """The nodes of ``zone`` and every node on a path between two of them."""
        below = leading = zone
        for node in self.nodes:
            if self.above(node) & below:
                below |= self.bit(node)
        for node in reversed(self.nodes):
            if leading & self.bit(node):
                leading |= self.above(node)
        return self.within(below & leading)
