"""Whether the rows of a batch are apart: what one returns does not change with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.internals import pytree
from hicache_compile.operators.collectives import Ranks, everywhere
from hicache_compile.passes.analysis.batch import Batch, NotByRowError
from hicache_compile.runtime.rows.gather import picked


def check_apart(captured: fx.GraphModule, batch: Batch, inputs: Sequence[Any], rows: int, ranks: Ranks) -> None:
    """Run ``captured`` on its ``inputs``, of so many ``rows``, and again where some of them are others.

    A shape does not tell: attention may read tokens of the whole batch, a mean may be over it. With the same shapes
    the same kernels run, so rows that are apart keep their bits. Any two rows differ in a bit of their numbers: for
    each bit those with it are changed, then those without, so 2 log2(rows) runs tell of all pairs. ``ranks`` that
    sample one thing find the same, and stop at the same run.

    Raises:
        NotByRowError: a row changed with others.
    """
    expected = captured(*inputs)
    for bit in range((rows - 1).bit_length()):
        for value in (0, 1):
            changed = [row for row in range(rows) if row >> bit & 1 == value]
            kept = [row for row in range(rows) if row not in changed]
            others = [
                _changed(given, batch.inputs[place], changed) if place in batch.inputs else given
                for place, given in enumerate(inputs)
            ]
            if not everywhere(_alike(captured(*others), expected, batch, kept), ranks):
                raise NotByRowError("a sample changes with its neighbours, so they are mixed")


def _changed(value: torch.Tensor, dim: int, rows: Sequence[int]) -> torch.Tensor:
    """``value`` with ``rows`` at half of their size; indices and masks as they are."""
    if not value.is_floating_point():
        return value
    made = value.clone()
    made.index_copy_(dim, places := torch.tensor(rows, device=value.device), value.index_select(dim, places) * 0.5)
    return made


def _alike(made: Any, expected: Any, batch: Batch, rows: Sequence[int]) -> bool:
    """Whether two outputs are the same in ``rows``."""
    pairs = zip(_tensors(made), _tensors(expected), batch.outputs, strict=True)
    return all(
        torch.equal(picked(one, dim, rows).nan_to_num(), picked(other, dim, rows).nan_to_num())
        for one, other, dim in pairs
        if dim is not None
    )


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [value for value in pytree.tree_leaves(outputs) if isinstance(value, torch.Tensor)]
