"""Follow the tokens of an image or a video through a graph, op by op.

The tokens are followed from a value that enters the blocks through every op that treats all tokens in the same way:
products with weights, norms over channels, attention over all tokens, sums and products with other values, and ops that
move the dimension. Other operands in token order (rotary embeddings, masks) are recorded on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import fx

from hicache_compile.passes.analysis.token_moves import (
    first_argument,
    joined,
    pieces,
    reshaped,
    stacked,
    taken,
    transposed,
    written,
)
from hicache_compile.passes.analysis.tokens import Axis, Tokens
from hicache_compile.passes.graph import ops

FORMED = frozenset({"type_as", "expand_as", "empty_like", "zeros_like", "ones_like"})  # values of the first argument
POINTWISE = (
    ops.CAST
    | ops.CLAMP
    | ops.SUMS
    | ops.MUL
    | ops.DIV
    | ops.DROPOUT
    | ops.ACTIVATIONS
    | FORMED
    | {"neg", "pow", "rsqrt", "sqrt", "exp", "cos", "sin", "softplus", "square", "abs", "where"}
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
            follow(tokens, node)
    return tokens


def follow(tokens: Tokens, node: fx.Node) -> None:
    """Find the token axis of ``node``, which reads tokens.

    Raises:
        HiCacheError: see ``follow_tokens``.
    """
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
    dims = ops.argument(node, 2, "dim", 1) if ops.op(node) == "normalize" else -1
    rank = tokens.rank(source)
    over = {int(dim) % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    if axis is None or axis.dim >= rank - 1 or axis.dim in over:
        raise tokens.lost(node)
    return axis


def _over(tokens: Tokens, node: fx.Node) -> Axis | None:
    """A reduction: tokens stay on their axis unless it is reduced. A softmax keeps every axis."""
    source = first_argument(node)
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


Rule = Callable[[Tokens, fx.Node], Axis | list[Axis | None] | None]

_RULES: list[tuple[frozenset[str] | set[str], Rule]] = [
    (frozenset({"scaled_dot_product_attention"}), _attention),
    (BY_CHANNEL, _by_channel),
    (ops.JOIN, joined),
    (frozenset({"stack"}), stacked),
    (frozenset({"split", "split_with_sizes", "chunk", "unbind", "tensor_split"}), pieces),
    (frozenset({"getitem"}), taken),
    (frozenset({"setitem"}), written),
    (frozenset({"permute", "transpose", "swapaxes"}), transposed),
    (
        frozenset({"reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand"})
        | {"view_as_complex", "view_as_real"},
        reshaped,
    ),
    (OVER, _over),
    (POINTWISE, _pointwise),
]
