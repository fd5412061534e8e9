"""Compute only the rows of a linear layer that a forecast program reads.

before   shift, scale, gate = linear(silu(t), w, b).chunk(3, dim=-1);  x + gate * forecast(...)
after    gate = linear(silu(t), w[2 * d:], b[2 * d:]);  x + gate * forecast(...)

A block's modulation makes shifts, scales and gates in one product; once its attention and MLP are forecast only the
gates are read. The weights are sliced, not copied: their rows lie one after another.

Requires   a forecast program
Ensures    the same value for every output, up to rounding; no product makes a column nobody reads, where what reads
           it are chunks and splits along the last dimension
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx
from torch._subclasses import FakeTensor

from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import drop_dead_code

_PARTS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split"})


def narrow_rows(program: fx.GraphModule) -> int:
    """Narrow the linear layers of ``program`` in place; returns how many were."""
    narrowed = 0
    for node in list(program.graph.nodes):
        if ops.op(node) == "linear" and _has_plain_rows(node):
            parts = list(_parts_read(node, 0))
            width = ops.value(node).shape[-1]
            if None not in parts and sum(ops.value(p[0]).shape[-1] for p in parts if p) < width:
                for part in parts:
                    assert part is not None
                    _replace(node, *part)
                narrowed += 1
    drop_dead_code(program.graph)
    program.recompile()
    return narrowed


def _has_plain_rows(node: fx.Node) -> bool:
    """Whether the weight is a plain tensor: a quantised one may not be sliced."""
    weights = [argument for argument in node.args[1:] if isinstance(argument, fx.Node)]
    plain = all(type(ops.value(weight)) in (FakeTensor, torch.nn.Parameter) for weight in weights)
    return plain and not node.kwargs and all(isinstance(ops.value(weight).shape[0], int) for weight in weights)


def _parts_read(node: fx.Node, start: int) -> Iterator[tuple[fx.Node, int] | None]:
    """The items read of ``node`` along its last dimension, and the column each starts at; None where something reads
    it whole. ``start`` is the column ``node`` itself starts at."""
    for reader in node.users:
        if ops.op(reader) not in _PARTS or _dim(reader) not in (-1, ops.value(node).dim() - 1):
            yield None
            return
        offsets = [start]
        for item in ops.value(reader):
            offsets.append(offsets[-1] + item.shape[-1])
        for item in reader.users:
            if item.target is not operator.getitem or not isinstance(item.args[1], int):
                yield None
                return
            at = offsets[item.args[1] % len(ops.value(reader))]
            inner = list(_parts_read(item, at))
            if inner and None not in inner:
                yield from inner
            elif item.users:
                yield item, at


def _dim(node: fx.Node) -> int:
    dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    return dim if isinstance(dim, int) else 0


def _replace(linear: fx.Node, part: fx.Node, start: int) -> None:
    """Make ``part``, the columns of ``linear`` from ``start`` on, by a product of its own."""
    graph = linear.graph
    rows = slice(start, start + ops.value(part).shape[-1])
    given, *weights = linear.args
    with graph.inserting_after(linear):
        product = graph.call_function(linear.target, (given, *weights))  # type: ignore[arg-type]  # a function
    sliced = []
    for weight in weights:
        if isinstance(weight, fx.Node):
            with graph.inserting_before(product):
                taken = graph.call_function(operator.getitem, (weight, rows))
            taken.meta = {"path": linear.meta["path"], "example_value": ops.value(weight)[rows]}
            weight = taken  # noqa: PLW2901
        sliced.append(weight)
    product.args = (given, *sliced)
    product.meta = {**linear.meta, "example_value": ops.value(part)}
    part.replace_all_uses_with(product)
