"""Detect what changed of a model's Python state: a scale that a callback sets between two steps.

Dynamo's guards would see it, but walk everything. Here one number is read for each dict, whose changes CPython counts,
and the items of lists and sets. Attributes of torch's own layers are taken for fixed.
"""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch

from hicache_compile import internals
from hicache_compile.runtime.replay.held import ATOMS, CONTAINERS, attributes_of, contents_of, values_of

_INTERNAL = frozenset(vars(torch.nn.Module()))  # _parameters, hooks, ...: registered, or seen at the next run
_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)
_PLAIN = (bool, int, float, str, type(None))
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "builtins")  # whose classes and globals stay


class Attributes:
    """What ``model``'s modules hold, in whatever depth, and what their classes and the globals of their code are."""

    def __init__(self, model: torch.nn.Module) -> None:
        modules = [module for module in model.modules() if not type(module).__module__.startswith("torch.nn.")]
        self._dicts: list[dict[Any, Any]] = [vars(module) for module in modules]
        self._others: list[Any] = []  # lists, sets, cells
        waiting = [value for held in self._dicts for name, value in held.items() if name not in _INTERNAL]
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
        self._names = list(_plain_names({type(module) for module in modules}))

    def state(self) -> Hashable:
        """Different after an attribute was set, or an item of something held was."""
        if not internals.REPLAY:
            return None
        named = [held.get(name) for held, names in self._names for name in names]
        return tuple(map(internals.dict_version, self._dicts)), tuple(map(_items, self._others)), _items(named)


def _is_followed_elsewhere(value: Any) -> bool:
    """Whether it is a module, which is walked by itself, or a pipeline or its scheduler, which counts the steps."""
    of = type(value)
    return (
        isinstance(value, torch.nn.Module | torch.Tensor) or hasattr(of, "components") or hasattr(of, "set_timesteps")
    )


def _plain_names(classes: set[type]) -> Iterator[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """The plain values among the attributes of ``classes``, and among the globals that their code names."""
    for each in {base for kind in classes for base in kind.__mro__}:
        if each.__module__.partition(".")[0] in _LIBRARIES:
            continue
        held = vars(each)
        yield held, tuple(name for name, value in held.items() if _is_plain(value) and not name.startswith("__"))
        for function in held.values():
            if isinstance(function, types.FunctionType):
                known = function.__globals__
                named = [name for name in function.__code__.co_names if name in known]
                yield known, tuple(name for name in named if _is_plain(known[name]))


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN)


def _items(values: Any) -> tuple[Any, ...]:
    held = contents_of(values) if isinstance(values, types.CellType) else values
    return tuple([value if isinstance(value, _PLAIN) else id(value) for value in held])
