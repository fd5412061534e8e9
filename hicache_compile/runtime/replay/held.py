"""What a model holds that is no weight and no submodule: in attributes, lists, objects, closures."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hicache_compile.internals import pytree

OTHERS = ("hicache_compile", "torch", "logging", "threading", "_thread", "concurrent", "asyncio")  # whose objects stay
ATOMS = (type, types.ModuleType, nn.Parameter, str, bytes, int, float, complex, range, slice, torch.dtype)
CONTAINERS = (dict, list, set, deque, types.CellType)
_CALLED = (types.FunctionType, types.MethodType, functools.partial)
_LEAVES = (torch.Tensor, nn.Module, str, int, float, type(None))
_WHOLE = (*CONTAINERS, *ATOMS, *_CALLED, tuple, frozenset, torch.Tensor, torch.Generator)


def attributes_of(value: Any) -> Any:
    """The dict of the attributes of ``value``, where it is an object of a model or of its user; else ``value``."""
    of = type(value).__module__
    others = of.partition(".")[0] in OTHERS and not isinstance(value, nn.Module)
    if others or of.startswith(OTHERS[0]) or isinstance(value, _WHOLE):
        return value
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else value


def fields_of(value: Any) -> dict[str, Any] | None:
    """The attributes of an object of a model or of its user, or the fields of its dataclass; None of anything else."""
    held = attributes_of(value)
    if isinstance(held, dict):
        return dict(held)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return None


def leaves_with_path(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of lists, tuples, dicts and objects, each with its place."""
    found: list[tuple[tuple[Any, ...], Any]] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    opened = set()
    while waiting:
        at, branch = waiting.pop()
        for path, leaf in pytree.tree_flatten_with_path(branch)[0]:
            closed = isinstance(leaf, _LEAVES) or id(leaf) in opened
            fields = None if closed else fields_of(leaf)
            if fields is None:
                found.append((at + path, leaf))
            else:
                opened.add(id(leaf))
                waiting.append((at + path, fields))
    return found


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
