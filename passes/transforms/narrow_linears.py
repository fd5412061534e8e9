"""Compute only the outputs of a linear layer that are read.

before   shift, scale, gate = linear(silu(t), w, b).chunk(3, dim=-1);  x + gate * forecast(...)
after    gate = linear(silu(t), w[2 * d:], b[2 * d:]);  x + gate * forecast(...)

A block's modulation makes shifts, scales and gates in one product; once its attention and MLP are forecast only the
gates are read. A fused projection whose MLP half is sparse is read in its other half alone. The weights are sliced, not
copied: their rows lie one after another.

Requires   a program
Ensures    the same value for every output, up to rounding; no product makes a column nobody reads, where what reads
           it are chunks, splits and slices along the last dimension
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from hicache_compile.internals import FakeTensor
from hicache_compile.passes.analysis.mlps import part_of
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import drop_dead_code


def narrow_linears(program: fx.GraphModule) -> int:
    """Narrow the linear layers of ``program`` in place; returns how many were."""
    narrowed = 0
    drop_dead_code(program.graph)
    for node in [node for node in program.graph.nodes if ops.op(node) == "linear" and _has_plain_rows(node)]:
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
    """What is read of ``node`` along its last dimension, and the column each starts at; None where it is read whole.
    ``start`` is the column ``node`` itself starts at."""
    for reader in node.users:
        items = [reader] if ops.is_tensor(reader) else list(reader.users)
        for item in items:
            bounds = part_of(item)
            if bounds is None or bounds[0] is not node:
                yield None
                return
            inner = list(_parts_read(item, start + bounds[1]))
            if inner and None not in inner:
                yield from inner
            elif item.users:
                yield item, start + bounds[1]


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
