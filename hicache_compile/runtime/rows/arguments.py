"""The arguments and outputs of a call, by row: put together, marked for Dynamo, taken apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.internals import maybe_mark_dynamic, pytree
from hicache_compile.runtime.replay.held import leaves_with_path
from hicache_compile.runtime.structure import flatten

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

    leaves, build = flatten((tuple(args), dict(kwargs)), _are_samples if by_sample(args, kwargs) else None)
    made: Arguments = build([_part(leaf, mine, rows) for leaf in leaves])
    return made


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
    flat = [flatten(output, _are_samples if by_sample else None) for output in outputs]

    def one(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, list):
            return [entry for value in values for entry in value]
        return torch.cat(list(values)) if isinstance(first, torch.Tensor) and first.dim() else first

    _, build = flat[0]
    return build([one(values) for values in zip(*(leaves for leaves, _ in flat), strict=True)])


def taken_apart(output: Any, counts: Sequence[int], by_sample: bool = False) -> list[Any]:
    """``output`` of a batch in parts, of as many rows as ``counts`` say. ``by_sample``: see ``joined``."""
    ends = list(itertools.accumulate(counts))
    leaves, build = flatten(output, _are_samples if by_sample else None)
    parts = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
    return [build([_part(leaf, mine, ends[-1]) for leaf in leaves]) for mine in parts]


def _part(leaf: Any, mine: slice, rows: int) -> Any:
    """Of a leaf that has an entry for each of ``rows`` those of ``mine``, else the leaf."""
    of_each = len(leaf) == rows if _are_samples(leaf) else has_rows(leaf, rows)
    return leaf[mine] if of_each else leaf


def has_rows(value: Any, rows: int) -> bool:
    """Whether ``value``, an argument or an output of a call of ``rows``, has one for each."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == rows
