"""Which ranks sample one thing: those that the captured graph has collectives with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import fx

from hicache_compile import internals
from hicache_compile.operators.collectives import COLLECTIVES, is_dtensor, members, mesh_of, require_ranks
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice

if TYPE_CHECKING:
    from hicache_compile.passes.work import Rewrite


def ranks_of(captured: fx.GraphModule, together: bool | None) -> tuple[str, ...]:
    """The process groups over which what is measured is summed; none, where each process decides for itself.

    Args:
        captured: the denoiser's graph.
        together: ``None``: the groups of its collectives and of its ``DTensor``; ``True``: all ranks; ``False``: none.

    Raises:
        HiCacheError: ``together`` is true and ``torch.distributed`` is not initialised.
    """
    if together is False:
        return ()
    if together:
        require_ranks("hicache_compile.decide_together")
        internals.RANKS.require()
        return (torch.distributed.group.WORLD.group_name,)  # type: ignore[union-attr]  # it is initialised
    found = {group for node in captured.graph.nodes for group in _groups(node)}
    if not found or not internals.RANKS:
        return ()
    # A group of which all ranks are in another adds nothing; of equal ones the first by name counts.
    ranks = {group: members(group) for group in sorted(found)}
    kept: list[str] = []
    for group in sorted(ranks, key=lambda group: -len(ranks[group])):
        if len(ranks[group]) > 1 and not any(ranks[group] <= ranks[other] for other in kept):
            kept.append(group)
    return tuple(kept)


def is_collective(node: fx.Node) -> bool:
    """Whether ``node`` calls one of torch's collectives."""
    return str(node.target).startswith(COLLECTIVES) and ops.op(node) != "wait_tensor"


def communicates_inside(rewrite: Rewrite, choice: Choice) -> bool:
    """Whether the program of ``choice`` communicates more than what leaves the denoiser."""
    program = rewrite.program(choice)
    if "communicates" not in program.meta:
        nodes = program.graph.nodes
        program.meta["communicates"] = sum(is_collective(node) or is_dtensor(ops.value(node)) for node in nodes) > 1
    found: bool = program.meta["communicates"]
    return found


def _groups(node: fx.Node) -> Iterator[str]:
    """The names of the process groups that ``node`` communicates over."""
    if is_collective(node):
        yield str(getattr(node.args[-1], "group_name", node.args[-1]))
    value = ops.value(node)
    if is_dtensor(value):
        for group in mesh_of(value).get_all_groups():
            yield str(group.group_name)
