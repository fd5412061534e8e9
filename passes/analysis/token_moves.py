"""The token axis of the result of ops that move, join or cut dimensions: a part of the rules in ``token_rules``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import fx

from hicache_compile.passes.analysis.tokens import Axis, Tokens
from hicache_compile.passes.graph import ops


def first_argument(node: fx.Node) -> fx.Node:
    """The first argument of ``node``."""
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def joined(tokens: Tokens, node: fx.Node) -> Axis | None:
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]  # a list of nodes
    dim = int(ops.argument(node, 1, "dim", 0)) % tokens.rank(node)
    followed = {part: tokens.axes[part] for part in parts if part in tokens.axes}
    dims = {axis.dim for axis in followed.values()}
    if dims == {dim}:
        if len(followed) != 1:
            raise tokens.lost(node)
        ((part, axis),) = followed.items()
        place = parts.index(part)
        sizes = [int(ops.value(other).shape[dim]) for other in parts]
        return Axis(dim, axis.before + sum(sizes[:place]), axis.after + sum(sizes[place + 1 :]))
    if len(set(followed.values())) != 1:
        raise tokens.lost(node)
    axis = next(iter(followed.values()))
    for part in parts:
        if part not in followed:
            tokens.meet(node, part, axis)
    return axis


def stacked(tokens: Tokens, node: fx.Node) -> Axis | None:
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]  # a list of nodes
    dim = int(ops.argument(node, 1, "dim", 0)) % tokens.rank(node)
    axes = {tokens.axes.get(part) for part in parts}
    if len(axes) != 1 or None in axes:
        raise tokens.lost(node)
    axis = axes.pop()
    assert axis is not None
    return replace(axis, dim=axis.dim + (dim <= axis.dim))


def pieces(tokens: Tokens, node: fx.Node) -> list[Axis | None]:
    """split, chunk, unbind: several values."""
    source = first_argument(node)
    axis = tokens.axes[source]
    default = 2 if ops.op(node) != "unbind" else 1
    dim = int(ops.argument(node, default, "dim", 0)) % tokens.rank(source)
    made = ops.value(node)
    if made is None:
        raise tokens.lost(node)
    if ops.op(node) == "unbind":
        if dim == axis.dim:
            raise tokens.lost(node)
        return [replace(axis, dim=axis.dim - (dim < axis.dim))] * len(made)
    if dim != axis.dim:
        return [axis] * len(made)
    found, start = [], 0
    for part in made:
        stop = start + int(part.shape[dim])
        found.append(tokens.cut(node, axis, start, stop))
        start = stop
    return found


def taken(tokens: Tokens, node: fx.Node) -> Axis | None:
    source, index = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    if source in tokens.lists:
        return tokens.lists[source][int(index)]  # type: ignore[arg-type]  # which of several
    return _picked(tokens, node, source, index)


def written(tokens: Tokens, node: fx.Node) -> None:
    """``target[index] = value``: both sides must hold the tokens on the same axis."""
    target, index, value = node.args
    assert isinstance(target, fx.Node)
    into = _picked(tokens, node, target, index) if target in tokens.axes else None
    if tokens.axes.get(value) != into:  # type: ignore[arg-type]  # a number has no tokens
        raise tokens.lost(node)


def _picked(tokens: Tokens, node: fx.Node, source: fx.Node, index: Any) -> Axis | None:
    """The token axis of ``source[index]``."""
    axis, made, dim = tokens.axes[source], 0, 0
    wanted = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in wanted:
        place = wanted.index(Ellipsis)
        missing = tokens.rank(source) - sum(one is not None and one is not Ellipsis for one in wanted)
        wanted[place : place + 1] = [slice(None)] * missing
    wanted += [slice(None)] * (tokens.rank(source) - sum(one is not None for one in wanted))
    for one in wanted:
        if one is None:
            made += 1
            continue
        if dim == axis.dim and isinstance(one, slice):
            start, stop, step = one.indices(tokens.total(axis))
            if step != 1:
                break
            cut = tokens.cut(node, axis, start, stop)
            return None if cut is None else replace(cut, dim=made)
        if dim == axis.dim or not isinstance(one, slice | int):
            break
        made += isinstance(one, slice)
        dim += 1
    raise tokens.lost(node)


def transposed(tokens: Tokens, node: fx.Node) -> Axis | None:
    source = first_argument(node)
    axis, rank = tokens.axes[source], tokens.rank(source)
    order = list(range(rank))
    if ops.op(node) == "permute":
        dims = node.args[1:] if len(node.args) != 2 else node.args[1]
        dims = dims if isinstance(dims, list | tuple) else (dims,)
        order = [int(dim) % rank for dim in dims]
    else:
        one, other = (int(ops.argument(node, place, name, 0)) % rank for place, name in ((1, "dim0"), (2, "dim1")))
        order[one], order[other] = order[other], order[one]
    return replace(axis, dim=order.index(axis.dim))


def reshaped(tokens: Tokens, node: fx.Node) -> Axis | None:
    """The axis survives as a dimension of the same size with the same number of elements before it."""
    source = first_argument(node)
    axis = tokens.axes[source]
    old, new = list(ops.value(source).shape), list(ops.value(node).shape)
    before = math.prod(old[: axis.dim])
    for dim, size in enumerate(new):
        if size == old[axis.dim] and math.prod(new[:dim]) == before:
            return replace(axis, dim=dim)
    raise tokens.lost(node)
