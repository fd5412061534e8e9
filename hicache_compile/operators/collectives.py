"""Collectives over the ranks of ``torch.distributed`` that sample one thing."""

from __future__ import annotations

import torch
from torch import Tensor

from hicache_compile.errors import HiCacheError


def require_ranks(owner: str) -> int:
    """The number of ranks.

    Raises:
        HiCacheError: ``torch.distributed`` is not initialised.
    """
    dist = torch.distributed
    if not dist.is_available() or not dist.is_initialized():
        raise HiCacheError(
            f"{owner}: must be used where torch.distributed is initialised; call torch.distributed.init_process_group"
        )
    return int(dist.get_world_size())


def largest_first(measured: Tensor) -> Tensor:
    """``measured`` ``[n]`` as all ranks decide by it: the largest first value of all (one that is not finite counts as
    infinite), the mean of the others."""
    first = torch.where(measured[:1].isfinite(), measured[:1], torch.inf)
    torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MAX)
    return torch.cat([first, mean(measured[1:])]) if len(measured) > 1 else first


def mean(measured: Tensor) -> Tensor:
    """The mean of ``measured`` over the ranks."""
    return total(measured) / torch.distributed.get_world_size()


def total(measured: Tensor) -> Tensor:
    """The sum of ``measured`` over the ranks."""
    summed = measured.clone()
    torch.distributed.all_reduce(summed)
    return summed
