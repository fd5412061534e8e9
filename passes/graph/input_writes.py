"""Writes in place to inputs of the denoiser, whose order to the reads around them has to stay."""

from __future__ import annotations

from collections.abc import Hashable

from torch import fx

from hicache_compile.passes.graph import ops


class InputWrites:
    """What reads and writes each input of ``graph`` that is written, in the order of the graph."""

    def __init__(self, graph: fx.Graph) -> None:
        given = {ops.storage(node) for node in graph.find_nodes(op="placeholder") if "input" in node.meta}
        written = {node: {ops.storage(target) for target in ops.mutated(node)} & given for node in graph.nodes}
        self._writers = {node for node, inputs in written.items() if inputs}
        self._uses: dict[Hashable, list[fx.Node]] = {held: [] for inputs in written.values() for held in inputs}
        for node in graph.nodes if self._writers else ():
            for held in {ops.storage(argument) for argument in node.all_input_nodes} & self._uses.keys():
                self._uses[held].append(node)

    def wanted_by(self, closure: set[fx.Node]) -> list[fx.Node]:
        """What uses an input up to the last write that comes before something in ``closure``."""
        found: list[fx.Node] = []
        for uses in self._uses.values():
            last = max((place for place, node in enumerate(uses) if node in closure), default=-1)
            writes = (place for place, node in enumerate(uses[: last + 1]) if node in self._writers)
            found += [node for node in uses[: max(writes, default=-1) + 1] if node not in closure]
        return found
