"""The axis of the image or video tokens in the values of a graph, and the operands that depend on token order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph import ops


@dataclass(frozen=True, slots=True)
class Axis:
    """The axis of the tokens in a value: dimension ``dim``, with ``before`` other entries before them and ``after``
    behind."""

    dim: int
    before: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True)
class Meeting:
    """An operand that must be in token order: ``user`` reads ``operand``, whose axis ``axis`` is aligned with the
    tokens."""

    user: fx.Node
    operand: fx.Node
    axis: Axis


class Tokens:
    """The token axes of the values of a graph, as found so far.

    Args:
        count: the number of tokens.
        entry: a value that holds all of them, along ``axis``.
    """

    def __init__(self, count: int, entry: fx.Node, axis: Axis) -> None:
        self.count = count
        self.axes: dict[fx.Node, Axis] = {entry: axis}
        self.lists: dict[fx.Node, list[Axis | None]] = {}  # of ops that return several values
        self.meetings: list[Meeting] = []

    def learn(self, node: fx.Node, found: Axis | list[Axis | None] | None) -> None:
        """Record ``found`` as the token axis of ``node``.

        Raises:
            HiCacheError: the dimension does not have the length of that axis.
        """
        if isinstance(found, list):
            self.lists[node] = found
        elif found is not None:
            size = ops.value(node).shape[found.dim] if ops.is_tensor(node) else None
            if size != self.total(found):
                raise self.lost(node)
            self.axes[node] = found

    def lost(self, node: fx.Node) -> HiCacheError:
        """The error to raise where the tokens cannot be followed through ``node``."""
        where = node.meta.get("path") or node.name
        return HiCacheError(
            f"Chipmunk.order: must be None for this denoiser: its tokens cannot be followed through `{ops.op(node)}` "
            f"in {where}"
        )

    def total(self, axis: Axis) -> int:
        """The length of the dimension that holds the tokens."""
        return axis.before + self.count + axis.after

    def rank(self, node: fx.Node) -> int:
        return int(ops.value(node).dim())

    def meet(self, user: fx.Node, operand: fx.Node, axis: Axis) -> None:
        """Record ``operand``, which has no token axis itself, as aligned with the tokens along ``axis``, unless it is
        broadcast there.
        """
        shape = ops.value(operand).shape
        if axis.dim < 0 or axis.dim >= len(shape) or shape[axis.dim] == 1:
            return
        if shape[axis.dim] != self.total(axis):
            raise self.lost(user)
        self.meetings.append(Meeting(user, operand, axis))

    def cut(self, node: fx.Node, axis: Axis, start: int, stop: int) -> Axis | None:
        """The axis after slicing the token dimension to ``start``..``stop``: with all tokens, or None if with no
        token."""
        first, last = axis.before, axis.before + self.count
        if stop <= first or start >= last:
            return None
        if start > first or stop < last:
            raise self.lost(node)
        return replace(axis, before=first - start, after=stop - last)
