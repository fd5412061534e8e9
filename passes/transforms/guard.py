"""guarded: every site is one call, ``full_or_forecast(full, computing, operands, carried, anchors, ...)``.

before   attn = linear(sdpa(q(norm(x)), ...));  x2 = x + gate * attn
after    (attn,) = full_or_forecast(self.blocks_0_attn, computing, [x, ...], [None], [anchors_0], position, weights)
         x2 = x + gate * attn

Requires   sites on a working copy of the captured graph
Ensures    the graph runs as it is; new inputs follow the denoiser's own: computing, position ``[1]``
           int64, weights ``[K]`` (or ``[slots, K]``, where each slot has its own), and one ring
           ``[K, *S]`` a slot; every op of the captured graph is there exactly once, in the graph or in one
           site
Refuses    a site that would have to run both before and after something outside it
"""

from __future__ import annotations

import math
import operator
import re
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.operators import measurements as measure
from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes.analysis.scopes import Slot
from hicache_compile.passes.analysis.sites import Site, Sites
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.contracted_order import contracted_order
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, module_of
from hicache_compile.passes.transforms.insert_probes import ProbeWriter
from hicache_compile.policy.guards import Measure, Signal


def guard(
    found: Sites, depth: int, anchor_dtype: torch.dtype | None = None, by_slot: bool = False
) -> tuple[fx.GraphModule, list[CannotRewrite]]:
    """Rewrite the sites of ``found`` into guarded calls with rings of ``depth`` anchors.

    ``anchor_dtype``: what anchors are kept in; by default each in its slot's own dtype. ``by_slot``: each slot has
    weights of its own.
    """
    sites, refused = list(found.sites), []
    order = _order(found.module.graph, sites)
    while order is None:
        tangled = next(s for s in sites if _order(found.module.graph, [s]) is None or s is sites[-1])
        sites.remove(tangled)
        refused.append(CannotRewrite(tangled.name, "part of it must run after something that reads its slots"))
        order = _order(found.module.graph, sites)
    return _Writer(found, sites, depth, anchor_dtype, by_slot).write(order), refused


def _order(graph: fx.Graph, sites: list[Site]) -> list[fx.Node | Site] | None:
    """The nodes with each region contracted to its site, sorted; None when that makes a cycle.

    (In the guarded graph, not in the captured one, a site reads the streams it carries.)
    """
    streams = [[slot.carried for slot in site.slots if slot.carried is not None] for site in sites]
    order = contracted_order(graph, [site.region for site in sites], streams)
    return None if order is None else [sites[unit] if isinstance(unit, int) else unit for unit in order]


class _Writer:
    """Writes the guarded graph node by node."""

    def __init__(
        self, found: Sites, sites: list[Site], depth: int, anchor_dtype: torch.dtype | None, by_slot: bool
    ) -> None:
        self.origin = found.module
        self.found = found
        self.sites = sites
        self.depth = depth
        self.anchor_dtype = anchor_dtype
        self.by_slot = by_slot
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.submodules: dict[str, fx.GraphModule] = {}
        self.slots = [slot for site in sites for slot in site.slots]
        self.ring_of: dict[Slot, fx.Node] = {}
        self.rings = 0
        self.controls: dict[str, tuple[fx.Node, ...]] = {}  # computing, position, weights of each group

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
        with fake_mode_of(like):
            position = torch.zeros(1, dtype=torch.int64, device=like.device)
            each = (len(self.slots), self.depth) if self.by_slot else (self.depth,)
            weights = torch.empty(each, dtype=widest, device=like.device)
        examples = {"computing": True, "position": position, "weights": weights}
        made: dict[str, fx.Node] = {}
        for group in dict.fromkeys(site.group for site in self.sites):
            # Guards skip from a block on, but what they skip is remembered together.
            shared = ("position", "weights") if self.found.probes else ()
            states = [f"{name}:{group}" if group and name not in shared else name for name in examples]
            for state, example in zip(states, examples.values(), strict=True):
                if state not in made:
                    made[state] = self._input(re.sub(r"\W", "_", state), state, example)
            self.controls[group] = tuple(made[state] for state in states)
        for slot in self.slots:
            self.ring_of[slot] = self._ring(slot.name, slot.node)

    def _ring(self, name: str, node: fx.Node) -> fx.Node:
        index = self.rings
        self.rings += 1
        with self.graph.inserting_after(self.graph.find_nodes(op="placeholder")[-1]):
            ring = self._input(f"anchors_{index}", "anchors", new_ring(ops.value(node), self.depth, self.anchor_dtype))
        ring.meta["slot"] = index
        ring.meta["slot_name"] = name
        return ring

    def _input(self, name: str, role: str, example: Any) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta = {"example_value": example, "state": role, "path": ""}
        node._dynamo_source = None
        if role == "anchors":
            node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        return node

    def _call_site(self, site: Site) -> None:
        region = set(site.region)
        read = dict.fromkeys(a for node in site.region for a in node.all_input_nodes if a not in region)
        operands = [argument for argument in read if argument.op != "get_attr"]
        name = self._outline(site, operands)
        full = self.graph.get_attr(name)
        carried = [None if slot.carried is None else self.env[slot.carried] for slot in site.slots]
        computing, position, weights = self.controls[site.group]
        call = self.graph.call_function(
            full_or_forecast,
            (
                full,
                computing,
                [self.env[operand] for operand in operands],
                carried,
                [self.ring_of[slot] for slot in site.slots],
                position,
                [self._own(weights, slot, site) for slot in site.slots] if self.by_slot else weights,
            ),
            {"dtypes": [ops.value(slot.node).dtype for slot in site.slots]} if self.anchor_dtype else {},
        )
        call.meta = {"path": site.name, "site": site.name, "kind": site.kind, "group": site.group}
        for index, slot in enumerate(site.slots):
            output = self.graph.create_node("call_function", operator.getitem, (call, index), name=slot.node.name)
            output.meta = {"path": site.name, "example_value": ops.value(slot.node)}
            self.env[slot.node] = output

    def _own(self, weights: fx.Node, slot: Slot, site: Site) -> fx.Node:
        """The row of ``weights`` that belongs to ``slot``."""
        index = self.ring_of[slot].meta["slot"]
        row = self.graph.call_function(operator.getitem, (weights, index))
        row.meta = {"path": site.name, "example_value": ops.value(weights)[index]}
        return row

    def _measure_late(self) -> None:
        """What guards measure of the sites themselves, or of a forecast's consequences."""
        if not self.slots:
            return
        _, position, weights = self.controls[self.sites[-1].group]
        for stage, probe in enumerate(self.found.probes):
            writer = ProbeWriter(self.graph, stage)
            if probe.measure is Measure.VERIFY:
                added = self.env[self.found.verified[stage]]
                ring = self._ring(f"verified_{stage}", added)
                drafted = writer.value(forecast, ring, weights)
                written = self.graph.call_function(remember, (ring, position, added))
                written.meta = {"path": "", "side_effect": True, "probe": "computed", "stage": stage}
                writer.measured(measure.change, added, drafted, when="forecast")
            elif probe.signal is Signal.SITES:
                slot = max(self.slots, key=lambda slot: _numel(slot.node))
                added = self.env[slot.node]
                if slot.carried is not None:
                    added = writer.value(torch.sub, added, self.env[slot.carried])
                before = writer.memory("before", added)
                read = writer.measured(measure.change, added, before, when="computed")
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
        self.submodules[name] = fx.GraphModule(self.origin, graph)
        return name


def _numel(node: fx.Node) -> int:
    return math.prod(n if isinstance(n, int) else n.node.hint or 1 for n in ops.value(node).shape)


def new_ring(like: torch.Tensor, depth: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A fake ring ``[depth, *S]`` for values like ``like``, in ``dtype`` or their own."""
    with fake_mode_of(like):
        return torch.empty((depth, *like.shape), dtype=dtype or like.dtype, device=like.device)
