"""collapse: residual sites in a row become one site with one slot a stream.

    before   x1 = x0 + [block 0's residual];  x2 = x1 + [block 1's residual];  ...
    after    xn = x0 + [the sum of the residuals]

Forecasting is linear: the forecast of a sum of residuals is the sum of their forecasts. So one ring that
holds the sum gives the same result up to rounding, with 1/L of the memory and of the work.

    Requires   sites whose slots are residuals on a stream (scope ``block``)
    Ensures    each merged site's slots are the last site's, carried over from the first site's streams
    Refuses    when two neighbours cannot be merged, with the obligation that fails:
               1. every slot is a residual; a value whose gate is computed live (scope ``module``) is not,
                  because the gate changes between the steps;
               2. what the later site carries is exactly what the earlier one hands out, or carries too;
               3. nobody outside the two sites reads the streams between them.
"""

from __future__ import annotations

import logging

from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes.analysis.scopes import Slot
from hicache_compile.passes.analysis.sites import Site
from hicache_compile.passes.graph import ops
from hicache_compile.passes.work import Work

log = logging.getLogger(__name__)

_LINEAR = ops.JOIN | ops.SELECT | ops.CAST | ops.RESHAPE  # a residual passes through them unchanged


def collapse_sites(work: Work) -> int:
    """Merge every row of mergeable sites; returns how many sites are left. Pairs that stay two are declined."""
    before = len(work.sites)
    work.sites, refused = collapse(work.module.graph, work.sites)
    work.refused += refused
    log.info("collapse: %d block sites became %d: residuals add up, so their forecasts do", before, len(work.sites))
    return len(work.sites)


def collapse(graph: fx.Graph, sites: list[Site]) -> tuple[list[Site], list[CannotRewrite]]:
    """``sites`` with every row of mergeable ones merged, and the pairs that could not be, with the reason."""
    merged: list[Site] = []
    refused: list[CannotRewrite] = []
    order = {node: index for index, node in enumerate(graph.nodes)}
    for site in sites:
        if merged:
            reason = obstacle(merged[-1], site)
            if reason is None:
                merged[-1] = _merge(merged[-1], site, order)
                continue
            refused.append(CannotRewrite(f"collapse {merged[-1].name} + {site.name}", reason))
        merged.append(site)
    return merged, refused


def obstacle(earlier: Site, later: Site) -> str | None:
    """The proof obligation that fails for merging two neighbouring sites, or None."""
    for slot in (*earlier.slots, *later.slots):
        if slot.carried is None:
            return f"`{slot.node.name}` is not a residual: the gate it is multiplied with is computed live"
    if earlier.group != later.group:
        return "they are decided each by itself"
    handed_out = {slot.node for slot in earlier.slots}
    known = handed_out | {slot.carried for slot in earlier.slots}
    region = set(earlier.region) | set(later.region)
    for slot in later.slots:
        assert slot.carried is not None
        origins = _linear_origins(slot.carried, known)
        if origins is None or not origins & handed_out:
            return f"`{slot.node.name}` is a residual on `{slot.carried.name}`, which {earlier.name} does not hand out"
    replaced = {slot.carried for slot in later.slots}
    for slot in earlier.slots:
        for user in slot.node.users:
            if user not in region and not _only_feeds(user, replaced):
                return f"`{slot.node.name}` is read by `{user.name}` between the two"
    return None


def _linear_origins(node: fx.Node, known: set[fx.Node | None]) -> set[fx.Node] | None:
    """The values of ``known`` that ``node`` is joined or sliced from; None when it is anything else."""
    if node in known:
        return {node}
    found: set[fx.Node] = set()
    if ops.op(node) not in _LINEAR:
        return None
    for carrier in ops.carriers(node):
        origins = _linear_origins(carrier, known)
        if origins is None:
            return None
        found |= origins
    return found or None


def _only_feeds(node: fx.Node, targets: set[fx.Node | None]) -> bool:
    """Whether ``node`` is one of ``targets``, or a join or slice that is read for nothing but one of them."""
    if node in targets:
        return True
    linear = ops.op(node) in _LINEAR
    return linear and bool(node.users) and all(_only_feeds(user, targets) for user in node.users)


def _merge(earlier: Site, later: Site, order: dict[fx.Node, int]) -> Site:
    carried_by = {slot.node: slot.carried for slot in earlier.slots}
    graph = later.slots[0].node.graph
    between = {node for slot in later.slots for node in _between(slot.carried, set(carried_by))}
    slots = []
    for slot in later.slots:
        assert slot.carried is not None
        slots.append(Slot(slot.name, slot.node, _carry_back(graph, slot.carried, carried_by)))
    for slot in later.slots:
        _erase_built(graph, slot.carried)
    # A stream the later site does not touch leaves the merged site as the earlier one made it.
    inside = set(earlier.region) | set(later.region) | between
    slots += [s for s in earlier.slots if any(user not in inside for user in s.node.users)]
    region = tuple(sorted(inside, key=lambda node: order.get(node, -1)))
    first = earlier.name.split("..")[0]
    last = later.name.split("..")[-1]
    name = f"{first}..{last}"
    many = len(slots) > 1
    named = tuple(Slot(f"{name}[{i}]" if many else name, s.node, s.carried) for i, s in enumerate(slots))
    return Site(name, "blocks", named, region, later.group)


def _erase_built(graph: fx.Graph, node: fx.Node | None) -> None:
    """Drop the stream ``node`` where it was built for a site, and is read no more."""
    if node is not None and node.meta.get("carried") and not node.users:
        sources = node.all_input_nodes
        graph.erase_node(node)
        for source in sources:
            _erase_built(graph, source)


def _between(node: fx.Node | None, known: set[fx.Node]) -> set[fx.Node]:
    """The joins and slices of the captured graph from ``node`` back to ``known``."""
    if node is None or node in known:
        return set()
    mine = set() if node.meta.get("carried") else {node}
    return mine.union(*(_between(carrier, known) for carrier in ops.carriers(node)))


def _carry_back(graph: fx.Graph, node: fx.Node, carried_by: dict[fx.Node, fx.Node | None]) -> fx.Node:
    """``node`` with the earlier site's slots replaced by the streams they are residuals on."""
    if node in carried_by:
        carried = carried_by[node]
        assert carried is not None
        return carried
    # `type_as` reads a dtype off the stream too.
    sources = node.all_input_nodes if ops.op(node) in ops.CAST else ops.carriers(node)
    if ops.op(node) not in _LINEAR or not sources:
        return node
    replaced = {source: _carry_back(graph, source, carried_by) for source in sources}
    if all(new is old for old, new in replaced.items()):
        return node
    with graph.inserting_after(node):
        return graph.node_copy(node, lambda argument: replaced.get(argument, argument))
