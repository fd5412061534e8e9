"""Which guidance branch a call belongs to, when nobody names it: told by what the call is conditioned on.

A branch is called with the same conditioning at every step, while the sample and the time change. So a branch is
known by the arguments that stay the very same values (for tensors: the same memory), and a call belongs to the
branch whose constant arguments it shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

Leaves = dict[tuple[Any, ...], Any]


@dataclass(slots=True)
class Branch:
    """One guidance branch of a run, and the arguments its calls have in common so far.

    The tensors are held on to, so that their memory cannot become that of another argument.
    """

    name: str
    constant: Leaves
    tick: int
    calls: int = 1

    def shared(self, leaves: Leaves) -> Leaves:
        return {path: leaf for path, leaf in self.constant.items() if path in leaves and _same(leaf, leaves[path])}


class Branches:
    """The guidance branches of one run, in the order they were first called."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.known: list[Branch] = []

    def name_of(self, arguments: Mapping[str, Any], tick: int) -> tuple[str, bool]:
        """The branch that a call with ``arguments`` in step ``tick`` belongs to, and whether that is certain."""
        leaves = {tuple(path): leaf for path, leaf in pytree.tree_flatten_with_path(dict(arguments))[0]}
        fitting = []
        for branch in self.known:
            shared = branch.shared(leaves)
            settled = branch.calls > 1
            if not settled or len(shared) == len(branch.constant):
                fitting.append((len(shared), branch, shared))
        most = max((count for count, _, _ in fitting), default=0)
        best = [(branch, shared) for count, branch, shared in fitting if count == most]
        waiting = [(branch, shared) for branch, shared in best if branch.tick < tick]
        if not waiting:  # the first step, or guidance was switched on, or the conditioning was replaced
            self.known.append(Branch(f"{self.base}.{len(self.known)}" if self.known else self.base, leaves, tick))
            return self.known[-1].name, True
        branch, branch.constant = waiting[0]
        branch.tick, branch.calls = tick, branch.calls + 1
        return branch.name, len(best) == 1


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or (
            (a.dtype, a.shape, a.stride(), a.device) == (b.dtype, b.shape, b.stride(), b.device)
            and a.numel() > 0
            and a.data_ptr() == b.data_ptr()
        )
    if type(a) is not type(b) or isinstance(a, torch.Tensor):
        return False
    return a is b or (isinstance(a, str | int | float | bool) and a == b)
