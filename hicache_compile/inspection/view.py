"""What a policy makes of one captured graph: programs, FLOPs, rings; each made when it is first asked for."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx

from hicache_compile.passes import Choice, Rewrite, rewrite
from hicache_compile.passes.graph.cost import Cost, cost_of
from hicache_compile.passes.graph.inputs import Role
from hicache_compile.passes.graph.shapes import Bindings
from hicache_compile.passes.transforms.partition_attention import PARTITIONED
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.runtime.deciders import Decision, make_decider
from hicache_compile.runtime.program_set import ProgramSet


class View:
    """One captured graph at the sizes in ``bindings``, rewritten as policies ask for it."""

    def __init__(self, graph: fx.GraphModule, bindings: Bindings) -> None:
        self.graph = graph
        self.bindings = bindings
        self.cost = cost_of(graph, bindings)
        self.flops = self.cost.flops
        self.flops_full = sum(self.flops.values())
        self._programs: dict[Layout, ProgramSet] = {}
        self._costs: dict[tuple[Layout, Choice], list[Cost]] = {}

    def programs(self, layout: Layout) -> ProgramSet:
        """With rings of one anchor: how many there are changes bytes alone. Nothing is lowered."""
        single = replace(layout, depth=1)
        if single not in self._programs:
            self._programs[single] = ProgramSet(rewrite(self.graph, single), 1)
        return self._programs[single]

    def rewrite(self, layout: Layout) -> Rewrite:
        return self.programs(layout).rewrite

    def rings(self, layout: Layout) -> dict[int, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each ring a forecast reads, by slot."""
        kept = self.programs(layout).shapes(self.bindings)
        return {
            state.slot: ((layout.depth, *shape[1:]), dtype)
            for state, (shape, dtype, _) in kept.items()
            if state.role is Role.ANCHORS
        }

    def nbytes(self, layout: Layout) -> int:
        """Bytes of what one context keeps: rings, and what guards, clusters and sparse steps remember."""
        kept = self.programs(layout).shapes(self.bindings)
        return sum(
            prod(shape) * dtype.itemsize * (layout.depth if state.by_anchor else 1)
            for state, (shape, dtype, _) in kept.items()
        )

    def flops_of(self, layout: Layout, choice: Choice = Choice.FORECAST) -> int:
        """FLOPs of a step of ``choice``, over all programs it runs; of attention over partitions, to the local keys."""
        local = 1.0 if layout.partitions is None else 1 / layout.partitions.partitions
        counted = (item for part in self.costs(layout, choice) for item in part.flops.items())
        return round(sum(n * (local if name.startswith(PARTITIONED) else 1) for name, n in counted))

    def costs(self, layout: Layout, choice: Choice = Choice.FORECAST) -> list[Cost]:
        """What the programs that a step of ``choice`` runs cost."""
        key = replace(layout, depth=1), choice
        if key not in self._costs:
            self._costs[key] = [cost_of(part, self.bindings) for part in self.rewrite(layout).parts(choice)]
        return self._costs[key]

    def planned(self, layout: Layout, policy: Policy, num_steps: int) -> list[Decision]:
        """The decisions of a run; none where they are measured in it, or nothing is cached."""
        programs = self.programs(layout)
        if policy.guards or layout.partitions is not None or not programs.rings:
            return []
        decider: Any = make_decider(policy, programs, num_steps, 0, programs.rows(layout.depth, 0), layout.sparsity)
        return [decider.decide(step, False) for step in range(num_steps)]

    def flops_of_run(self, layout: Layout, policy: Policy, decisions: str) -> int:
        """FLOPs of all steps of a run; where guards decide, of the shortest they may make it."""
        planned = self.planned(layout, policy, len(decisions))
        if not planned:
            each = {"F": self.flops_of(layout, Choice.FULL), "S": self._sparse(layout) if "S" in decisions else 0}
            return sum(each.get(letter, self.flops_of(layout)) for letter in decisions)
        return sum(self.flops_of(layout, decision.choice) for decision in planned)

    def _sparse(self, layout: Layout) -> int:
        return self.flops_of(layout, Choice.FULL.with_phases((("", Phase.SPARSE),)))
