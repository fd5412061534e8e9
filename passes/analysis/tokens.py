"""Where the tokens of an image or a video are in the values of a graph, and what meets them there one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph import ops


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


class Tokens:
    """What is known of the tokens in a graph.

    Args:
        count: how many they are.
        entry: a value with all of them, along ``axis``.
    """

    def __init__(self, count: int, entry: fx.Node, axis: Axis) -> None:
        self.count = count
        self.axes: dict[fx.Node, Axis] = {entry: axis}
        self.lists: dict[fx.Node, list[Axis | None]] = {}  # of ops that return several
        self.meetings: list[Meeting] = []

    def learn(self, node: fx.Node, found: Axis | list[Axis | None] | None) -> None:
        """``node`` has the tokens where ``found`` says.

        Raises:
            HiCacheError: it is not long enough for them there.
        """
        if isinstance(found, list):
            self.lists[node] = found
        elif found is not None:
            size = ops.value(node).shape[found.dim] if ops.is_tensor(node) else None
            if size != self.total(found):
                raise self.lost(node)
            self.axes[node] = found

    def lost(self, node: fx.Node) -> HiCacheError:
        """What to raise where the tokens cannot be followed through ``node``."""
        where = node.meta.get("path") or node.name
        return HiCacheError(
            f"Chipmunk.order: must be None for this denoiser: its tokens cannot be followed through `{ops.op(node)}` "
            f"in {where}"
        )

    def total(self, axis: Axis) -> int:
        """How long the dimension of the tokens is."""
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

    def cut(self, node: fx.Node, axis: Axis, start: int, stop: int) -> Axis | None:
        """The tokens in ``start`` to ``stop`` along their dimension: all of them or none."""
        first, last = axis.before, axis.before + self.count
        if stop <= first or start >= last:
            return None
        if start > first or stop < last:
            raise self.lost(node)
        return replace(axis, before=first - start, after=stop - last)
