"""Topological order of a graph whose regions are contracted to one unit each."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx


def contracted_order(
    graph: fx.Graph, regions: Sequence[Sequence[fx.Node]], also_needs: Sequence[Iterable[fx.Node]] = ()
) -> list[fx.Node | int] | None:
    """The nodes outside ``regions``, with the index of each region at the place where it can run.

    As close to the graph's order as possible. None if a region would have to run both before and after a node outside
    it.

    Args:
        regions: the sets of nodes to contract; they are disjoint.
        also_needs: for each region, nodes that must precede it besides the arguments of its nodes.
    """
    unit_of: dict[fx.Node, Any] = {node: node for node in graph.nodes}
    unit_of.update({node: index for index, region in enumerate(regions) for node in region})
    position: dict[Any, int] = {unit_of[node]: place for place, node in enumerate(graph.nodes)}
    waits: dict[Any, set[Any]] = {unit: set() for unit in position}
    for node in graph.nodes:
        waits[unit_of[node]] |= {unit_of[argument] for argument in node.all_input_nodes}
    for index, needed in enumerate(also_needs):
        waits[index] |= {unit_of[node] for node in needed}
    for index in range(len(regions)):
        waits[index].discard(index)
    unblocks: dict[Any, list[Any]] = {unit: [] for unit in position}
    for unit, needed in waits.items():
        for other in needed:
            unblocks[other].append(unit)
    unit_at = {place: unit for unit, place in position.items()}
    ready = [position[unit] for unit, needed in waits.items() if not needed]
    heapq.heapify(ready)
    order: list[fx.Node | int] = []
    while ready:
        unit = unit_at[heapq.heappop(ready)]
        order.append(unit)
        for other in unblocks[unit]:
            waits[other].discard(unit)
            if not waits[other]:
                heapq.heappush(ready, position[other])
    return order if len(order) == len(position) else None
