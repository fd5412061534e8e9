"""Sums over the ranks of ``torch.distributed`` that sample one thing; in a graph and outside of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hicache_compile import internals
from hicache_compile.errors import HiCacheError

COLLECTIVES = "_c10d_functional"  # the namespace of torch's collectives in graphs
Ranks = Sequence[str]  # names of process groups, a sum over one after the other is the sum over all ranks


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


def is_dtensor_type(kind: type) -> bool:
    """Whether it is ``DTensor``. Importing its module takes a second, which is left to whoever makes one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and issubclass(kind, module.DTensor)


def is_dtensor(value: object) -> bool:
    """Whether ``value`` is a ``DTensor``."""
    return is_dtensor_type(type(value))


def mesh_of(value: Any) -> Any:
    """The device mesh of a ``DTensor``, also of a fake one, where torch stands something in for it."""
    mesh = value.device_mesh
    return getattr(mesh, "real_obj", mesh)


def local_part(value: Any) -> Tensor:
    """What this rank has of a ``DTensor``. ``to_local`` would be an operator, which a mode of fake tensors refuses of a
    tensor of another."""
    part: Tensor = value._local_tensor
    return part


def like_dtensor(value: Any, part: Tensor) -> Tensor:
    """A ``DTensor`` laid out like ``value`` of which this rank has ``part``."""
    layout = {"shape": value.shape, "stride": value.stride()}
    made: Tensor = type(value).from_local(part, mesh_of(value), value.placements, run_check=False, **layout)
    return made


def _named(group: str) -> Any:
    return internals.group_named(group)  # type: ignore[arg-type]  # a name is a string


def members(group: str) -> frozenset[int]:
    """The ranks of the process group ``group``."""
    return frozenset(torch.distributed.get_process_group_ranks(_named(group)))


def total(values: Tensor, ranks: Ranks) -> Tensor:
    """The sum of ``values`` over ``ranks``: one all-reduce a group. Without ranks, ``values``."""
    for group in ranks:
        reduced = internals.functional_collectives.all_reduce(values, "sum", group)
        values = internals.functional_collectives.wait_tensor(reduced)
    return values


def total_outside(values: Tensor, ranks: Ranks) -> Tensor:
    """``total`` outside of a graph, of values on any device."""
    if not ranks:
        return values
    device = internals.device_of_group(_named(ranks[0]))
    return total(values.to(device), ranks).to(values.device)


def everywhere(truth: bool, ranks: Ranks) -> bool:
    """Whether ``truth`` holds on all ``ranks``. The host waits for it."""
    return total_outside(torch.tensor([float(not truth)]), ranks).item() == 0 if ranks else truth


def mean(measured: Tensor, ranks: Ranks | None) -> Tensor:
    """The mean of ``measured`` over ``ranks``; ``None``: over all that there are."""
    if ranks is None:
        summed = measured.clone()
        torch.distributed.all_reduce(summed)
        return summed / torch.distributed.get_world_size()
    return total_outside(measured, ranks) / total_outside(torch.ones(()), ranks).item() if ranks else measured
