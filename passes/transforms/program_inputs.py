"""The inputs of finished programs: no more than what is read."""

from __future__ import annotations

from torch import fx

from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.inputs import Role, role_of
from hicache_compile.passes.transforms.guard import new_ring
from hicache_compile.passes.transforms.narrow_slices import Window, as_values


def drop_unused_inputs(program: fx.GraphModule) -> None:
    for node in placeholders(program):
        if not node.users:
            program.graph.erase_node(node)


def number_rows(program: fx.GraphModule, read: list[int]) -> None:
    """Where each slot has weights of its own: one row for each slot that is read, in the order of their rings."""
    for node in placeholders(program):
        if role_of(node) is Role.WEIGHTS:
            for row in list(node.users):
                row.args = (node, read.index(row.args[1]))  # type: ignore[arg-type]  # the number of a slot
            node.meta = {**node.meta, "example_value": ops.value(node)[: len(read)]}


def resize_rings(program: fx.GraphModule, windows: dict[int, Window]) -> None:
    """A slot of which only a window is read needs a ring of that window only."""
    for node in placeholders(program):
        slot = node.meta.get("slot")
        if slot in windows:
            ring = ops.value(node)
            node.meta = {**node.meta, "example_value": new_ring(ring[0][as_values(windows[slot])], ring.shape[0])}
