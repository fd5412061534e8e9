"""Find the sites of a scope: the values a forecast replaces and the nodes that are then not computed.

Requires   runs of blocks
Ensures    a working copy of the captured graph and sites on it, each with the region that is dead when its slots are
           forecast. A slot with a ``carried`` value caches ``node - carried``.
Refuses    a site that draws random numbers, writes in place to a value it did not make, returns a view of its input,
           or contains expensive nodes that are also read outside it
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import fx

from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.passes.analysis.blocks import Run, find_runs
from hicache_compile.passes.analysis.kinds import kind_of, temporal
from hicache_compile.passes.analysis.refusals import refusal
from hicache_compile.passes.analysis.scopes import DRAFTS, Draft, Slot
from hicache_compile.passes.graph.graphs import copy_graph, reachable_from
from hicache_compile.passes.graph.regions import Contexts, exclusive_cone
from hicache_compile.passes.transforms.insert_probes import insert_probes
from hicache_compile.policy.guards import Probe
from hicache_compile.policy.policy import Cut


@dataclass(frozen=True, slots=True)
class Site:
    """A cacheable subgraph: its slots and its region in graph order. ``group``: the group of sites with one common
    decision."""

    name: str
    kind: str
    slots: tuple[Slot, ...]
    region: tuple[fx.Node, ...]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Sites:
    """The sites of one scope on a working copy of the captured graph."""

    module: fx.GraphModule
    sites: list[Site]
    refused: list[CannotRewrite]
    block_nodes: dict[str, list[str]]  # the names of each block's nodes
    probes: tuple[Probe, ...] = ()
    verified: dict[int, fx.Node] = field(default_factory=dict)  # see insert_probes

    @property
    def blocks(self) -> int:
        return len(self.block_nodes)


def find_sites(
    captured: fx.GraphModule,
    scope: str,
    first: int = 0,
    last: int = 0,
    probes: tuple[Probe, ...] = (),
    groups: tuple[tuple[str, int | None], ...] = (),
) -> Sites:
    """The sites of ``captured`` at ``scope``. The parameters are those of ``Cut``.

    Raises:
        HiCacheError: ``first + last`` leaves no block to cache, or a guard measures a value the denoiser does not have.
    """
    cut = Cut(scope, first, last, probes, groups)
    first = min(cut.starts)
    module, _ = copy_graph(captured)
    runs, refused = find_runs(module)
    block_nodes: dict[str, list[str]] = {}
    for block in (block for run in runs for block in run.blocks):
        block_nodes.setdefault(block.name, []).extend(node.name for node in block.nodes)
        for node in block.nodes:
            node.meta["block"] = block.name
    if runs and first + last >= max(len(run.blocks) for run in runs):
        raise HiCacheError(
            f"Policy.first + Policy.last = {first + last}: must be less than the "
            f"{max(len(run.blocks) for run in runs)} blocks in the run"
        )
    verified = insert_probes(module, runs, cut.probes)
    dependent = reachable_from(entry for run in runs for block in run.blocks for entry in block.entries)
    drafts = [draft for run in runs for draft in DRAFTS[cut.scope](module.graph, run, cut, dependent)]
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    stops = {slot.node for draft in drafts for slot in draft.slots}
    stops |= {slot.carried for draft in drafts for slot in draft.slots if slot.carried is not None}
    contexts = Contexts(module.graph)
    sites = []
    for draft in drafts:
        region = exclusive_cone((slot.node for slot in draft.slots), stops, order, contexts)
        reason = refusal(draft, region, dependent)
        if reason is None:
            ordered = tuple(sorted(region, key=order.__getitem__))
            sites.append(
                Site(draft.name, kind_of(ordered, _streams_of(draft, runs)), draft.slots, ordered, draft.group)
            )
        else:
            refused.append(CannotRewrite(draft.name, reason))
    sites = _named_temporal(sites)
    if cut.groups:
        sites = _grouped(sites, dict(cut.groups), runs)
    return Sites(module, sites, refused, block_nodes, cut.probes, verified)


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
        for node in block.spine | block.entries
    }
