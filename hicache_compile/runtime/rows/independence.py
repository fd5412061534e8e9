"""Whether the samples of a batch are apart: what one returns does not change with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.internals import pytree
from hicache_compile.passes.analysis.batch import Batch, NotByRowError


def check_apart(captured: fx.GraphModule, batch: Batch, inputs: Sequence[Any]) -> None:
    """Run ``captured`` twice, the second time with other neighbours of the first row.

    A shape does not tell: attention may read tokens of the whole batch, a mean may be over it. With the same shapes
    the same kernels run, so the first row keeps its bits where the rows are apart.

    Raises:
        NotByRowError: it does not.
    """
    first = _first_row(captured(*inputs), batch)
    others = [
        _other_neighbours(value, batch.inputs[place]) if place in batch.inputs else value
        for place, value in enumerate(inputs)
    ]
    for name, (value, other) in enumerate(zip(first, _first_row(captured(*others), batch), strict=True)):
        if not torch.equal(value, other):
            raise NotByRowError(f"output {name}: a sample changes with its neighbours, so they are mixed")


def _other_neighbours(value: torch.Tensor, dim: int) -> torch.Tensor:
    """The rows of ``value`` after the first at half of their size; indices and masks as they are."""
    if not value.is_floating_point() or value.shape[dim] < 2:
        return value
    first, others = value.narrow(dim, 0, 1), value.narrow(dim, 1, value.shape[dim] - 1)
    return torch.cat([first, others * 0.5], dim)


def _first_row(outputs: Any, batch: Batch) -> list[torch.Tensor]:
    made = [value for value in pytree.tree_leaves(outputs) if isinstance(value, torch.Tensor)]
    return [
        value.narrow(dim, 0, 1).nan_to_num() for value, dim in zip(made, batch.outputs, strict=True) if dim is not None
    ]
