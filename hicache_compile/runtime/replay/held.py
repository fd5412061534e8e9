"""What a model holds that is no weight and no submodule: in attributes, lists, objects, closures."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

OTHERS = ("hicache_compile", "torch", "logging", "threading", "_thread", "concurrent", "asyncio")  # whose objects stay
ATOMS = (type, types.ModuleType, nn.Parameter, str, bytes, int, float, complex, range, slice, torch.dtype)
CONTAINERS = (dict, list, set, deque, types.CellType)
_CALLED = (types.FunctionType, types.MethodType, functools.partial)
_WHOLE = (*CONTAINERS, *ATOMS, *_CALLED, tuple, frozenset, torch.Tensor, torch.Generator)


def attributes_of(value: Any) -> Any:
    """The dict of the attributes of ``value``, where it is an object of a model or of its user; else ``value``."""
    of = type(value).__module__
    others = of.partition(".")[0] in OTHERS and not isinstance(value, nn.Module)
    if others or of.startswith(OTHERS[0]) or isinstance(value, _WHOLE):
        return value
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else value


def values_of(holder: Any) -> list[tuple[Any, Any]]:
    """What ``holder`` holds, each with its key: for what is no dict one for all."""
    if isinstance(holder, dict):
        return list(dict(holder).items())
    held: Iterable[Any] = ()
    if isinstance(holder, list | tuple | set | frozenset | deque):
        held = list(holder)
    elif isinstance(holder, types.CellType):
        held = contents_of(holder)
    elif isinstance(holder, types.FunctionType):
        held = holder.__closure__ or ()
    elif isinstance(holder, types.MethodType):
        held = (holder.__self__, holder.__func__)
    elif isinstance(holder, functools.partial):
        held = (holder.func, holder.args, holder.keywords)
    return [(None, one) for one in held]


def contents_of(cell: types.CellType) -> list[Any]:
    """What is in ``cell``, in a list; nothing where it is empty."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []
