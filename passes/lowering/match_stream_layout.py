"""Lay a stream out like the anchors that are added to it.

before   x = conv(image).flatten(2).transpose(1, 2);  x1 = x + gate * forecast(...)
after    x = force_stride_order(conv(image).flatten(2).transpose(1, 2));  x1 = ...

A patch embedding made by a convolution hands its tokens out transposed. A compiler that fuses the sum of a whole run of
blocks into one loop goes through memory in one order only, and takes the stream's: every anchor is then read with a
stride of thousands. One small copy of the stream, and each anchor is read as it lies.

Requires   a forecast program
Ensures    the same values; no sum of a stream and a forecast mixes two orders of memory
"""

from __future__ import annotations

import torch
from torch import fx

from hicache_compile.internals import inductor
from hicache_compile.operators.anchors import forecast
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import reachable_from

_REORDERS = frozenset({"permute", "transpose", "swapaxes", "movedim"})


def lay_out_streams(program: fx.GraphModule) -> int:
    """Change ``program`` in place; returns how many streams were laid out anew."""
    if not inductor.LAYOUT:
        return 0
    forecasts = [node for node in program.graph.nodes if node.target is forecast]
    dependent = reachable_from(forecasts)
    entering = {
        argument: None
        for node in program.graph.nodes
        if ops.op(node) in ops.ADD and node in dependent
        for argument in node.all_input_nodes
        if argument not in dependent and ops.same_shape(argument, node) and _is_transposed(argument)
    }
    for stream in entering:
        example = torch.empty(ops.value(stream).shape, device="meta")
        with program.graph.inserting_after(stream):
            laid = program.graph.call_function(inductor.force_stride_order, (stream, list(example.stride())))
        laid.meta = dict(stream.meta)
        stream.replace_all_uses_with(laid, lambda user, keep=laid: user is not keep)
    program.recompile()
    return len(entering)


def _is_transposed(node: fx.Node) -> bool:
    """Whether ``node`` reorders the dimensions of something, at sizes known now.

    Told by what it does: the strides recorded at capture are those of another convolution than the compiler's.
    """
    if not all(isinstance(size, int) for size in ops.value(node).shape):
        return False
    while ops.op(node) in ops.RESHAPE | ops.CAST:
        if ops.op(node) in _REORDERS:
            return True
        node = node.all_input_nodes[0]
    return False
