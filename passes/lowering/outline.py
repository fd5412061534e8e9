"""outline: blocks that are alike become calls of one subgraph, so that a compiler works on it once.

before   h = linear(x, w0); x1 = x + h;  h_1 = linear(x1, w1); x2 = x1 + h_1
after    (x1,) = invoke_subgraph(self.block, "block", x, w0);  (x2,) = invoke_subgraph(self.block, "block", x1, w1)

What leaves a block as a view of something made in it (FLUX's single blocks return two slices of one tensor) is taken
from its base outside, because a subgraph may not return two views of one tensor.

Requires   a straight-line program whose nodes know their ``meta["block"]``
Ensures    the same ops on the same values; no subgraph returns an input, a view of one, or two views of one tensor
Refuses    silently, for it changes nothing but compile time: a block that is like no other, has a symbolic size or a
           value that is no tensor going in, draws random numbers, opens a context, or calls a submodule; a program
           that writes in place to anything but its rings
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from hicache_compile.internals import pytree
from hicache_compile.operators.anchors import forecast, remember
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.contexts import KERNELS
from hicache_compile.passes.graph.contracted_order import contracted_order
from hicache_compile.passes.graph.graphs import copy_graph, copy_node, graph_module, module_of

invoke_subgraph = torch.ops.higher_order.invoke_subgraph


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes of one block in graph order, what goes in and with which strides, and which of them are read outside.

    Two regions with the same ``calls`` and ``strides`` are alike.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    operands: tuple[fx.Node, ...]
    strides: tuple[tuple[int, ...], ...]
    read: frozenset[int]
    calls: Hashable

    @property
    def likeness(self) -> Hashable:
        return self.calls, self.strides


def outline(program: fx.GraphModule) -> tuple[fx.GraphModule, int]:
    """A copy of ``program`` with its repeated blocks outlined, and how many calls that made."""
    program, _ = copy_graph(program)
    if any(_writes_elsewhere(node) for node in program.graph.nodes):
        return program, 0
    regions = [region for block in _blocks(program.graph) if (region := _region(*block)) is not None]
    regions = _with_common_strides(regions)
    counts = Counter(region.likeness for region in regions)
    repeated = [region for region in regions if counts[region.likeness] > 1]
    order = contracted_order(program.graph, [region.nodes for region in repeated])
    if not repeated or order is None:
        return program, 0
    return _Writer(program, repeated).write(order), len(repeated)


def _writes_elsewhere(node: fx.Node) -> bool:
    opens = ops.op(node) in (*ops.OPENS, KERNELS)  # what is put elsewhere would run under another context
    return opens or (node.target is not remember and bool(ops.mutated(node)))


def _blocks(graph: fx.Graph) -> list[tuple[str, list[fx.Node]]]:
    """The nodes of each block, by name."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op.startswith("call") and "block" in node.meta:
            found.setdefault(node.meta["block"], []).append(node)
    return list(found.items())


def _region(name: str, nodes: list[fx.Node]) -> Region | None:
    """The part of a block to outline: all but the views it hands out."""
    inside = dict.fromkeys(nodes)
    for node in reversed(nodes):
        if _is_view(node) and not any(user in inside for user in node.users):
            del inside[node]
    kept = tuple(inside)
    index = {node: place for place, node in enumerate(kept)}
    operands = tuple(dict.fromkeys(a for node in kept for a in node.all_input_nodes if a not in index))
    if not _may_be_outlined(kept, operands):
        return None
    handed_out = {_base(node, index) for node in kept if any(user not in index for user in node.users)}
    if not handed_out or None in handed_out:
        return None
    read = frozenset(index[node] for node in handed_out if node is not None)
    strides = tuple(ops.value(operand).stride() for operand in operands)
    return Region(name, kept, operands, strides, read, _calls(kept, operands, index))


def _with_common_strides(regions: list[Region]) -> list[Region]:
    """``regions`` with the strides of most that do the same, where the difference leads nowhere.

    The first of FLUX's single blocks gets streams of their own, the others slices of one tensor; at batch 1 the two
    differ by the stride of a dimension of size 1.
    """
    common = {calls: Counter(r.strides for r in regions if r.calls == calls) for calls in {r.calls for r in regions}}
    found = []
    for region in regions:
        wanted = common[region.calls].most_common(1)[0][0]
        pairs = zip(region.operands, region.strides, wanted, strict=True)
        same = all(mine == theirs or _may_have(operand, theirs) for operand, mine, theirs in pairs)
        found.append(replace(region, strides=wanted) if same else region)
    return found


def _may_have(operand: fx.Node, strides: tuple[int, ...]) -> bool:
    """Whether ``operand``, the start of memory of its own, may be said to have ``strides``."""
    sizes, mine = ops.value(operand).shape, ops.value(operand).stride()
    same = all(size == 1 or a == b for size, a, b in zip(sizes, mine, strides, strict=True))
    return same and not _is_view(operand)


def _is_view(node: fx.Node) -> bool:
    """Whether ``node`` hands out memory of one of its arguments, or picks an item of something that does."""
    mine = {_storage(leaf) for leaf in pytree.tree_leaves(ops.value(node)) if isinstance(leaf, torch.Tensor)}
    given = pytree.tree_leaves([ops.value(argument) for argument in node.all_input_nodes])
    return bool(mine & {_storage(leaf) for leaf in given if isinstance(leaf, torch.Tensor)})


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _base(node: fx.Node, index: dict[fx.Node, int]) -> fx.Node | None:
    """What ``node`` is a view of, in the region; None when it is a view of an operand."""
    while _is_view(node):
        sources = [argument for argument in node.all_input_nodes if argument in index]
        if len(sources) != 1:
            return None
        node = sources[0]
    return node


def _may_be_outlined(nodes: tuple[fx.Node, ...], operands: tuple[fx.Node, ...]) -> bool:
    return (
        sum(ops.op(node) in ops.HEAVY for node in nodes) > 1
        and all(_is_plain_tensor(operand) for operand in operands)
        and all(ops.is_pure(node) and node.op != "get_attr" for node in nodes)
        and not any(operand.target is forecast for operand in operands)
    )


def _is_plain_tensor(node: fx.Node) -> bool:
    given = ops.value(node)
    return isinstance(given, torch.Tensor) and all(isinstance(size, int) for size in (*given.shape, *given.stride()))


def _calls(nodes: tuple[fx.Node, ...], operands: tuple[fx.Node, ...], index: dict[fx.Node, int]) -> Hashable:
    """Equal for two regions that compute the same of operands that look the same but for their strides."""
    outside = {node: place for place, node in enumerate(operands)}

    def name(node: fx.Node) -> str:
        return f"%{index[node]}" if node in index else f"${outside[node]}"

    calls = tuple((node.op, node.target, _text(node.args, name), _text(node.kwargs, name)) for node in nodes)
    return calls, tuple((v.shape, v.dtype, v.device) for v in map(ops.value, operands))


def _text(arguments: Any, name: Any) -> str:
    return repr(map_arg(arguments, lambda node: _Name(name(node))))


class _Name(str):
    """Prints without quotes, so that no string argument is taken for a node."""

    __slots__ = ()
    __repr__ = str.__str__


class _Writer:
    """Writes the program anew, a call for each region."""

    def __init__(self, program: fx.GraphModule, regions: list[Region]) -> None:
        self.program = program
        self.regions = regions
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.inlined: dict[fx.Node, fx.Node] = {}
        self.modules: dict[str, fx.GraphModule] = {}
        self.name_of: dict[Hashable, str] = {}
        self.results: dict[Hashable, list[int]] = {}
        for region in regions:
            read = set(self.results.get(region.likeness, ())) | region.read
            self.results[region.likeness] = sorted(read)

    def write(self, order: list[fx.Node | int]) -> fx.GraphModule:
        for unit in order:
            if isinstance(unit, int):
                self._call(self.regions[unit])
            else:
                self.env[unit] = copy_node(self.graph, unit, self._outside)
        for name, module in self.modules.items():
            self.program.add_submodule(name, module)
        return module_of(self.graph, self.program)

    def _outside(self, node: fx.Node) -> fx.Node:
        """``node`` where it is read outside: a view inside a region is made again from its base."""
        if node not in self.env:
            self.env[node] = copy_node(self.graph, node, self._outside)
        return self.env[node]

    def _call(self, region: Region) -> None:
        name = self.name_of.get(region.likeness)
        if name is None:
            name = self.name_of[region.likeness] = self._define(region)
        module = self.graph.get_attr(name)
        operands = [self._laid_out(*pair) for pair in zip(region.operands, region.strides, strict=True)]
        call = self.graph.call_function(invoke_subgraph, (module, name, *operands))
        call.meta = {"path": region.name, "block": region.name}
        for place, index in enumerate(self.results[region.likeness]):
            node = region.nodes[index]
            self.env[node] = self.graph.create_node("call_function", operator.getitem, (call, place), name=node.name)
            self.env[node].meta = dict(node.meta)

    def _laid_out(self, operand: fx.Node, strides: tuple[int, ...]) -> fx.Node:
        node, like = self._outside(operand), ops.value(operand)
        if strides == like.stride():
            return node
        laid = self.graph.call_function(torch.as_strided, (node, list(like.shape), list(strides)))
        laid.meta = {"path": operand.meta["path"], "example_value": like.as_strided(like.shape, strides)}
        return laid

    def _define(self, region: Region) -> str:
        graph = fx.Graph()
        inner: dict[fx.Node, fx.Node] = {}
        for operand in region.operands:
            inner[operand] = graph.placeholder(operand.name)
            inner[operand].meta = {"example_value": ops.value(operand)}
        for node in region.nodes:
            inner[node] = copy_node(graph, node, inner.__getitem__)
        graph.output(tuple(inner[region.nodes[index]] for index in self.results[region.likeness]))
        name = f"{re.sub(r'[^a-zA-Z0-9]+', '_', region.name).strip('_')}_and_alike"
        self.modules[name] = graph_module(torch.nn.Module(), graph)
        return name
