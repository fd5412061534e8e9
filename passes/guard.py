"""guarded: every site is one call, ``full_or_forecast(full, computing, operands, carried, anchors, ...)``.

before   attn = linear(sdpa(q(norm(x)), ...));  x2 = x + gate * attn
after    (attn,) = full_or_forecast(self.blocks_0_attn, computing, [x, ...], [None], [anchors_0], position, weights)
         x2 = x + gate * attn

Requires   sites on a working copy of the captured graph
Ensures    the graph runs as it is; new inputs follow the denoiser's own: computing, position ``[1]``
           int64, weights ``[K]``, and one ring ``[K, *S]`` a slot; every op of the captured graph
           is there exactly once, in the graph or in one site
Refuses    a site that would have to run both before and after something outside it
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes import ops
from hicache_compile.passes.branch import full_or_forecast
from hicache_compile.passes.graphs import copy_node, fake_mode_of, module_of
from hicache_compile.passes.order import contracted_order
from hicache_compile.passes.scopes import Slot
from hicache_compile.passes.sites import Site, Sites


def guard(
    found: Sites, depth: int, anchor_dtype: torch.dtype | None = None
) -> tuple[fx.GraphModule, list[CannotRewrite]]:
    """Rewrite the sites of ``found`` into guarded calls with rings of ``depth`` anchors.

    ``anchor_dtype``: what anchors are kept in; by default each in its slot's own dtype.
    """
    sites, refused = list(found.sites), []
    order = _order(found.module.graph, sites)
    while order is None:
        tangled = next(s for s in sites if _order(found.module.graph, [s]) is None or s is sites[-1])
        sites.remove(tangled)
        refused.append(CannotRewrite(tangled.name, "part of it must run after something that reads its slots"))
        order = _order(found.module.graph, sites)
    return _Writer(found.module, sites, depth, anchor_dtype).write(order), refused


def _order(graph: fx.Graph, sites: list[Site]) -> list[fx.Node | Site] | None:
    """The nodes with each region contracted to its site, sorted; None when that makes a cycle.

    (In the guarded graph, not in the captured one, a site reads the streams it carries.)
    """
    streams = [[slot.carried for slot in site.slots if slot.carried is not None] for site in sites]
    order = contracted_order(graph, [site.region for site in sites], streams)
    return None if order is None else [sites[unit] if isinstance(unit, int) else unit for unit in order]


class _Writer:
    """Writes the guarded graph node by node."""

    def __init__(self, origin: fx.GraphModule, sites: list[Site], depth: int, anchor_dtype: torch.dtype | None) -> None:
        self.origin = origin
        self.depth = depth
        self.anchor_dtype = anchor_dtype
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.submodules: dict[str, fx.GraphModule] = {}
        self.slots = [slot for site in sites for slot in site.slots]
        self.ring_of: dict[Slot, fx.Node] = {}

    def write(self, order: list[fx.Node | Site]) -> fx.GraphModule:
        inputs = [node for node in order if isinstance(node, fx.Node) and node.op == "placeholder"]
        for node in inputs:
            self.env[node] = copy_node(self.graph, node, self.env.__getitem__)
        if self.slots:
            self._declare_state()
        for unit in order:
            if isinstance(unit, Site):
                self._call_site(unit)
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
            weights = torch.empty(self.depth, dtype=widest, device=like.device)
        self.computing = self._input("computing", "computing", True)
        self.position = self._input("position", "position", position)
        self.weights = self._input("weights", "weights", weights)
        for index, slot in enumerate(self.slots):
            ring = self._input(
                f"anchors_{index}", "anchors", new_ring(ops.value(slot.node), self.depth, self.anchor_dtype)
            )
            ring.meta["slot"] = index
            ring.meta["slot_name"] = slot.name
            self.ring_of[slot] = ring

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
        call = self.graph.call_function(
            full_or_forecast,
            (
                full,
                self.computing,
                [self.env[operand] for operand in operands],
                carried,
                [self.ring_of[slot] for slot in site.slots],
                self.position,
                self.weights,
            ),
            {"dtypes": [ops.value(slot.node).dtype for slot in site.slots]} if self.anchor_dtype else {},
        )
        call.meta = {"path": site.name, "site": site.name, "kind": site.kind}
        for index, slot in enumerate(site.slots):
            output = self.graph.create_node("call_function", operator.getitem, (call, index), name=slot.node.name)
            output.meta = {"path": site.name, "example_value": ops.value(slot.node)}
            self.env[slot.node] = output

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


def new_ring(like: torch.Tensor, depth: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A fake ring ``[depth, *S]`` for values like ``like``, in ``dtype`` or their own."""
    with fake_mode_of(like):
        return torch.empty((depth, *like.shape), dtype=dtype or like.dtype, device=like.device)
