"""Calls of a denoiser that can share one: alike but for their rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from hicache_compile.internals import pytree
from hicache_compile.runtime.rows.arguments import has_rows

MOST = 64  # tensors of one shape that all rows have in common, of which a copy is kept; and shapes

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


class Alike:
    """Tells which tensors are equal: by number, so that each is compared with others once."""

    def __init__(self) -> None:
        self._numbers = WeakTensorKeyDictionary()
        self._known: dict[Hashable, list[tuple[int, torch.Tensor]]] = {}
        self._next = 0

    def number(self, tensor: torch.Tensor) -> int:
        """The same for tensors that are equal."""
        if tensor.is_inference():  # nothing says whether it was written to
            return self._compared(tensor)
        version, number = self._numbers.get(tensor, (None, 0))
        if version != tensor._version:
            number = self._compared(tensor)
            self._numbers[tensor] = tensor._version, number
        return number

    def _compared(self, tensor: torch.Tensor) -> int:
        known = self._known.setdefault((tuple(tensor.shape), tensor.dtype, tensor.device), [])
        for number, other in known:
            if torch.equal(tensor, other):
                return number
        if len(known) >= MOST:
            del known[0]
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        self._next += 1
        known.append((self._next, tensor.detach().clone()))
        return self._next


def key_of(call: Arguments, rows: int, alike: Alike) -> Hashable:
    """The same for calls whose rows may share one.

    ``rows``: how many the call has. A tensor whose first dimension is as long has rows; others, and all values that are
    no tensors, must be equal.
    """
    leaves, spec = pytree.tree_flatten((tuple(call[0]), dict(call[1])))
    return spec, *(_key(value, rows, alike) for value in leaves)


def _key(value: Any, rows: int, alike: Alike) -> Hashable:
    if not isinstance(value, torch.Tensor):
        return (type(value), value) if isinstance(value, Hashable) else id(value)
    if has_rows(value, rows):
        return tuple(value.shape[1:]), value.dtype, value.device
    return alike.number(value)


def stacked(calls: Sequence[Arguments], rows: Sequence[int]) -> Arguments:
    """``calls`` of one key as one call, the rows in their order."""
    if len(calls) == 1:
        return calls[0]
    flat = [pytree.tree_flatten((tuple(args), dict(kwargs))) for args, kwargs in calls]
    values = zip(*(leaves for leaves, _ in flat), strict=True)
    joined = [torch.cat(each) if has_rows(each[0], rows[0]) else each[0] for each in values]
    return pytree.tree_unflatten(joined, flat[0][1])
