"""Detect what changed of a model's Python state: a scale that a callback sets between two steps.

Dynamo's guards would see it, but walk everything. Here one number is read for each dict, whose changes CPython counts
(where it does not count attributes that are set, the entries), and the items of lists and sets. Attributes of torch's
own layers are taken for fixed.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from typing import Any

import torch

from hicache_compile import internals
from hicache_compile.runtime.replay.held import ATOMS, CONTAINERS, attributes_of, contents_of, values_of
from hicache_compile.runtime.replay.named_by_code import NamedByCode, is_plain

_INTERNAL = frozenset(vars(torch.nn.Module()))  # _parameters, hooks, ...: registered, or seen at the next run
_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)


class Attributes:
    """What ``model``'s modules hold, in whatever depth, and what the code of all that names elsewhere."""

    def __init__(self, model: torch.nn.Module) -> None:
        modules = [module for module in model.modules() if not type(module).__module__.startswith("torch.nn.")]
        self._dicts: list[dict[Any, Any]] = [vars(module) for module in modules]
        self._others: list[Any] = []  # lists, sets, cells
        code = NamedByCode({type(module) for module in modules})
        waiting = [value for held in self._dicts for name, value in held.items() if name not in _INTERNAL]
        waiting += code.held
        # What is put into a module is registered; what is taken out of it is not.
        self._dicts += [module._modules for module in model.modules() if module is model or isinstance(module, _LISTS)]
        seen: set[int] = set()
        while waiting:
            value = waiting.pop()
            holder = attributes_of(value)
            if id(holder) in seen or isinstance(value, ATOMS) or _is_followed_elsewhere(value):
                continue
            seen.add(id(holder))
            if isinstance(holder, dict):
                self._dicts.append(holder)
            elif isinstance(holder, CONTAINERS):
                self._others.append(holder)
            waiting += [one for _, one in values_of(holder)]
            named = len(code.held)
            code.read([value if isinstance(value, types.FunctionType) else type(value)])
            waiting += code.held[named:]
        self._names, self._variables = code.names, code.variables
        self._read = _reader(self._dicts) if internals.REPLAY else tuple

    def state(self) -> Hashable:
        """Different after an attribute was set, or an item of something held was."""
        if not internals.REPLAY:
            return None
        named = [held.get(name) for held, names in self._names for name in names]
        named += [variable.get(None) for variable in self._variables]
        return self._read(), tuple(map(_items, self._others)), _items(named)


def _is_followed_elsewhere(value: Any) -> bool:
    """Whether it is a module, which is walked by itself, or a pipeline or its scheduler, which counts the steps."""
    of = type(value)
    return (
        isinstance(value, torch.nn.Module | torch.Tensor) or hasattr(of, "components") or hasattr(of, "set_timesteps")
    )


def _reader(dicts: list[dict[Any, Any]]) -> Callable[[], Hashable]:
    """What differs after one of ``dicts`` was changed: how often each was, or the entries, where that is not told."""
    if _attributes_are_counted():
        return lambda: tuple(map(internals.dict_version, dicts))
    named = [(held, [name for name in held if name not in _INTERNAL or name == "training"]) for held in dicts]
    return lambda: tuple([(len(held), _items([held.get(name) for name in names])) for held, names in named])


def _attributes_are_counted() -> bool:
    """Whether torch is told of attributes that are set. On Python 3.13 it is not."""
    probe = _Probe()
    before = internals.dict_version(vars(probe))
    probe.value = 1
    return internals.dict_version(vars(probe)) != before


class _Probe:
    value = 0


def _items(values: Any) -> tuple[Any, ...]:
    held = contents_of(values) if isinstance(values, types.CellType) else values
    return tuple([value if is_plain(value) else id(value) for value in held])
