"""Calls of a model that its caller does not know of: what the model counts is put back, what it caches stays."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hicache_compile.operators.random_numbers import random_numbers_kept
from hicache_compile.runtime.replay.held import ATOMS, CONTAINERS, attributes_of, contents_of, values_of

_HOLDERS = (*CONTAINERS, torch.Tensor, torch.Generator)

Place = tuple[int, Any]  # the identity of what holds a value, and under which key


@contextmanager
def state_kept(model: nn.Module, again: Callable[[], object]) -> Iterator[None]:
    """Inside, ``model`` is called once more than its caller knows. What it draws, counts or appends to is put back: in
    buffers, attributes, lists, closures and the state of its hooks. What a first call fills in for good stays.

    ``again`` makes the same call: what one more changes again is no cache. It is called where the first changed
    anything.
    """
    before = _State(model)
    with torch.no_grad(), random_numbers_kept():
        try:
            yield
        except BaseException:
            before.put_back(None)
            raise
        if before.changed():
            filled = _State(model)
            again()
            before.put_back(filled.changed())


class _State:
    """What ``model`` holds that is no weight, by place; tensors by value."""

    def __init__(self, model: nn.Module) -> None:
        self._held: dict[int, tuple[Any, Any]] = {}  # by identity: what holds values, and a copy of it
        self._parents: dict[int, Place] = {}
        waiting: list[tuple[Any, Place | None]] = [(model, None)]
        seen: set[int] = set()
        while waiting:
            value, parent = waiting.pop()
            holder = attributes_of(value)
            if id(holder) in seen or isinstance(value, ATOMS):
                continue
            seen.add(id(holder))
            if parent is not None:
                self._parents[id(holder)] = parent
            if isinstance(holder, _HOLDERS):
                self._held[id(holder)] = holder, _copy(holder)
            waiting += [(one, (id(holder), key)) for key, one in values_of(holder)]

    def changed(self) -> set[Place]:
        """The places at which anything else is now; of what is held there too, as far as that is new."""
        found = set()
        for identity, (holder, copy) in self._held.items():
            found |= {(identity, key) for key in _differences(copy, holder)}
        waiting = list(found)
        while waiting:
            parent = self._parents.get(waiting.pop()[0])
            if parent is not None and parent not in found:
                found.add(parent)
                waiting.append(parent)
        return found

    def put_back(self, places: set[Place] | None) -> None:
        """Put back what was at ``places``, or everywhere."""
        for identity, (holder, copy) in self._held.items():
            keys = [key for key in _differences(copy, holder) if places is None or (identity, key) in places]
            if keys:
                _restore(holder, copy, keys)


def _copy(holder: Any) -> Any:
    if isinstance(holder, torch.Tensor):
        return holder.detach().clone()
    if isinstance(holder, torch.Generator):
        return holder.get_state()
    return contents_of(holder) if isinstance(holder, types.CellType) else holder.copy()


def _differences(copy: Any, holder: Any) -> list[Any]:
    """The keys under which ``holder`` has something else than its ``copy``."""
    if isinstance(holder, torch.Tensor | torch.Generator):
        return [] if _same(copy, holder if isinstance(holder, torch.Tensor) else holder.get_state()) else [None]
    if isinstance(holder, dict):
        now = dict(holder)
        return [key for key in {**copy, **now} if key not in now or key not in copy or not _same(copy[key], now[key])]
    one, other = list(copy), _copy(holder)
    same = len(one) == len(other) and all(map(_same, one, other))
    return [] if same else [None]


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        form = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return form and not one.is_meta and torch.equal(one, other)
    return type(one) is type(other) and isinstance(one, str | int | float | bool) and one == other


def _restore(holder: Any, copy: Any, keys: list[Any]) -> None:
    if isinstance(holder, torch.Tensor):
        if not holder.is_inference():
            holder.copy_(copy)
    elif isinstance(holder, torch.Generator):
        holder.set_state(copy)
    elif isinstance(holder, dict):
        for key in keys:
            if key in copy:
                holder[key] = copy[key]
            else:
                del holder[key]
    elif isinstance(holder, types.CellType):
        holder.cell_contents = copy[0]
    else:
        holder.clear()
        (holder.update if isinstance(holder, set) else holder.extend)(copy)
