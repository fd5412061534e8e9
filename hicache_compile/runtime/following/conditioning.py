"""Which guidance branch a call belongs to, when nobody names it: told by what the call is conditioned on.

A branch is called with the same conditioning at every step, while the sample and the time change. So a branch is
known by the arguments that stay the same (for tensors: the same memory, not written to), and a call belongs to the
branch whose constant arguments it shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from hicache_compile.runtime.replay.held import leaves_with_path

Leaves = dict[tuple[Any, ...], tuple[Any, int]]  # with the version of each tensor


def leaves_of(arguments: Mapping[str, Any]) -> Leaves:
    """What a call is given, by its place among the arguments; of an object, what it holds: it may be made anew in each
    call."""
    return {place: (leaf, _version(leaf)) for place, leaf in leaves_with_path(dict(arguments))}


class Known(Protocol):
    """A branch, the arguments its calls have in common so far, and how many calls those are."""

    constant: Leaves
    calls: int


B = TypeVar("B", bound=Known)


def most_alike(known: Sequence[B], leaves: Leaves, read: bool = False) -> list[tuple[B, Leaves]]:
    """The branches that a call with ``leaves`` shares most with, and what it shares. A branch that was called more than
    once has constants by then: one that lacks any of them is not its call.

    Args:
        read: tensors elsewhere in memory are compared by value, which waits for the device.
    """
    fitting = []
    for branch in known:
        constant = branch.constant
        common = {at: leaves[at] for at, leaf in constant.items() if at in leaves and _same(leaf, leaves[at], read)}
        if branch.calls == 1 or len(common) == len(constant):
            fitting.append((branch, common))
    most = max((len(common) for _, common in fitting), default=0)
    return [(branch, common) for branch, common in fitting if len(common) == most]


@dataclass(slots=True)
class Branch:
    """One guidance branch of a run, and the arguments its calls have in common so far.

    The tensors are held on to, so that their memory cannot become that of another argument.
    """

    name: str
    constant: Leaves
    step: int
    begun: int  # in which step
    calls: int = 1
    second: Leaves = field(default_factory=dict)  # of its second call, until the third

    def changed_once(self, leaves: Leaves, common: Leaves) -> bool:
        """Whether its third call, with ``leaves``, shows that the first had another conditioning: what all calls from
        the second on have in common, and not with the first, is no sample and no time. (A prompt that is another one
        in each step is no new branch.)"""
        now = [at for at, leaf in self.second.items() if at in leaves and _same(leaf, leaves[at], read=False)]
        return self.calls == 2 and any(at not in common and _is_conditioning(leaves[at][0]) for at in now)


class Branches:
    """The guidance branches of one run, in the order they were first called."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.known: list[Branch] = []
        self._names = 0

    def waiting(self, leaves: Leaves, step: int) -> tuple[str, bool] | None:
        """The branch that a call with ``leaves`` in ``step`` belongs to and whether that is certain; ``None``: none
        of those that were not called in this step.
        """
        best = most_alike(self.known, leaves)
        found = next(((branch, common) for branch, common in best if branch.step < step), None)
        if found is None:
            return None
        branch, common = found
        if branch.changed_once(leaves, common):
            return None
        branch.second = leaves if branch.calls == 1 else {}
        branch.constant = common
        branch.step, branch.calls = step, branch.calls + 1
        return branch.name, len(best) == 1

    def new(self, leaves: Leaves, step: int) -> str:
        """A branch that begins in ``step``: of the first one, or where guidance was switched on."""
        name = f"{self.base}.{self._names}" if self._names else self.base
        self._names += 1
        self.known.append(Branch(name, leaves, step, step))
        return name

    def drop_replaced(self, step: int) -> list[str]:
        """Forget the branches that were not called in the step before ``step``, if another one began since; returns
        their names. A prompt that is edited begins a branch; guidance that is switched off for a while does not."""
        newest = max((branch.begun for branch in self.known), default=0)
        ended = [branch for branch in self.known if branch.step < min(newest, step - 1)]
        self.known = [branch for branch in self.known if branch not in ended]
        return [branch.name for branch in ended]


def _is_conditioning(leaf: Any) -> bool:
    """Times are numbers, or a number for each sample."""
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 1


def _version(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else 0


def _same(a: tuple[Any, int], b: tuple[Any, int], read: bool) -> bool:
    (left, earlier), (right, later) = a, b
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        if (left.dtype, left.shape, left.device) != (right.dtype, right.shape, right.device):
            return False
        if left is right or (left.numel() and left.stride() == right.stride() and left.data_ptr() == right.data_ptr()):
            return earlier == later
        return read and torch.equal(left, right)
    if type(left) is not type(right) or isinstance(left, torch.Tensor):
        return False
    return left is right or (isinstance(left, str | int | float | bool) and left == right)
