"""The arguments and outputs of a call, by row: put together, marked for Dynamo, taken apart."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
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

    # Where the sample is a list, lists have an entry for each sample; else they hold tensors that have rows.
    is_leaf = _are_samples if isinstance(_first(args, kwargs), list) else None
    return pytree.tree_map(one, (tuple(args), dict(kwargs)), is_leaf=is_leaf)


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The sample: the first tensor that has a dimension, or the first list of tensors."""
    for value in pytree.tree_leaves((tuple(args), dict(kwargs)), is_leaf=_are_samples):
        if _are_samples(value) or (isinstance(value, torch.Tensor) and value.dim()):
            return value
    return None


def _are_samples(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, torch.Tensor) for each in value)


def joined(outputs: Sequence[Any]) -> Any:
    """What calls of some rows each returned, as one batch."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs)) if first.dim() else first
    if isinstance(first, list):
        return [value for output in outputs for value in output]
    if isinstance(first, tuple):
        return _rebuilt(first, [joined(values) for values in zip(*outputs, strict=True)])
    if isinstance(first, Mapping):
        made = {key: joined([output[key] for output in outputs]) for key in first}
        return type(first)(**made)
    return first


def taken_apart(output: Any, counts: Sequence[int]) -> list[Any]:
    """``output`` of a batch in parts, of as many rows as ``counts`` say."""
    ends = list(itertools.accumulate(counts))
    return [_part(output, end - count, end, ends[-1]) for count, end in zip(counts, ends, strict=True)]


def _part(output: Any, start: int, end: int, rows: int) -> Any:
    if isinstance(output, torch.Tensor):
        return output[start:end] if has_rows(output, rows) else output
    if isinstance(output, list):
        return output[start:end] if len(output) == rows else output
    if isinstance(output, tuple):
        return _rebuilt(output, [_part(value, start, end, rows) for value in output])
    if isinstance(output, Mapping):
        return type(output)(**{key: _part(value, start, end, rows) for key, value in output.items()})
    return output


def _rebuilt(like: tuple[Any, ...], values: Sequence[Any]) -> Any:
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)


def has_rows(value: Any, rows: int) -> bool:
    """Whether ``value``, an argument or an output of a call of ``rows``, has one for each."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == rows
