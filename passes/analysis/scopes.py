"""The cut of each scope: the slots of its sites, and the zone each site is meant to make dead.

    module     the contributions of the residual sums, without their gates
    block      each block's residual on each of its streams
    stack      the residual over the whole run of blocks, or over its middle
    output     the hidden state that leaves the run of blocks

A slot with a ``carried`` value caches ``node - carried``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from hicache_compile.passes.analysis.blocks import Block, Run, Streams
from hicache_compile.passes.analysis.carried_stream import carry
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.ancestry import Ancestry
from hicache_compile.policy.guards import Measure
from hicache_compile.policy.layout import NOWHERE, Layout


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor that leaves a site. ``carried``: at scopes block and stack, the stream to which it is a residual."""

    name: str
    node: fx.Node
    carried: fx.Node | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A site without its region, which is computed later."""

    name: str
    slots: tuple[Slot, ...]
    zone: frozenset[fx.Node]  # the nodes the site is meant to make dead
    group: str = ""


def _module_drafts(graph: fx.Graph, run: Run, layout: Layout, dependent: set[fx.Node]) -> list[Draft]:
    """One site per attention or MLP: the contributions of the residual sums, stripped of their gates."""
    drafts = []
    spines = {node for block in run.blocks for node in (*block.spine, *block.entries)}
    drafts_of: list[tuple[Block, dict[fx.Node, frozenset[fx.Node]]]] = []
    cached = run.blocks[min(layout.starts) : len(run.blocks) - layout.last]
    for block in cached:
        if all(residual.opaque for residual in block.residuals):
            drafts.append(_residual_draft(graph, block.name, [block], dependent))
        slots = [_strip_gate(residual.contribution, dependent) for residual in block.residuals]
        slots = [node for node in dict.fromkeys(slots) if node not in block.spine]
        made_by = {node: _makers(node, spines, set(slots), dependent) for node in slots}
        drafts_of.append((block, made_by))
    # A value shared by several blocks (a modulation computed once for all of them) belongs to none: it stays live.
    shared = _in_several(frozenset().union(*made_by.values()) for _, made_by in drafts_of)
    for block, made_by in drafts_of:
        for group in _joined(list(made_by), made_by):
            zone = frozenset().union(*(made_by[node] for node in group)) - shared
            if any(ops.op(node) in ops.HEAVY for node in zone):
                name = _site_name(block, group)
                named = _named(name, [(node, None) for node in group])
                drafts.append(Draft(name, named, zone, _group_of(run.blocks.index(block), layout)))
    return drafts


def _in_several(groups: Iterable[frozenset[fx.Node]]) -> set[fx.Node]:
    """The nodes in more than one of ``groups``."""
    seen: set[fx.Node] = set()
    twice: set[fx.Node] = set()
    for group in groups:
        twice |= seen & group
        seen |= group
    return twice


def _block_drafts(graph: fx.Graph, run: Run, layout: Layout, dependent: set[fx.Node]) -> list[Draft]:
    """One site per block: its residual on each stream."""
    cached = run.blocks[min(layout.starts) : len(run.blocks) - layout.last]
    first = run.blocks.index(cached[0]) if cached else 0
    drafts = [_residual_draft(graph, block.name, [block], dependent) for block in cached]
    return [replace(draft, group=_group_of(first + place, layout)) for place, draft in enumerate(drafts)]


def _stack_drafts(graph: fx.Graph, run: Run, layout: Layout, dependent: set[fx.Node]) -> list[Draft]:
    """One site: the residual over the whole run of blocks, or over its middle; several where guards skip from
    different blocks on, or ranges of blocks have schedules of their own. Where the first blocks align the forecast, it
    is the residual over those too."""
    end = len(run.blocks) - layout.last
    ranges = (layout.start_of(place, len(run.blocks)) for place in range(len(layout.ranges)))
    starts = sorted({*layout.starts, *(start for start in ranges if min(layout.starts) < start < end)})
    aligned = any(probe.measure in (Measure.END, Measure.EXCESS) for probe in layout.probes)
    drafts = []
    for start, stop in itertools.pairwise([*starts, end]):
        cached = run.blocks[start:stop]
        if not cached:
            continue
        name = cached[0].name if len(cached) == 1 else f"{cached[0].name}..{cached[-1].name}"
        draft = _residual_draft(graph, name, cached, dependent, run.blocks[:stop] if aligned else cached)
        drafts.append(replace(draft, group=_group_of(start, layout)))
    return drafts


def _output_drafts(graph: fx.Graph, run: Run, layout: Layout, dependent: set[fx.Node]) -> list[Draft]:
    """One site: the hidden state that leaves the run of blocks."""
    zone = _zone(graph, run.blocks[max(layout.starts) :])
    slots = [(node, None) for node in _leaving(zone, dependent)]
    name = f"{run.blocks[0].name}..{run.blocks[-1].name}"
    return [Draft(name, _named(name, slots), zone)] if slots else []


def _no_drafts(graph: fx.Graph, run: Run, layout: Layout, dependent: set[fx.Node]) -> list[Draft]:
    """No site: every step is computed."""
    return []


def _group_of(block: int, layout: Layout) -> str:
    """Where guards skip from different blocks on: the sites that are forecast together with those of ``block``."""
    starts = sorted(set(layout.starts))
    return f"from_{max(start for start in starts if start <= block)}" if len(starts) > 1 else ""


DRAFTS = {
    NOWHERE: _no_drafts,
    "module": _module_drafts,
    "block": _block_drafts,
    "stack": _stack_drafts,
    "output": _output_drafts,
}


def _residual_draft(
    graph: fx.Graph, name: str, blocks: list[Block], dependent: set[fx.Node], base: list[Block] | None = None
) -> Draft:
    """One site over ``blocks``: each value that leaves them, as a residual to its stream at the entry of ``blocks``.

    With ``base``, a list of blocks that ends with ``blocks``, the residual is to the stream at the entry of ``base``.
    """
    zone = _zone(graph, blocks) - _preparation(graph, blocks[0])
    over = base or blocks
    whole = zone if over == blocks else _zone(graph, over) - _preparation(graph, over[0])
    streams = Streams(set(whole))
    leaving = []
    for node in _leaving(zone, dependent):
        carried = carry(graph, node, streams, over)
        begins = carried is None or carried is node  # a stream of its own, as after a convolution with a stride
        leaving.append((node, _entered_as(node, whole, over) if begins else carried))
    return Draft(name, _named(name, leaving), zone)


def _preparation(graph: fx.Graph, block: Block) -> set[fx.Node]:
    """The nodes of ``block`` before the first residual sum of a stream (merging a long skip): they stay live."""
    ancestry = Ancestry(graph)
    sums = ancestry.bits(residual.node for residual in block.residuals)
    starts = [entry for entry in block.entries if entry in block.nodes and not ancestry.above(entry) & sums]
    return set(starts) | ancestry.within(ancestry.above_all(starts))


def _entered_as(node: fx.Node, zone: frozenset[fx.Node], blocks: list[Block]) -> fx.Node | None:
    """The only entry of ``zone`` with the shape and dtype of ``node``; None if there are none or several.

    After a norm or a convolution ``node`` carries no stream, but its difference to that entry can still be cached.
    """
    entries = {entry for block in blocks for entry in block.entries if entry not in zone}
    alike = [e for e in entries if ops.same_shape(e, node) and ops.value(e).dtype == ops.value(node).dtype]
    return alike[0] if len(alike) == 1 else None


def _zone(graph: fx.Graph, blocks: list[Block]) -> frozenset[fx.Node]:
    """The nodes of ``blocks`` and all nodes on paths between them."""
    ancestry = Ancestry(graph)
    return frozenset(ancestry.between(ancestry.bits(node for block in blocks for node in block.nodes)))


def _leaving(zone: frozenset[fx.Node], dependent: set[fx.Node]) -> list[fx.Node]:
    """The values that leave ``zone`` and depend on its streams, in graph order."""
    inside = [node for node in zone if node in dependent and ops.is_tensor(node)]
    leaving = {node for node in inside if any(user not in zone and "probe" not in user.meta for user in node.users)}
    return [node for node in next(iter(zone)).graph.nodes if node in leaving] if zone else []


def _strip_gate(node: fx.Node, dependent: set[fx.Node]) -> fx.Node:
    """``gate * y`` -> ``y``: remove factors that do not depend on the streams, and the casts around them."""
    slot = node
    while True:
        arguments = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        following = [argument for argument in arguments if argument in dependent]
        if len(following) != 1 or not ops.same_shape(following[0], node):
            return slot
        name = ops.op(node)
        if name in ops.MUL | ops.CAST or (name in ops.DIV and following == arguments[:1]):
            slot = following[0]
        elif name not in ops.DROPOUT or ops.is_random(node):
            return slot
        node = following[0]


def _makers(slot: fx.Node, spines: set[fx.Node], slots: set[fx.Node], dependent: set[fx.Node]) -> frozenset[fx.Node]:
    """The nodes between the streams and ``slot``, without other slots."""
    seen: set[fx.Node] = set()
    queue = [slot]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        above = (argument for argument in node.all_input_nodes if argument in dependent)
        queue.extend(argument for argument in above if argument not in spines and argument not in slots)
    return frozenset(seen)


def _joined(slots: list[fx.Node], made_by: dict[fx.Node, frozenset[fx.Node]]) -> list[list[fx.Node]]:
    """Groups of slots with shared expensive makers (the two halves of a joint attention); each group is one site."""
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
    """The path of the block's child that computes the slots, or the path of the block."""
    depth = block.name.count(".") + 2
    paths = {".".join(node.meta["path"].split(".")[:depth]) for node in slots}
    return paths.pop() if len(paths) == 1 else block.name


def _named(site: str, leaving: Sequence[tuple[fx.Node, fx.Node | None]]) -> tuple[Slot, ...]:
    many = len(leaving) > 1
    return tuple(
        Slot(f"{site}[{index}]" if many else site, node, carried) for index, (node, carried) in enumerate(leaving)
    )
