"""Find the sites of a scope: which values a forecast replaces, and what is then no longer computed.

    Requires   runs of blocks
    Ensures    a working copy of the captured graph and sites on it. A site's region is its exclusive
               cone: the nodes every use of which ends in the site's slots, so all of it is dead when
               the slots are forecast. A slot with a ``carried`` value caches ``node - carried``.
    Refuses    a site that draws random numbers, writes to a value it did not make, hands out a view of
               its input, or whose expensive nodes are read elsewhere too
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.passes import ops
from hicache_compile.passes.blocks import Block, Run, Streams, find_runs
from hicache_compile.passes.carry import carry
from hicache_compile.passes.graphs import copy_graph, reachable_from
from hicache_compile.passes.kinds import kind_of


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor that leaves a site. ``carried``: the stream it is a residual on, at scopes block and stack."""

    name: str
    node: fx.Node
    carried: fx.Node | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A cacheable subgraph: its slots and its region, in graph order."""

    name: str
    kind: str
    slots: tuple[Slot, ...]
    region: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class Sites:
    """The sites of one scope on a working copy of the captured graph."""

    module: fx.GraphModule
    sites: list[Site]
    refused: list[CannotRewrite]
    blocks: int


@dataclass(frozen=True, slots=True)
class _Draft:
    """A site before its region is known."""

    name: str
    slots: tuple[Slot, ...]
    zone: frozenset[fx.Node]  # what the site means to make dead


def find_sites(captured: fx.GraphModule, scope: str, first: int = 0, last: int = 0) -> Sites:
    """The sites of ``captured`` at ``scope``.

    Raises:
        HiCacheError: ``first + last`` leaves no block to cache.
    """
    module, _ = copy_graph(captured)
    runs, refused = find_runs(module)
    blocks = sum(len(run.blocks) for run in runs)
    if runs and first + last >= max(len(run.blocks) for run in runs):
        raise HiCacheError(
            f"Policy.first + Policy.last = {first + last}: must be less than the "
            f"{max(len(run.blocks) for run in runs)} blocks in the run"
        )
    dependent = reachable_from(entry for run in runs for block in run.blocks for entry in block.entries)
    drafts = [draft for run in runs for draft in _DRAFTS[scope](module.graph, run, first, last, dependent)]
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    stops = {slot.node for draft in drafts for slot in draft.slots}
    stops |= {slot.carried for draft in drafts for slot in draft.slots if slot.carried is not None}
    sites = []
    for draft in drafts:
        region = _exclusive_cone(draft, stops, order)
        reason = _refusal(draft, region, dependent)
        if reason is None:
            ordered = tuple(sorted(region, key=order.__getitem__))
            sites.append(Site(draft.name, kind_of(ordered, _streams_of(draft, runs)), draft.slots, ordered))
        else:
            refused.append(CannotRewrite(draft.name, reason))
    return Sites(module, sites, refused, blocks)


def _module_drafts(
    graph: fx.Graph, run: Run, first: int, last: int, dependent: set[fx.Node]
) -> list[_Draft]:
    """One site per attention or MLP: the contributions of the residual sums, stripped of their gates."""
    drafts = []
    for block in run.blocks:
        slots = [_strip_gate(addition.contribution, dependent) for addition in block.additions]
        slots = [node for node in dict.fromkeys(slots) if node not in block.spine]
        made_by = {node: _makers(node, block, set(slots), dependent) for node in slots}
        for group in _joined(slots, made_by):
            zone = frozenset().union(*(made_by[node] for node in group))
            if any(ops.op(node) in ops.HEAVY for node in zone):
                name = _site_name(block, group)
                drafts.append(_Draft(name, _named(name, [(node, None) for node in group]), zone))
    return drafts


def _block_drafts(
    graph: fx.Graph, run: Run, first: int, last: int, dependent: set[fx.Node]
) -> list[_Draft]:
    """One site per block: its residual on each stream."""
    cached = run.blocks[first : len(run.blocks) - last]
    return [_residual_draft(graph, block.name, [block], dependent) for block in cached]


def _stack_drafts(
    graph: fx.Graph, run: Run, first: int, last: int, dependent: set[fx.Node]
) -> list[_Draft]:
    """One site: the residual over the whole run of blocks, or over its middle."""
    cached = run.blocks[first : len(run.blocks) - last]
    if not cached:
        return []
    name = cached[0].name if len(cached) == 1 else f"{cached[0].name}..{cached[-1].name}"
    return [_residual_draft(graph, name, cached, dependent)]


def _output_drafts(
    graph: fx.Graph, run: Run, first: int, last: int, dependent: set[fx.Node]
) -> list[_Draft]:
    """One site: the hidden state that leaves the run of blocks."""
    zone = _zone(run.blocks)
    slots = [(node, None) for node in _leaving(zone, dependent)]
    name = f"{run.blocks[0].name}..{run.blocks[-1].name}"
    return [_Draft(name, _named(name, slots), zone)] if slots else []


_DRAFTS = {"module": _module_drafts, "block": _block_drafts, "stack": _stack_drafts, "output": _output_drafts}


def _residual_draft(graph: fx.Graph, name: str, blocks: list[Block], dependent: set[fx.Node]) -> _Draft:
    zone = _zone(blocks)
    streams = Streams(set(zone))
    leaving = [(node, carry(graph, node, streams, blocks)) for node in _leaving(zone, dependent)]
    return _Draft(name, _named(name, leaving), zone)


def _zone(blocks: list[Block]) -> frozenset[fx.Node]:
    """The nodes of ``blocks`` and of the joins and slices between them."""
    inside = {node for block in blocks for node in block.nodes}
    between: set[fx.Node] = set()
    for block in blocks[1:]:
        for entry in block.entries - inside:
            between |= _path_to(entry, inside)
    return frozenset(inside | between)


def _path_to(node: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """The nodes from ``node`` back to ``inside`` along carriers; empty when none leads there."""
    if node in inside:
        return set()
    found: set[fx.Node] = set()
    for carrier in ops.carriers(node):
        above = _path_to(carrier, inside)
        if above or carrier in inside:
            found |= above | {node}
    return found


def _leaving(zone: frozenset[fx.Node], dependent: set[fx.Node]) -> list[fx.Node]:
    """The values that leave ``zone`` and follow from its streams, in graph order."""
    inside = [node for node in zone if node in dependent and ops.is_tensor(node)]
    leaving = {node for node in inside if any(user not in zone for user in node.users)}
    return [node for node in next(iter(zone)).graph.nodes if node in leaving] if zone else []


def _strip_gate(node: fx.Node, dependent: set[fx.Node]) -> fx.Node:
    """``gate * y`` -> ``y``: peel factors that do not follow from the streams, and casts around them."""
    while True:
        arguments = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        following = [argument for argument in arguments if argument in dependent]
        name = ops.op(node)
        peelable = name in ops.MUL or (name in ops.DIV and following == arguments[:1]) or name in ops.CAST
        peelable = peelable or (name in ops.DROPOUT and not ops.is_random(node))
        if not peelable or len(following) != 1 or not ops.same_shape(following[0], node):
            return node
        node = following[0]


def _makers(
    slot: fx.Node, block: Block, slots: set[fx.Node], dependent: set[fx.Node]
) -> frozenset[fx.Node]:
    """The block's nodes between its streams and ``slot``, other slots excluded."""
    inside = set(block.nodes)
    seen: set[fx.Node] = set()
    queue = [slot]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        above = (argument for argument in node.all_input_nodes if argument in inside and argument in dependent)
        queue.extend(argument for argument in above if argument not in block.spine and argument not in slots)
    return frozenset(seen)


def _joined(slots: list[fx.Node], made_by: dict[fx.Node, frozenset[fx.Node]]) -> list[list[fx.Node]]:
    """Slots that share expensive makers (the two halves of a joint attention) belong to one site."""
    groups: list[list[fx.Node]] = []
    for slot in slots:
        heavy = {node for node in made_by[slot] if ops.op(node) in ops.HEAVY}
        home = next((group for group in groups if any(heavy & made_by[other] for other in group)), None)
        if home is None:
            groups.append([slot])
        else:
            home.append(slot)
    return groups


def _site_name(block: Block, slots: Iterable[fx.Node]) -> str:
    """The path of the child of the block that made the slots, or the block's own."""
    depth = block.name.count(".") + 2
    paths = {".".join(node.meta["path"].split(".")[:depth]) for node in slots}
    return paths.pop() if len(paths) == 1 else block.name


def _named(site: str, leaving: list[tuple[fx.Node, fx.Node | None]]) -> tuple[Slot, ...]:
    many = len(leaving) > 1
    return tuple(
        Slot(f"{site}[{index}]" if many else site, node, carried)
        for index, (node, carried) in enumerate(leaving)
    )


def _exclusive_cone(draft: _Draft, stops: set[fx.Node], order: dict[fx.Node, int]) -> set[fx.Node]:
    """The nodes every use of which ends in the draft's slots."""
    own = {slot.node for slot in draft.slots}
    cone: set[fx.Node] = set(own)
    for node in sorted(order, key=order.__getitem__, reverse=True):
        if node in stops or node.op in ("placeholder", "output", "get_attr") or not node.users:
            continue
        if all(user in cone for user in node.users):
            cone.add(node)
    return cone


def _refusal(draft: _Draft, region: set[fx.Node], dependent: set[fx.Node]) -> str | None:
    """Why the site cannot be rewritten, or None."""
    for node in sorted(region | draft.zone, key=lambda node: node.name):
        if ops.is_random(node):
            return f"`{node.name}` ({ops.op(node)}) draws random numbers, which a forecast step would skip"
        target = ops.mutated(node)
        if target is not None and node in region and target not in region:
            return f"`{node.name}` ({ops.op(node)}) writes in place to `{target.name}`, which the site did not make"
    for slot in draft.slots:
        for user in slot.node.users:
            if ops.mutated(user) is slot.node:
                return f"`{slot.node.name}` is written in place by `{user.name}` ({ops.op(user)}) after it leaves the site"
        if slot.carried is None and _aliases_an_input(slot.node, region):
            return f"`{slot.node.name}` is a view of the site's own input"
    escaping = [n for n in draft.zone if ops.op(n) in ops.HEAVY and n in dependent and n not in region]
    if escaping:
        node = min(escaping, key=lambda node: node.name)
        reader = next((user for user in node.users if user not in region), node)
        return f"`{node.name}` ({ops.op(node)}) is also read by `{reader.name}`, outside the site"
    if not any(ops.op(node) in ops.HEAVY for node in region):
        return "nothing in it is worth caching: no matrix product, convolution or attention"
    return None


def _aliases_an_input(slot: fx.Node, region: set[fx.Node]) -> bool:
    inputs = {argument for node in region for argument in node.all_input_nodes} - region
    storage = ops.value(slot).untyped_storage()._cdata
    return any(ops.is_tensor(i) and ops.value(i).untyped_storage()._cdata == storage for i in inputs)


def _streams_of(draft: _Draft, runs: list[Run]) -> set[fx.Node]:
    return {
        node
        for run in runs
        for block in run.blocks
        if draft.zone & set(block.nodes)
        for node in block.spine | block.entries
    }
