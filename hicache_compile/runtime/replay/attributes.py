"""Detect changed attributes of modules: a scale that a callback sets between two steps.

Dynamo's guards would see it, but walk everything. Here one number is read for each module of the model's own classes:
CPython counts the changes of every dict. Attributes of torch's own layers are taken for fixed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch

from hicache_compile import internals

_INTERNAL = frozenset(vars(torch.nn.Module()))  # _parameters, hooks, ...: registered, or seen at the next run
_PLAIN = (bool, int, float, str, type(None))


class Attributes:
    """The attributes of ``model``'s modules, and of the plain objects they hold (attention processors)."""

    def __init__(self, model: torch.nn.Module) -> None:
        holders = [holder for module in model.modules() for holder in _holders(module)]
        held = [value for holder in holders for name, value in vars(holder).items() if name not in _INTERNAL]
        self._dicts = [vars(holder) for holder in holders] + [value for value in held if isinstance(value, dict)]
        self._lists = [value for value in held if type(value) is list]

    def state(self) -> Hashable:
        """Different after an attribute was set, or an item of a dict or list among them."""
        if not internals.REPLAY:
            return None
        return tuple(map(internals.dict_version, self._dicts)), tuple([_items(one) for one in self._lists])


def _holders(module: torch.nn.Module) -> Iterator[Any]:
    if type(module).__module__.startswith("torch.nn."):
        return
    yield module
    for name, value in vars(module).items():
        if name not in _INTERNAL and hasattr(value, "__dict__") and callable(value) and not _is_shared(value):
            yield value


def _is_shared(value: Any) -> bool:
    """Whether it is a module, which is walked by itself, or a class or function, which belongs to no model."""
    return isinstance(value, torch.nn.Module | type) or hasattr(value, "__code__") or hasattr(value, "__self__")


def _items(values: list[Any]) -> tuple[Any, ...]:
    return tuple([value if isinstance(value, _PLAIN) else id(value) for value in values])
