"""Find the sites of a scope: the values a forecast replaces and the nodes that are then not computed.

Requires   runs of blocks on a working copy of the captured graph, with the probes of guards in it
Ensures    sites on it, each with the region that is dead when its slots are forecast. A slot with a ``carried`` value
           caches ``node - carried``.
Refuses    a site that draws random numbers, writes to a value it did not make, hands out a view of
           its input, or whose expensive nodes are read elsewhere too
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes.analysis.blocks import Run
from hicache_compile.passes.analysis.kinds import kind_of, temporal
from hicache_compile.passes.analysis.refusals import refusal
from hicache_compile.passes.analysis.scopes import DRAFTS, Draft, Slot
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import reachable_from
from hicache_compile.passes.graph.regions import Contexts, exclusive_cone
from hicache_compile.policy.layout import Layout


@dataclass(frozen=True, slots=True)
class Site:
    """A cacheable subgraph: its slots and its region in graph order. ``group``: the group of sites with one common
    decision."""

    name: str
    kind: str
    slots: tuple[Slot, ...]
    region: tuple[fx.Node, ...]
    group: str = ""


def find_sites(module: fx.GraphModule, runs: list[Run], layout: Layout) -> tuple[list[Site], list[CannotRewrite]]:
    """The sites of ``module`` with ``runs`` of blocks, cut as ``layout`` says, and what was refused."""
    dependent = reachable_from(entry for run in runs for block in run.blocks for entry in block.entries)
    drafts = [draft for run in runs for draft in DRAFTS[layout.scope](module.graph, run, layout, dependent)]
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    stops = {slot.node for draft in drafts for slot in draft.slots}
    stops |= {slot.carried for draft in drafts for slot in draft.slots if slot.carried is not None}
    contexts = Contexts(module.graph)
    sites: list[Site] = []
    refused: list[CannotRewrite] = []
    for draft in drafts:
        region = exclusive_cone((slot.node for slot in draft.slots), stops, order, contexts)
        reason = _within_a_level(draft, contexts) or refusal(draft, region, dependent)
        if reason is None:
            ordered = tuple(sorted(region, key=order.__getitem__))
            kind = kind_of(ordered, _streams_of(draft, runs), draft.zone)
            sites.append(Site(draft.name, kind, draft.slots, ordered, draft.group))
        else:
            refused.append(CannotRewrite(draft.name, reason))
    sites = _named_temporal(sites)
    if layout.ranges:
        return _in_ranges(sites, layout, runs), refused
    return (_grouped(sites, dict(layout.groups), runs) if layout.groups else sites), refused


def _within_a_level(draft: Draft, contexts: Contexts) -> str | None:
    """Why ``draft`` cannot be cut out of a level of vmap or of gradients."""
    for slot in draft.slots:
        span = next((span for span in contexts.spans if slot.node in span), None)
        if span is not None:
            return f"`{slot.node.name}` is computed within `{ops.op(span[0])}`, where no values can be kept"
    return None


def _in_ranges(sites: list[Site], layout: Layout, runs: list[Run]) -> list[Site]:
    """The sites, each in the group of the range of blocks that it begins in."""
    place = {n: (at, len(run.blocks)) for run in runs for at, block in enumerate(run.blocks) for n in block.nodes}
    start = (0, len(runs[0].blocks)) if runs else (0, 1)
    first = [min((place[node] for node in site.region if node in place), default=start) for site in sites]
    return [
        replace(site, group=layout.groups[layout.range_of(*where)][0]) for site, where in zip(sites, first, strict=True)
    ]


def _grouped(sites: list[Site], blocks_of: dict[str, int | None], runs: list[Run]) -> list[Site]:
    """The sites of the cached kinds, each in the group of its kind; for some kinds only those in the first blocks."""
    place = {node: index for run in runs for index, block in enumerate(run.blocks) for node in block.nodes}
    found = []
    for site in sites:
        most = blocks_of.get(site.kind)
        block = min((place[node] for node in site.region if node in place), default=0)
        if site.kind in blocks_of and (most is None or block < most):
            found.append(replace(site, group=site.kind))
    return found


def _named_temporal(sites: list[Site]) -> list[Site]:
    """``sites`` with self-attention over time renamed ``temporal-attention``, which only a comparison of sites can
    tell."""
    within = [site for site in sites if site.kind == "self-attention"]
    over_time = {id(s) for s, is_over in zip(within, temporal([s.region for s in within]), strict=True) if is_over}
    return [replace(site, kind="temporal-attention") if id(site) in over_time else site for site in sites]


def _streams_of(draft: Draft, runs: list[Run]) -> set[fx.Node]:
    return {
        node
        for run in runs
        for block in run.blocks
        if draft.zone & set(block.nodes)
        for node in (*block.spine, *block.entries)
    }
