"""Follow the tokens of an image or a video through a graph: which values have them, and along which dimension.

A value that enters the blocks with the tokens is followed through every op that treats tokens alike: products with
weights, norms over channels, attention over all of them, sums and products with other values, and whatever moves the
dimension. What other values meet them token by token (rotary embeddings, masks) is written down on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes import ops

FORMED = frozenset({"type_as", "expand_as", "empty_like", "zeros_like", "ones_like"})  # by the first argument
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
    | {
        "addcmul",
        "maximum",
        "minimum",
        "zeros_like",
        "ones_like",
        "empty_like",
        "detach",
        "real",
        "imag",
        "expand_as",
        "silu_",
    }
)
BY_CHANNEL = frozenset({"linear", "layer_norm", "rms_norm", "normalize", "_fused_rms_norm"})
OVER = frozenset({"mean", "sum", "var", "std", "norm", "amax", "softmax"})


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the tokens are in a value: dimension ``dim``, after ``before`` others and before ``after`` more."""

    dim: int
    before: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True)
class Meeting:
    """``user`` reads ``operand``, which meets the tokens along ``axis`` and has to be in their order."""

    user: fx.Node
    operand: fx.Node
    axis: Axis


class TokenAxis:
    """The tokens of ``entry`` followed through ``nodes``, which are in graph order.

    Args:
        count: how many they are.
    """

    def __init__(self, entry: fx.Node, axis: Axis, count: int, nodes: Sequence[fx.Node]) -> None:
        self.count = count
        self.inside = set(nodes)
        self.axes: dict[fx.Node, Axis] = {entry: axis}
        self.lists: dict[fx.Node, list[Axis | None]] = {}  # of ops that return several
        self.meetings: list[Meeting] = []
        for node in nodes:
            if any(argument in self.axes or argument in self.lists for argument in node.all_input_nodes):
                self._follow(node)

    def _follow(self, node: fx.Node) -> None:
        name = ops.op(node)
        if (node.op == "call_method" and name in ("size", "dim", "numel")) or name in ("getattr", "sym_size"):
            return
        rule = next((rule for names, rule in _RULES if name in names), None)
        if rule is None:
            raise self.lost(node)
        found = rule(self, node)
        if isinstance(found, list):
            self.lists[node] = found
        elif found is not None:
            self._check(node, found)
            self.axes[node] = found

    def _check(self, node: fx.Node, axis: Axis) -> None:
        size = ops.value(node).shape[axis.dim] if ops.is_tensor(node) else None
        if size != axis.before + self.count + axis.after:
            raise self.lost(node)

    def lost(self, node: fx.Node) -> HiCacheError:
        where = node.meta.get("path") or node.name
        return HiCacheError(
            f"Chipmunk.order: must be None for this denoiser: its tokens cannot be followed through `{ops.op(node)}` "
            f"in {where}"
        )

    def total(self, axis: Axis) -> int:
        return axis.before + self.count + axis.after

    def rank(self, node: fx.Node) -> int:
        return int(ops.value(node).dim())

    def meet(self, user: fx.Node, operand: fx.Node, axis: Axis) -> None:
        """``operand``, which is not followed, is read token by token where it is as long as they are."""
        shape = ops.value(operand).shape
        if axis.dim < 0 or axis.dim >= len(shape) or shape[axis.dim] == 1:
            return
        if shape[axis.dim] != self.total(axis):
            raise self.lost(user)
        self.meetings.append(Meeting(user, operand, axis))

    # What each op does to the dimension of the tokens.

    def pointwise(self, node: fx.Node) -> Axis | None:
        """Operands are aligned at their last dimensions."""
        rank = self.rank(node)
        given = node.all_input_nodes
        if ops.op(node) in FORMED:
            given = given[:1]
            if given[0] not in self.axes:
                return None
        read = [operand for operand in dict.fromkeys(given) if ops.is_tensor(operand)]
        aligned = {replace(self.axes[a], dim=self.axes[a].dim + rank - self.rank(a)) for a in read if a in self.axes}
        if len(aligned) != 1:
            raise self.lost(node)
        axis = aligned.pop()
        for operand in read:
            if operand not in self.axes:
                self.meet(node, operand, replace(axis, dim=axis.dim - rank + self.rank(operand)))
        return axis

    def by_channel(self, node: fx.Node) -> Axis | None:
        source = node.all_input_nodes[0]
        axis = self.axes.get(source)
        if axis is None or axis.dim >= self.rank(source) - 1:
            raise self.lost(node)
        return axis

    def over(self, node: fx.Node) -> Axis | None:
        """A reduction: over other dimensions the tokens stay, over theirs they are gone."""
        source = _first(node)
        axis = self.axes[source]
        dims = _given(node, 1, "dim", None)
        if dims is None:
            return None
        reduced = {int(dim) % self.rank(source) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
        if ops.op(node) == "softmax":
            return axis
        if axis.dim in reduced:
            return None
        if self.rank(node) == self.rank(source):
            return axis
        return replace(axis, dim=axis.dim - sum(dim < axis.dim for dim in reduced))

    def attention(self, node: fx.Node) -> Axis | None:
        query, key, value = (_given(node, place, name, None) for place, name in enumerate(("query", "key", "value")))
        mask = _given(node, 3, "attn_mask", None)
        q, k, v = (self.axes.get(given) for given in (query, key, value))
        if any(axis is not None and axis.dim != self.rank(query) - 2 for axis in (q, k, v)) or k != v:
            raise self.lost(node)
        if _given(node, 5, "is_causal", False):
            raise self.lost(node)
        if isinstance(mask, fx.Node):
            rank = self.rank(mask)
            for axis, dim in ((q, rank - 2), (k, rank - 1)):
                if axis is not None:
                    self.meet(node, mask, replace(axis, dim=dim))
        return q

    def join(self, node: fx.Node) -> Axis | None:
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]  # a list of nodes
        dim = int(_given(node, 1, "dim", 0)) % self.rank(node)
        followed = {part: self.axes[part] for part in parts if part in self.axes}
        dims = {axis.dim for axis in followed.values()}
        if dims == {dim}:
            if len(followed) != 1:
                raise self.lost(node)
            ((part, axis),) = followed.items()
            place = parts.index(part)
            sizes = [int(ops.value(other).shape[dim]) for other in parts]
            return Axis(dim, axis.before + sum(sizes[:place]), axis.after + sum(sizes[place + 1 :]))
        if len(set(followed.values())) != 1:
            raise self.lost(node)
        axis = next(iter(followed.values()))
        for part in parts:
            if part not in followed:
                self.meet(node, part, axis)
        return axis

    def stack(self, node: fx.Node) -> Axis | None:
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]  # a list of nodes
        dim = int(_given(node, 1, "dim", 0)) % self.rank(node)
        axes = {self.axes.get(part) for part in parts}
        if len(axes) != 1 or None in axes:
            raise self.lost(node)
        axis = axes.pop()
        assert axis is not None
        return replace(axis, dim=axis.dim + (dim <= axis.dim))

    def pieces(self, node: fx.Node) -> list[Axis | None]:
        """split, chunk, unbind: several values."""
        source = _first(node)
        axis = self.axes[source]
        default = 2 if ops.op(node) != "unbind" else 1
        dim = int(_given(node, default, "dim", 0)) % self.rank(source)
        made = ops.value(node)
        if made is None:
            raise self.lost(node)
        if ops.op(node) == "unbind":
            if dim == axis.dim:
                raise self.lost(node)
            return [replace(axis, dim=axis.dim - (dim < axis.dim))] * len(made)
        if dim != axis.dim:
            return [axis] * len(made)
        found, start = [], 0
        for part in made:
            stop = start + int(part.shape[dim])
            found.append(self._cut(node, axis, start, stop))
            start = stop
        return found

    def _cut(self, node: fx.Node, axis: Axis, start: int, stop: int) -> Axis | None:
        """The tokens in ``start`` to ``stop`` along their dimension: all of them or none."""
        first, last = axis.before, axis.before + self.count
        if stop <= first or start >= last:
            return None
        if start > first or stop < last:
            raise self.lost(node)
        return replace(axis, before=first - start, after=stop - last)

    def item(self, node: fx.Node) -> Axis | None:
        source, index = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        if source in self.lists:
            return self.lists[source][int(index)]  # type: ignore[arg-type]  # which of several
        return self._picked(node, source, index)

    def written(self, node: fx.Node) -> None:
        """``target[index] = value``: the tokens of both are the same ones."""
        target, index, value = node.args
        assert isinstance(target, fx.Node)
        into = self._picked(node, target, index) if target in self.axes else None
        if self.axes.get(value) != into:  # type: ignore[arg-type]  # a number has no tokens
            raise self.lost(node)

    def _picked(self, node: fx.Node, source: fx.Node, index: Any) -> Axis | None:
        """Where the tokens are in ``source[index]``."""
        axis, made, dim = self.axes[source], 0, 0
        wanted = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in wanted:
            place = wanted.index(Ellipsis)
            missing = self.rank(source) - sum(one is not None and one is not Ellipsis for one in wanted)
            wanted[place : place + 1] = [slice(None)] * missing
        wanted += [slice(None)] * (self.rank(source) - sum(one is not None for one in wanted))
        for one in wanted:
            if one is None:
                made += 1
                continue
            if dim == axis.dim and isinstance(one, slice):
                start, stop, step = one.indices(self.total(axis))
                if step != 1:
                    break
                cut = self._cut(node, axis, start, stop)
                return None if cut is None else replace(cut, dim=made)
            if dim == axis.dim or not isinstance(one, slice | int):
                break
            made += isinstance(one, slice)
            dim += 1
        raise self.lost(node)

    def transposed(self, node: fx.Node) -> Axis | None:
        source = _first(node)
        axis, rank = self.axes[source], self.rank(source)
        order = list(range(rank))
        if ops.op(node) == "permute":
            dims = node.args[1:] if len(node.args) != 2 else node.args[1]
            dims = dims if isinstance(dims, list | tuple) else (dims,)
            order = [int(dim) % rank for dim in dims]
        else:
            one, other = (int(_given(node, place, name, 0)) % rank for place, name in ((1, "dim0"), (2, "dim1")))
            order[one], order[other] = order[other], order[one]
        return replace(axis, dim=order.index(axis.dim))

    def reshaped(self, node: fx.Node) -> Axis | None:
        """The dimension survives where as many numbers are before it and after it as there were."""
        source = _first(node)
        axis = self.axes[source]
        old, new = list(ops.value(source).shape), list(ops.value(node).shape)
        before = math.prod(old[: axis.dim])
        for dim, size in enumerate(new):
            if size == old[axis.dim] and math.prod(new[:dim]) == before:
                return replace(axis, dim=dim)
        raise self.lost(node)


def _first(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def _given(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)


Rule = Callable[[TokenAxis, fx.Node], Axis | list[Axis | None] | None]

_RULES: list[tuple[frozenset[str] | set[str], Rule]] = [
    (frozenset({"scaled_dot_product_attention"}), TokenAxis.attention),
    (BY_CHANNEL, TokenAxis.by_channel),
    (ops.JOIN, TokenAxis.join),
    (frozenset({"stack"}), TokenAxis.stack),
    (frozenset({"split", "split_with_sizes", "chunk", "unbind", "tensor_split"}), TokenAxis.pieces),
    (frozenset({"getitem"}), TokenAxis.item),
    (frozenset({"setitem"}), TokenAxis.written),
    (frozenset({"permute", "transpose", "swapaxes"}), TokenAxis.transposed),
    (
        frozenset({"reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand"})
        | {"view_as_complex", "view_as_real"},
        TokenAxis.reshaped,
    ),
    (OVER, TokenAxis.over),
    (POINTWISE, TokenAxis.pointwise),
]
