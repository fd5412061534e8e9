"""Some rows of a batch by themselves, and batches of some rows as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hicache_compile.internals import pytree
from hicache_compile.passes.analysis.batch import Batch


def rows_of(value: Any, place: int, numbers: Sequence[int], batch: Batch, count: int) -> Any:
    """Of the input ``value`` at ``place`` of a batch of ``count`` the rows ``numbers`` alone."""
    if len(numbers) == count:
        return value
    if place in batch.sizes:
        return len(numbers)
    dim = batch.inputs.get(place)
    return value if dim is None else picked(value, dim, numbers)


def picked(value: torch.Tensor, dim: int, numbers: Sequence[int]) -> torch.Tensor:
    """The rows ``numbers`` of ``value``; a view where they follow one another."""
    first, count = numbers[0], len(numbers)
    if list(numbers) == list(range(first, first + count)):
        return value.narrow(dim, first, count)
    return value.index_select(dim, torch.tensor(numbers, device=value.device))


def in_order(groups: Sequence[Sequence[int]], results: Sequence[Any], batch: Batch) -> Any:
    """What the programs of ``groups`` returned, as of one batch whose rows are in their order."""
    place = {number: at for at, number in enumerate(number for numbers in groups for number in numbers)}
    flat = [pytree.tree_flatten(outputs)[0] for outputs in results]
    _, spec = pytree.tree_flatten(results[0])
    dims = iter(batch.outputs)
    joined = []
    for values in zip(*flat, strict=True):
        dim = next(dims) if isinstance(values[0], torch.Tensor) else None
        if dim is None:
            joined.append(values[0])
            continue
        order = torch.tensor([place[number] for number in range(len(place))], device=values[0].device)
        joined.append(torch.cat(values, dim).index_select(dim, order))
    return pytree.tree_unflatten(joined, spec)
