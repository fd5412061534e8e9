"""Follow the tokens of an image or a video through a graph, op by op.

The tokens are followed from a value that enters the blocks through every op that treats all tokens in the same way:
products with weights, norms over channels, attention over all tokens, sums and products with other values, and ops that
move the dimension. Other operands in token order (rotary embeddings, masks) are recorded on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from hicache_compile.passes.analysis.tokens import Axis, Tokens
from hicache_compile.passes.graph import ops

FORMED = frozenset({"type_as", "expand_as", "empty_like", "zeros_like", "ones_like"})  # values of the first argument
POINTWISE = (
    ops.CAST
    | ops.CLAMP
    | ops.ADD
    | ops.MUL
    | ops.DIV
    | ops.DROPOUT
    | ops.ACTIVATIONS
    | FORMED
    | {"sub", "isub", "neg", "pow", "rsqrt", "sqrt", "exp", "cos", "sin", "softplus", "square", "abs", "where", "lerp"}
    | {"addcmul", "maximum", "minimum", "detach", "real", "imag", "silu_"}
)
BY_CHANNEL = frozenset({"linear", "layer_norm", "rms_norm", "normalize", "_fused_rms_norm"})
OVER = frozenset({"mean", "sum", "var", "std", "norm", "amax", "softmax"})


def follow_tokens(entry: fx.Node, axis: Axis, count: int, nodes: Sequence[fx.Node]) -> Tokens:
    """Follow the ``count`` tokens of ``entry`` through ``nodes``, which are in graph order.

    Raises:
        HiCacheError: an op that reads the tokens has no rule, or does not treat them all in the same way.
    """
    tokens = Tokens(count, entry, axis)
    for node in nodes:
        if any(argument in tokens.axes or argument in tokens.lists for argument in node.all_input_nodes):
            _follow(tokens, node)
    return tokens


def _follow(tokens: Tokens, node: fx.Node) -> None:
    name = ops.op(node)
    if (node.op == "call_method" and name in ("size", "dim", "numel")) or name in ("getattr", "sym_size"):
        return
    rule = next((rule for names, rule in _RULES if name in names), None)
    if rule is None:
        raise tokens.lost(node)
    tokens.learn(node, rule(tokens, node))


# The token axis of the result of each op.


def _pointwise(tokens: Tokens, node: fx.Node) -> Axis | None:
    """Operands are aligned at their last dimensions."""
    rank = tokens.rank(node)
    given = node.all_input_nodes
    if ops.op(node) in FORMED:
        given = given[:1]
        if given[0] not in tokens.axes:
            return None
    read = [operand for operand in dict.fromkeys(given) if ops.is_tensor(operand)]
    aligned = {
        replace(tokens.axes[a], dim=tokens.axes[a].dim + rank - tokens.rank(a)) for a in read if a in tokens.axes
    }
    if len(aligned) != 1:
        raise tokens.lost(node)
    axis = aligned.pop()
    for operand in read:
        if operand not in tokens.axes:
            tokens.meet(node, operand, replace(axis, dim=axis.dim - rank + tokens.rank(operand)))
    return axis


def _by_channel(tokens: Tokens, node: fx.Node) -> Axis | None:
    source = node.all_input_nodes[0]
    axis = tokens.axes.get(source)
    if axis is None or axis.dim >= tokens.rank(source) - 1:
        raise tokens.lost(node)
    return axis


def _over(tokens: Tokens, node: fx.Node) -> Axis | None:
    """A reduction: tokens stay on their axis unless it is reduced. A softmax keeps every axis."""
    source = _first(node)
    axis = tokens.axes[source]
    dims = ops.argument(node, 1, "dim", None)
    if dims is None:
        return None
    reduced = {int(dim) % tokens.rank(source) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    if ops.op(node) == "softmax":
        return axis
    if axis.dim in reduced:
        return None
    if tokens.rank(node) == tokens.rank(source):
        return axis
    return replace(axis, dim=axis.dim - sum(dim < axis.dim for dim in reduced))


def _attention(tokens: Tokens, node: fx.Node) -> Axis | None:
    query, key, value = (ops.argument(node, place, name, None) for place, name in enumerate(("query", "key", "value")))
    mask = ops.argument(node, 3, "attn_mask", None)
    q, k, v = (tokens.axes.get(given) for given in (query, key, value))
    if any(axis is not None and axis.dim != tokens.rank(query) - 2 for axis in (q, k, v)) or k != v:
        raise tokens.lost(node)
    if ops.argument(node, 5, "is_causal", False):
        raise tokens.lost(node)
    if isinstance(mask, fx.Node):
        rank = tokens.rank(mask)
        for axis, dim in ((q, rank - 2), (k, rank - 1)):
            if axis is not None:
                tokens.meet(node, mask, replace(axis, dim=dim))
    return q


def _join(tokens: Tokens, node: fx.Node) -> Axis | None:
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


def _stack(tokens: Tokens, node: fx.Node) -> Axis | None:
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]  # a list of nodes
    dim = int(ops.argument(node, 1, "dim", 0)) % tokens.rank(node)
    axes = {tokens.axes.get(part) for part in parts}
    if len(axes) != 1 or None in axes:
        raise tokens.lost(node)
    axis = axes.pop()
    assert axis is not None
    return replace(axis, dim=axis.dim + (dim <= axis.dim))


def _pieces(tokens: Tokens, node: fx.Node) -> list[Axis | None]:
    """split, chunk, unbind: several values."""
    source = _first(node)
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


def _item(tokens: Tokens, node: fx.Node) -> Axis | None:
    source, index = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    if source in tokens.lists:
        return tokens.lists[source][int(index)]  # type: ignore[arg-type]  # which of several
    return _picked(tokens, node, source, index)


def _written(tokens: Tokens, node: fx.Node) -> None:
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


def _transposed(tokens: Tokens, node: fx.Node) -> Axis | None:
    source = _first(node)
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


def _reshaped(tokens: Tokens, node: fx.Node) -> Axis | None:
    """The axis survives as a dimension of the same size with the same number of elements before it."""
    source = _first(node)
    axis = tokens.axes[source]
    old, new = list(ops.value(source).shape), list(ops.value(node).shape)
    before = math.prod(old[: axis.dim])
    for dim, size in enumerate(new):
        if size == old[axis.dim] and math.prod(new[:dim]) == before:
            return replace(axis, dim=dim)
    raise tokens.lost(node)


def _first(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


Rule = Callable[[Tokens, fx.Node], Axis | list[Axis | None] | None]

_RULES: list[tuple[frozenset[str] | set[str], Rule]] = [
    (frozenset({"scaled_dot_product_attention"}), _attention),
    (BY_CHANNEL, _by_channel),
    (ops.JOIN, _join),
    (frozenset({"stack"}), _stack),
    (frozenset({"split", "split_with_sizes", "chunk", "unbind", "tensor_split"}), _pieces),
    (frozenset({"getitem"}), _item),
    (frozenset({"setitem"}), _written),
    (frozenset({"permute", "transpose", "swapaxes"}), _transposed),
    (
        frozenset({"reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand"})
        | {"view_as_complex", "view_as_real"},
        _reshaped,
    ),
    (OVER, _over),
    (POINTWISE, _pointwise),
]
