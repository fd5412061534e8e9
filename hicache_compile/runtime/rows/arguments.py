"""The arguments and outputs of a call, by row: put together, marked for Dynamo, taken apart."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.internals import maybe_mark_dynamic, pytree
from hicache_compile.runtime.replay.held import leaves_with_path

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def rows_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many rows a call has: the size of the first dimension of its first tensor; of a list of tensors, one for each
    sample, its length.

    Raises:
        HiCacheError: there is no such tensor.
    """
    first = _first(args, kwargs)
    if first is None:
        raise HiCacheError("rows: a call has no tensor with a batch dimension: must have one to tell its rows by")
    return len(first)


def samples_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """``rows_in``; 1 where nothing tells."""
    first = _first(args, kwargs)
    return 1 if first is None else len(first)


def mark_rows(args: Sequence[Any], kwargs: Mapping[str, Any], rows: int) -> None:
    """Tell Dynamo that the batch size may be another in the next call."""
    for _, value in leaves_with_path((tuple(args), dict(kwargs))):
        if has_rows(value, rows):
            maybe_mark_dynamic(value, 0)


def of_rows(args: Sequence[Any], kwargs: Mapping[str, Any], mine: slice, rows: int) -> Arguments:
    """The arguments of the rows ``mine`` out of ``rows`` alone."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return value[mine] if len(value) == rows else value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            return dataclasses.replace(value, **pytree.tree_map(one, held, is_leaf=is_leaf))
        return value[mine] if has_rows(value, rows) else value

    is_leaf = _are_samples if by_sample(args, kwargs) else None  # else lists hold tensors that have rows
    return pytree.tree_map(one, (tuple(args), dict(kwargs)), is_leaf=is_leaf)


def by_sample(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the sample is a list of tensors, so that lists have an entry for each sample."""
    return isinstance(_first(args, kwargs), list)


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The sample: the first tensor that has a dimension, or the first list of tensors."""
    for value in pytree.tree_leaves((tuple(args), dict(kwargs)), is_leaf=_are_samples):
        if _are_samples(value) or (isinstance(value, torch.Tensor) and value.dim()):
            return value
    return None


def _are_samples(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, torch.Tensor) for each in value)


def joined(outputs: Sequence[Any], by_sample: bool = False) -> Any:
    """What calls of some rows each returned, as one batch. ``by_sample``: a list has an entry for each sample."""

    def one(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, list):
            return [entry for value in values for entry in value]
        return torch.cat(list(values)) if isinstance(first, torch.Tensor) and first.dim() else first

    return _rebuilt(one, outputs, by_sample)


def taken_apart(output: Any, counts: Sequence[int], by_sample: bool = False) -> list[Any]:
    """``output`` of a batch in parts, of as many rows as ``counts`` say. ``by_sample``: see ``joined``."""
    ends = list(itertools.accumulate(counts))

    def part(start: int, end: int) -> Any:
        def one(values: Sequence[Any]) -> Any:
            (value,) = values
            return value[start:end] if isinstance(value, list) or has_rows(value, ends[-1]) else value

        return _rebuilt(one, [output], by_sample)

    return [part(end - count, end) for count, end in zip(counts, ends, strict=True)]


def _rebuilt(make: Callable[[Sequence[Any]], Any], values: Sequence[Any], by_sample: bool) -> Any:
    """One value built as each of ``values`` is, with what ``make`` makes of what they hold at each place."""
    first = values[0]
    if isinstance(first, torch.Tensor) or (isinstance(first, list) and by_sample):
        return make(values)
    if isinstance(first, list | tuple):
        made = [_rebuilt(make, each, by_sample) for each in zip(*values, strict=True)]
        return type(first)(*made) if hasattr(first, "_fields") else type(first)(made)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first) if field.init]
        held = {name: _rebuilt(make, [getattr(value, name) for value in values], by_sample) for name in names}
        return dataclasses.replace(first, **held)
    if isinstance(first, Mapping):
        return type(first)({key: _rebuilt(make, [value[key] for value in values], by_sample) for key in first})  # type: ignore[call-arg]  # as dicts are
    if any(isinstance(held, torch.Tensor) for held in getattr(first, "__dict__", {}).values()):
        whole = copy.copy(first)
        for name in vars(first):
            setattr(whole, name, _rebuilt(make, [getattr(value, name) for value in values], by_sample))
        return whole
    return make(values)


def has_rows(value: Any, rows: int) -> bool:
    """Whether ``value``, an argument or an output of a call of ``rows``, has one for each."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == rows
