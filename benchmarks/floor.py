"""Lower bound on the time of a forecast step: its bytes, each moved once, at the memory bandwidth."""

from __future__ import annotations

import operator
import statistics
import time
from functools import cache

import torch
from torch import fx

from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import output_node, placeholders


def bytes_touched(program: fx.GraphModule) -> int:
    """Bytes of the inputs of ``program`` that are read, and of its outputs; of a sliced weight only the slice."""
    total = 0
    for node in placeholders(program):
        slices = [user for user in node.users if user.target is operator.getitem]
        whole = not node.meta.get("weight") or len(slices) < len(node.users)
        total += _nbytes(node) if whole else sum(map(_nbytes, slices))
    return total + sum(map(_nbytes, output_node(program.graph).all_input_nodes))


def _nbytes(node: fx.Node) -> int:
    held = ops.value(node)
    return held.numel() * held.element_size() if isinstance(held, torch.Tensor) else 0


@cache
def bandwidth(device: str) -> float:
    """Bytes per second when summing 512 MiB on ``device``; median of ten runs."""
    memory = torch.ones(2**27, device=device)
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        float(memory.sum())
        seconds.append(time.perf_counter() - began)
    return memory.numel() * memory.element_size() / statistics.median(seconds[1:])
