"""Slices along one dimension, and the parts of a join that they select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from hicache_compile.internals import statically_known_true
from hicache_compile.passes.graph import ops


@dataclass(frozen=True, slots=True)
class Range:
    dim: int
    start: Any
    stop: Any


def part_of_join(node: fx.Node, source: fx.Node) -> fx.Node | None:
    """The part of the join ``source`` that equals the slice ``node``, or None."""
    taken = range_of(node)
    if taken is None or ops.op(source) not in ops.JOIN:
        return None
    dim = ops.argument(source, 1, "dim", 0)
    parts = source.args[0]
    if not isinstance(dim, int) or dim % ops.value(source).dim() != taken.dim:
        return None
    offset: Any = 0
    for part in parts:  # type: ignore[union-attr]  # a list of nodes
        assert isinstance(part, fx.Node)
        end = offset + ops.value(part).shape[taken.dim]
        if statically_known_true(offset == taken.start) and statically_known_true(end == taken.stop):
            return part
        offset = end
    return None


def range_of(node: fx.Node) -> Range | None:
    """(dim, a, b) if ``node`` is a slice along one dimension, e.g. ``x[:, a:b]``; else None."""
    if ops.op(node) != "getitem" or not isinstance(node.args[1], tuple) or not ops.is_tensor(node.args[0]):
        return None
    whole = slice(None, None, None)
    if not all(isinstance(part, slice) for part in node.args[1]):
        return None
    cut = [(dim, part) for dim, part in enumerate(node.args[1]) if part != whole]
    if len(cut) != 1 or cut[0][1].step not in (None, 1):
        return None
    dim, part = cut[0]
    assert isinstance(part, slice)
    assert isinstance(node.args[0], fx.Node)
    size = ops.value(node.args[0]).shape[dim]
    start, stop = (ops.value(e) if isinstance(e, fx.Node) else e for e in (part.start, part.stop))
    start = 0 if start is None else start
    stop = size if stop is None else stop
    if statically_known_true(start < 0):
        start = size + start
    if statically_known_true(stop < 0):
        stop = size + stop
    return Range(dim, start, stop)
