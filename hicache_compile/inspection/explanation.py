"""``explain``: what was found in a denoiser, and what a policy makes of it, as plain data and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import fx

from hicache_compile.errors import whole_number
from hicache_compile.inspection.findings import BlockRow, Findings, ScopeRow, SiteRow
from hicache_compile.inspection.tables import render
from hicache_compile.operators.anchors import QUANTISED
from hicache_compile.passes import Choice, Rewrite, rewrite
from hicache_compile.passes.graph.cost import Cost, cost_of
from hicache_compile.passes.graph.inputs import Role
from hicache_compile.passes.graph.shapes import Bindings
from hicache_compile.passes.transforms.partition_attention import PARTITIONED
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.policy.layout import SCOPES, Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.runtime.deciders import make_decider
from hicache_compile.runtime.deciders.computed_steps import letters_of
from hicache_compile.runtime.program_set import ProgramSet


class Explanation(Findings):
    """What ``explain`` found: ``print`` shows it as tables."""

    __slots__ = ()

    def __str__(self) -> str:
        return render(self)


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

    def flops_of_run(self, layout: Layout, policy: Policy, decisions: str) -> int:
        """FLOPs of all steps of a run; where guards decide, of the shortest they may make it."""
        programs = self.programs(layout)
        if policy.guards or layout.partitions is not None or not programs.rings:
            each = {"F": self.flops_full, "S": self._sparse(layout) if "S" in decisions else 0}
            return sum(each.get(letter, self.flops_of(layout)) for letter in decisions)
        decider = make_decider(policy, programs, len(decisions), 0, programs.rows(layout.depth, 0), layout.sparsity)
        choices = [decider.decide(step, False).choice for step in range(len(decisions))]  # type: ignore[union-attr]
        return sum(self.flops_full if c == Choice.FULL else self.flops_of(layout, c) for c in choices)

    def _sparse(self, layout: Layout) -> int:
        return self.flops_of(layout, Choice.FULL.with_phases((("", Phase.SPARSE),)))


def explain(
    model: str,
    views: Sequence[View],
    policy: Policy,
    num_steps: int,
    scopes: Sequence[str] = SCOPES,
    sparsity: Chipmunk | None = None,
    layouts: Sequence[Layout] = (),
    memory: str = "",
) -> Explanation:
    """What ``policy`` makes of the graphs of one denoiser call over a run of ``num_steps``; and at which other scopes.

    Args:
        model: the name of the denoiser.
        views: its graphs.
        layouts: of each graph, what a memory budget made of the policy; by default the policy's own.
        memory: what the budget has to say about it.

    Raises:
        HiCacheError: ``num_steps`` is not a positive integer, or not the length the policy is made for.
    """
    whole_number("explain", "num_steps", num_steps, 1)
    layouts = layouts or [replace(policy.layout, sparsity=sparsity)] * len(views)
    layout, sparsity = layouts[0], layouts[0].sparsity
    rewrites = [view.rewrite(own) for view, own in zip(views, layouts, strict=True)]
    sparse = [path for made in rewrites for path in made.sparse]
    tokenwise = any(made.tokenwise for made in rewrites)
    decisions = letters_of(policy, num_steps, sparsity if sparse else None, tokenwise)
    flops_full = sum(view.flops_full for view in views)
    if layout.fixed_scope:
        scopes = (layout.scope,)  # what is measured or told apart is at this one
    cheap = [part for view, own in zip(views, layouts, strict=True) for part in view.costs(own)]
    chosen = _at_scope(layout.scope, views, layouts, policy, decisions, flops_full)
    rows = [
        chosen
        if scope == layout.scope
        else _at_scope(scope, views, [own.at(scope) for own in layouts], policy, decisions, flops_full)
        for scope in scopes
    ]
    return Explanation(
        model=model,
        policy=to_dict(policy),
        scope=layout.scope,
        memory=memory,
        num_steps=num_steps,
        decisions=decisions,
        graphs=len(views),
        nodes=sum(len(view.graph.graph.nodes) for view in views),
        flops_full=flops_full,
        flops_forecast=chosen.flops_forecast,
        flops_speedup=chosen.ceiling,
        collectives_full=sum(view.cost.collectives for view in views),
        collectives_forecast=sum(part.collectives for part in cheap),
        bytes_sent_full=sum(view.cost.bytes_sent for view in views),
        bytes_sent_forecast=sum(part.bytes_sent for part in cheap),
        state_bytes=chosen.state_bytes,
        blocks=[row for view, own in zip(views, layouts, strict=True) for row in _blocks(view, own)],
        sites=[row for view, own in zip(views, layouts, strict=True) for row in _sites(view, own, flops_full)],
        scopes=rows,
        sparsity=sparsity.to_dict() if sparsity is not None and sparse else None,
        sparse=sparse,
        refused=sorted({(entry.site, entry.reason) for made in rewrites for entry in made.refused}),
    )


def _at_scope(
    scope: str, views: Sequence[View], layouts: Sequence[Layout], policy: Policy, decisions: str, flops_full: int
) -> ScopeRow:
    pairs = list(zip(views, layouts, strict=True))
    rings = [ring for view, layout in pairs for ring in view.rings(layout).values()]
    cheap = sum(view.flops_of(layout) for view, layout in pairs)
    spent = sum(view.flops_of_run(layout, policy, decisions) for view, layout in pairs)
    return ScopeRow(
        scope=scope,
        sites=sum(len(view.rewrite(layout).sites) for view, layout in pairs),
        slots=len(rings),
        flops_forecast=cheap,
        state_bytes=_nbytes(rings),
        ceiling=len(decisions) * flops_full / spent if spent else 1.0,
    )


def _blocks(view: View, layout: Layout) -> list[BlockRow]:
    return [
        BlockRow(name, len(nodes), sum(view.flops.get(node, 0) for node in nodes))
        for name, nodes in view.rewrite(layout).block_nodes.items()
    ]


def _sites(view: View, layout: Layout, flops_full: int) -> list[SiteRow]:
    rings = view.rings(layout)
    rows, slot = [], 0
    for site in view.rewrite(layout).sites:
        kept = [rings[place] for place in range(slot, slot + len(site.slots)) if place in rings]
        slot += len(site.slots)
        flops = sum(view.flops.get(node.name, 0) for node in site.region)
        blocks = dict.fromkeys(node.meta["block"] for node in site.region if "block" in node.meta)
        rows.append(
            SiteRow(
                name=site.name,
                kind=site.kind,
                blocks=list(blocks),
                nodes=len(site.region),
                flops=flops,
                share=flops / flops_full if flops_full else 0.0,
                shapes=[list(shape) for shape, _ in kept],
                nbytes=_nbytes(kept),
            )
        )
    return rows


def _nbytes(rings: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> int:
    scales = sum(shape[0] * torch.float32.itemsize for shape, dtype in rings if dtype in QUANTISED)
    return sum(prod(shape) * dtype.itemsize for shape, dtype in rings) + scales
