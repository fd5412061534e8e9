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
from hicache_compile.passes import Choice, Rewrite
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.cost import flops_by_node
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.shapes import Bindings, concrete
from hicache_compile.passes.transforms.partition_attention import DIVIDED
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.policy.policy import NOWHERE, SCOPES, Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.runtime.deciders.computed_steps import letters_of
from hicache_compile.runtime.deciders.scheduled import GroupPlan
from hicache_compile.runtime.program_set import rewrite
from hicache_compile.runtime.storage.budget import Layout, layout_of


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
        self.flops = flops_by_node(graph, bindings)
        self.flops_full = sum(self.flops.values())
        self._rewrites: dict[Layout, Rewrite] = {}
        self._flops_of: dict[tuple[Layout, str], int] = {}

    def rewrite(self, layout: Layout) -> Rewrite:
        """With rings of one anchor: how many there are changes bytes alone."""
        single = replace(layout, depth=1)
        if single not in self._rewrites:
            self._rewrites[single] = rewrite(self.graph, layout, 1)
        return self._rewrites[single]

    def rings(self, layout: Layout) -> dict[int, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each ring a forecast reads, by slot."""
        found = {}
        for node in placeholders(self.rewrite(layout).programs[Choice.FORECAST]):
            if node.meta.get("state") == "anchors":
                ring = ops.value(node)
                shape = concrete(ring.shape[1:], self.bindings)
                found[node.meta["slot"]] = (layout.depth, *shape), ring.dtype
        return found

    def flops_of(self, layout: Layout, choice: str = Choice.FORECAST) -> int:
        """FLOPs of a step of ``choice``, over all programs it runs; of a divided attention, to the local keys alone."""
        key = replace(layout, depth=1), choice
        if key not in self._flops_of:
            local = 1.0 if layout.split is None else 1 / layout.split.partitions
            parts = [flops_by_node(part, self.bindings) for part in self.rewrite(layout).parts(choice)]
            counted = ((name, count) for part in parts for name, count in part.items())
            self._flops_of[key] = round(sum(n * (local if name.startswith(DIVIDED) else 1) for name, n in counted))
        return self._flops_of[key]

    def flops_of_run(self, layout: Layout, policy: Policy, decisions: str) -> int:
        """FLOPs of all steps of a run; where guards decide, of the shortest they may make it."""
        specialiser = self.rewrite(layout).specialiser
        if not specialiser.apart:
            cheap = self.flops_of(layout)
            sparse = self.flops_of(layout, Phase.SPARSE) if "S" in decisions else 0
            each = {"F": self.flops_full, "S": sparse}
            return sum(each.get(letter, cheap) for letter in decisions)
        plan = GroupPlan(policy, len(decisions), policy.depth, 0, specialiser.groups, specialiser.name)
        choices = [plan.choice(step) for step in range(len(decisions))]
        return sum(self.flops_full if choice == Choice.FULL else self.flops_of(layout, choice) for choice in choices)


def explain(
    model: str,
    views: Sequence[View],
    policy: Policy,
    num_steps: int,
    scopes: Sequence[str] = SCOPES,
    sparsity: Chipmunk | None = None,
) -> Explanation:
    """What ``policy`` makes of the graphs of one denoiser call over a run of ``num_steps``; and at which other scopes.

    Raises:
        HiCacheError: ``num_steps`` is not a positive integer, or not the length the policy is made for.
    """
    whole_number("explain", "num_steps", num_steps, 1)
    layout = layout_of(policy, sparsity)
    rewrites = [view.rewrite(layout) for view in views]
    sparse = [path for rewrite in rewrites for path in rewrite.sparse]
    decisions = letters_of(policy, num_steps, sparsity if sparse else None)
    flops_full = sum(view.flops_full for view in views)
    if layout.probes or layout.groups or layout.split or policy.scope == NOWHERE:
        scopes = (policy.scope,)  # what is measured or told apart is at this one
    rows = [_at_scope(_cut_at(layout, scope), views, policy, decisions, flops_full) for scope in scopes]
    chosen = next(row for row in rows if row.scope == policy.scope)
    return Explanation(
        model=model,
        policy=to_dict(policy),
        scope=policy.scope,
        num_steps=num_steps,
        decisions=decisions,
        graphs=len(views),
        nodes=sum(len(view.graph.graph.nodes) for view in views),
        flops_full=flops_full,
        flops_forecast=chosen.flops_forecast,
        flops_speedup=chosen.ceiling,
        state_bytes=chosen.state_bytes,
        blocks=[row for view in views for row in _blocks(view, layout)],
        sites=[row for view in views for row in _sites(view, layout, flops_full)],
        scopes=rows,
        sparsity=sparsity.to_dict() if sparsity is not None and sparse else None,
        sparse=sparse,
        refused=sorted({(entry.site, entry.reason) for rewrite in rewrites for entry in rewrite.refused}),
    )


def _cut_at(layout: Layout, scope: str) -> Layout:
    """``layout`` cut at ``scope``."""
    if scope == layout.scope:
        return layout
    ends = (layout.first, layout.last) if scope in ("block", "stack") else (0, 0)
    return Layout(scope, *ends, layout.depth, sparsity=layout.sparsity)


def _at_scope(layout: Layout, views: Sequence[View], policy: Policy, decisions: str, flops_full: int) -> ScopeRow:
    rings = [ring for view in views for ring in view.rings(layout).values()]
    cheap = sum(view.flops_of(layout) for view in views)
    spent = sum(view.flops_of_run(layout, policy, decisions) for view in views)
    return ScopeRow(
        scope=layout.scope,
        sites=sum(len(view.rewrite(layout).sites) for view in views),
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
    return sum(prod(shape) * dtype.itemsize for shape, dtype in rings)
