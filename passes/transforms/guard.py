"""guarded: every site is one call, ``full_or_forecast(full, computing, operands, carried, anchors, ...)``.

before   attn = linear(sdpa(q(norm(x)), ...));  x2 = x + gate * attn
after    (attn,) = full_or_forecast(self.blocks_0_attn, computing, [x, ...], [None], [anchors_0], position, weights)
         x2 = x + gate * attn

Requires   sites on a working copy of the captured graph
Ensures    the graph runs as it is; new inputs follow the denoiser's own: computing (for each group),
           position ``[groups]`` int64, weights ``[K]`` (or ``[rows, K]``: a row for each group, or for
           each slot), and one ring ``[K, *S]`` a slot, with scales ``[K]`` where it is quantised; every
           op of the captured graph is there exactly
           once, in the graph or in one site
Refuses    a site that would have to run both before and after something outside it
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.operators import measurements
from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes.analysis.scopes import Slot
from hicache_compile.passes.analysis.sites import Site
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.contracted_order import contracted_order
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, graph_module, module_of, numel
from hicache_compile.passes.graph.inputs import Role, StateInput, add_input
from hicache_compile.passes.graph.parts import check_parts, how, parts_of
from hicache_compile.passes.graph.quantised_rings import scale_input, to_forecast, to_remember
from hicache_compile.passes.transforms.insert_probes import ProbeWriter
from hicache_compile.passes.work import Work
from hicache_compile.policy.guards import Measure, Signal


def guard_sites(work: Work) -> int:
    """Write the guarded graph of the sites; returns how many are guarded. Sites that cannot be are declined."""
    sites = work.sites
    order = _order(work.module.graph, sites)
    while order is None:
        tangled = next(s for s in sites if _order(work.module.graph, [s]) is None or s is sites[-1])
        sites = [site for site in sites if site is not tangled]
        work.refused.append(CannotRewrite(tangled.name, "part of it must run after something that reads its slots"))
        order = _order(work.module.graph, sites)
    work.sites = sites
    work.guarded = _Writer(work).write(order)
    return len(sites)


def _order(graph: fx.Graph, sites: list[Site]) -> list[fx.Node | Site] | None:
    """The nodes with each region contracted to its site, sorted; None when that makes a cycle.

    (In the guarded graph, not in the captured one, a site reads the streams it carries.)
    """
    streams = [[slot.carried for slot in site.slots if slot.carried is not None] for site in sites]
    order = contracted_order(graph, [site.region for site in sites], streams)
    return None if order is None else [sites[unit] if isinstance(unit, int) else unit for unit in order]


class _Writer:
    """Writes the guarded graph node by node."""

    def __init__(self, work: Work) -> None:
        self.origin = work.module
        self.layout = work.layout
        self.sites = work.sites
        self.verified = work.verified
        self.ranks = work.ranks
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.submodules: dict[str, fx.GraphModule] = {}
        self.slots = [slot for site in self.sites for slot in site.slots]
        self.ring_of: dict[Slot, fx.Node] = {}
        self.scale_of: dict[fx.Node, fx.Node | None] = {}  # by ring
        self.rings = 0
        self.computing: dict[str, fx.Node] = {}  # by group
        self.groups = list(dict.fromkeys(site.group for site in self.sites)) if self.layout.groups else [""]
        self.position: fx.Node | None = None
        self.weights: fx.Node | None = None

    def write(self, order: list[fx.Node | Site]) -> fx.GraphModule:
        inputs = [node for node in order if isinstance(node, fx.Node) and node.op == "placeholder"]
        for node in inputs:
            self.env[node] = copy_node(self.graph, node, self.env.__getitem__)
        if self.slots:
            self._declare_state()
        for unit in order:
            if isinstance(unit, Site):
                self._call_site(unit)
            elif unit.op == "output":
                self._measure_late()
                self.env[unit] = copy_node(self.graph, unit, self.env.__getitem__)
            elif unit.op != "placeholder":
                self.env[unit] = copy_node(self.graph, unit, self.env.__getitem__)
        for name, module in self.submodules.items():
            self.origin.add_submodule(name, module)
        return module_of(self.graph, self.origin)

    def _declare_state(self) -> None:
        like = ops.value(self.slots[0].node)
        widest = torch.float32
        for slot in self.slots:
            widest = torch.promote_types(widest, ops.value(slot.node).dtype)
        rows = (len(self.slots) if self.layout.per_slot else len(self.groups)) * self.layout.rows
        shape = (rows, self.layout.depth) if rows > 1 or self.layout.per_slot else (self.layout.depth,)
        with fake_mode_of(like):
            position = torch.zeros(len(self.groups), dtype=torch.int64, device=like.device)
            weights = torch.empty(shape, dtype=widest, device=like.device)
        for group in dict.fromkeys(site.group for site in self.sites):
            self.computing[group] = add_input(self.graph, StateInput(Role.COMPUTING, group), True)
        self.position = add_input(self.graph, StateInput(Role.POSITION), position)
        self.weights = add_input(self.graph, StateInput(Role.WEIGHTS), weights)
        check_parts(self.layout, [ops.value(slot.node) for slot in self.slots], self.ranks)
        for slot in self.slots:
            self.ring_of[slot] = self._ring(slot.name, slot.node)

    def _ring(self, name: str, node: fx.Node) -> fx.Node:
        state = StateInput(Role.ANCHORS, slot=self.rings)
        stored = getattr(torch, self.layout.anchors) if self.layout.anchors else None
        ring = add_input(self.graph, state, new_ring(ops.value(node), self.layout.depth, stored))
        ring.meta["slot_name"] = name
        self.scale_of[ring] = scale_input(self.graph, ring)
        self.rings += 1
        return ring

    def _position_of(self, group: str) -> fx.Node:
        """The ring row that sites of ``group`` write, ``[1]``."""
        assert self.position is not None
        row = self.groups.index(group) if self.layout.groups else 0
        return self._picked(self.position, slice(row, row + 1)) if len(self.groups) > 1 else self.position

    def _weights_of(self, slot: Slot, group: str) -> fx.Node:
        """The weights of ``slot``, ``[K]``, or ``[parts, K]``."""
        assert self.weights is not None
        if self.layout.per_slot:
            return self._picked(self.weights, self.ring_of[slot].meta["slot"])
        if len(self.groups) == 1:
            return self.weights
        row, parts = self.groups.index(group), self.layout.rows
        return self._picked(self.weights, row if parts == 1 else slice(row * parts, (row + 1) * parts))

    def _picked(self, source: fx.Node, place: Any) -> fx.Node:
        picked = self.graph.call_function(operator.getitem, (source, place))
        picked.meta = {"path": "", "calls": (), "example_value": ops.value(source)[place]}
        return picked

    def _call_site(self, site: Site) -> None:
        region = set(site.region)
        read = dict.fromkeys(a for node in site.region for a in node.all_input_nodes if a not in region)
        operands = [argument for argument in read if argument.op != "get_attr"]
        name = self._outline(site, operands)
        full = self.graph.get_attr(name)
        carried = [None if slot.carried is None else self.env[slot.carried] for slot in site.slots]
        shared = not self.layout.per_slot
        weights = [self._weights_of(slot, site.group) for slot in (site.slots[:1] if shared else site.slots)]
        call = self.graph.call_function(
            full_or_forecast,
            (
                full,
                self.computing[site.group],
                [self.env[operand] for operand in operands],
                carried,
                [self.ring_of[slot] for slot in site.slots],
                self._position_of(site.group),
                weights[0] if shared else weights,
            ),
            self._stored_otherwise(site) | self._divided(site),
        )
        call.meta = {"path": site.name, "site": site.name, "kind": site.kind, "group": site.group}
        for index, slot in enumerate(site.slots):
            output = self.graph.create_node("call_function", operator.getitem, (call, index), name=slot.node.name)
            output.meta = {"path": site.name, "example_value": ops.value(slot.node)}
            self.env[slot.node] = output

    def _stored_otherwise(self, site: Site) -> dict[str, Any]:
        """Arguments of sites whose rings have other dtypes than their slots."""
        if not self.layout.anchors:
            return {}
        scales = [self.scale_of[self.ring_of[slot]] for slot in site.slots]
        made: dict[str, Any] = {"dtypes": [ops.value(slot.node).dtype for slot in site.slots]}
        return made | ({"scales": scales} if None not in scales else {})

    def _divided(self, site: Site) -> dict[str, Any]:
        """Arguments of sites whose slots are forecast in parts."""
        slots = [self.ring_of[slot].meta["slot"] for slot in site.slots]
        return {} if self.layout.parts is None else {"parts": [parts_of(self.layout, slot) for slot in slots]}

    def _measure_late(self) -> None:
        """What guards measure of the sites themselves, or of a forecast's consequences."""
        if not self.slots:
            return
        for stage, probe in enumerate(self.layout.probes):
            writer = ProbeWriter(self.graph, stage, self.ranks)
            if probe.measure is Measure.VERIFY:
                added = self.env[self.verified[stage]]
                ring = self._ring(f"verified_{stage}", added)
                group = self.sites[-1].group  # what is verified goes along with the last site
                weights, position = self._weights_of(self.slots[-1], group), self._position_of(group)
                scale = self.scale_of[ring]
                row = to_forecast(writer.value, weights, scale)
                parts = parts_of(self.layout, ring.meta["slot"])
                drafted = writer.value(forecast, ring, row, *how(ops.value(added).dtype, parts))
                for kept, value in to_remember(writer.value, ring, scale, added):
                    written = self.graph.call_function(remember, (kept, position, value))
                    written.meta = {"path": "", "side_effect": True, "probe": "computed", "stage": stage}
                writer.measured(measurements.change, added, drafted, when="forecast")
            elif probe.signal is Signal.SITES:
                slot = max(self.slots, key=lambda slot: numel(slot.node))
                added = self.env[slot.node]
                if slot.carried is not None:
                    added = writer.value(torch.sub, added, self.env[slot.carried])
                before = writer.memory("before", added)
                read = writer.measured(measurements.change, added, before, when="computed")
                writer.keep(before, added, "computed", after=read)

    def _outline(self, site: Site, operands: list[fx.Node]) -> str:
        """The region as a submodule ``full(*operands) -> slots``; returns its attribute name."""
        graph = fx.Graph()
        inner: dict[fx.Node, fx.Node] = {}
        for operand in operands:
            inner[operand] = graph.placeholder(operand.name)
            inner[operand].meta = dict(operand.meta)
        for node in site.region:
            for argument in node.all_input_nodes:
                if argument.op == "get_attr" and argument not in inner:  # the mask function of flex attention
                    inner[argument] = copy_node(graph, argument, inner.__getitem__)
            inner[node] = copy_node(graph, node, inner.__getitem__)
        graph.output(tuple(inner[slot.node] for slot in site.slots))
        base = re.sub(r"\W+", "_", site.name).strip("_") or "site"
        name = base
        while name in self.submodules:
            name = f"{base}_{len(self.submodules)}"
        self.submodules[name] = graph_module(self.origin, graph)
        return name


def new_ring(like: torch.Tensor, depth: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A fake ring ``[depth, *S]`` for values like ``like``, in ``dtype`` or their own."""
    with fake_mode_of(like):
        return torch.empty((depth, *like.shape), dtype=dtype or like.dtype, device=like.device)
