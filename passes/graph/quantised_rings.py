"""What is written and read where rings are quantised: each has a scale a row, which lasts from step to step.

remember(ring, position, value)    remember(scale, position, s := scale_of(value)); remember(ring, position, value / s)
forecast(ring, weights)            forecast(ring, weights * scale)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from hicache_compile.operators.anchors import QUANTISED, quantised, scale_of
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import call_node, fake_mode_of
from hicache_compile.passes.graph.inputs import SCALE, add_input, memory

Call = Callable[..., fx.Node]


def scale_input(graph: fx.Graph, ring: fx.Node) -> fx.Node | None:
    """The scales ``[K]`` of ``ring`` as a new input; ``None`` where it is not quantised."""
    example = ops.value(ring)
    if example.dtype not in QUANTISED:
        return None
    with fake_mode_of(example):
        made = torch.empty(example.shape[:1], dtype=torch.float32, device=example.device)
    return add_input(graph, memory(SCALE, ring.meta["slot"]), made)


def to_remember(call: Call, ring: fx.Node, scale: fx.Node | None, value: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """What is remembered, and where, for the ``value`` of a slot. ``call``: adds a call to the graph."""
    if scale is None:
        return [(ring, value)]
    dtype = ops.value(ring).dtype
    made = call(scale_of, value, dtype)
    return [(scale, made), (ring, call(quantised, value, made, dtype))]


def to_forecast(call: Call, weights: fx.Node, scale: fx.Node | None) -> fx.Node:
    """The weights that a forecast multiplies rows of the ring by."""
    if scale is None:
        return weights
    in_parts = ops.value(weights).dim() > 1
    return call(torch.mul, weights, call(torch.unsqueeze, scale, -2) if in_parts else scale)


def caller(graph: fx.Graph, path: str) -> Call:
    """Adds calls at the end of ``graph`` for the site at ``path``, which no one counts among the denoiser's ops."""

    return lambda function, *args: call_node(graph, function, args, path=path, probe="value")
