"""How a captured graph was used last."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hicache_compile.passes import Choice
from hicache_compile.passes.graph.shapes import Bindings
from hicache_compile.policy.layout import Layout
from hicache_compile.runtime.program_set import ProgramSet


@dataclass(frozen=True, slots=True)
class Live:
    """How a graph was used last in a thread: what reports and explanations are about."""

    layout: Layout
    programs: ProgramSet
    bindings: Bindings
    signature: tuple[object, ...] = ()  # of what writes the anchors
    why: str = ""  # what a memory budget made of the policy

    @property
    def slots(self) -> int:
        """Slots that have anchors of their own."""
        return self.programs.rows(1, 0).own

    @property
    def nbytes(self) -> int:
        """Bytes of what one context keeps on the device."""
        shapes = self.programs.shapes(self.bindings).values()
        return sum(prod(shape) * dtype.itemsize for shape, dtype, _ in shapes)

    @property
    def uncached(self) -> Choice:
        """What a step without the cache is: of attention over the keys of all ranks, every key is fresh."""
        partitions = self.layout.partitions
        return Choice.FULL if partitions is not None and partitions.distributed else Choice.PLAIN

    @property
    def over_ranks(self) -> bool:
        """Whether several ranks sample one thing, so that each has its own part of what is kept."""
        partitions = self.layout.partitions
        return bool(self.programs.rewrite.ranks) or (partitions is not None and partitions.distributed)
