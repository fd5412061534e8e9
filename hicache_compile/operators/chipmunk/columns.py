"""Sets of columns (keys of an attention, hidden units of an MLP): size, selection and storage.

A set is stored as bits, eight columns per byte with the lowest first, or as int32 indices in ascending order, whichever
is smaller: bits if more than one column in 32 is in the set. The dtype tells which.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MILLION = 1_000_000


def width_of(columns: Any, fraction: float, multiple: int) -> Any:
    """``fraction`` of ``columns``, rounded to the nearest multiple of ``multiple``, and at least ``multiple``.

    ``columns`` may be a SymInt: the arithmetic uses integers only.
    """
    parts = round(fraction * _MILLION)
    nearest = (columns * parts + multiple * _MILLION // 2) // (multiple * _MILLION) * multiple
    return torch.sym_min(torch.sym_max(nearest, multiple), columns)


def is_packed(fraction: float) -> bool:
    """Whether a set with this fraction of the columns is smaller as bits."""
    return fraction * 32 > 1


def packed_width(columns: Any) -> Any:
    """The number of bytes of a set of ``columns`` as bits."""
    return (columns + 7) // 8


def pack(chosen: Tensor) -> Tensor:
    """A mask ``[..., M]`` bool as bits ``[..., ceil(M / 8)]`` uint8."""
    width = packed_width(chosen.shape[-1])
    padded = torch.nn.functional.pad(chosen.to(torch.uint8), (0, width * 8 - chosen.shape[-1]))
    places = torch.arange(8, dtype=torch.uint8, device=chosen.device)
    return (padded.unflatten(-1, (width, 8)) << places).sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor, columns: int) -> Tensor:
    """The mask ``[..., columns]`` bool of ``bits``."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(-1) >> places) & 1).flatten(-2)[..., :columns].bool()


def kept(chosen: Tensor, packed: bool) -> Tensor:
    """The set of a mask ``[..., M]`` in storage form: bits, or indices ``[..., K]`` if all rows have the same count."""
    return pack(chosen) if packed else indices(chosen)[0]


def indices(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """A mask ``[..., M]`` as indices ``[..., K]`` int32 in ascending order and counts ``[...]``; K is the largest
    count.

    Rows with fewer are padded with their other columns, the lowest first.
    """
    counts = chosen.sum(-1)
    most = int(counts.max())
    # A stable sort moves the chosen columns to the front and keeps both parts in ascending order.
    if int(counts.min()) == most:
        found = chosen.flatten(0, -2).nonzero()[:, 1].view(*chosen.shape[:-1], most)
    else:
        found = chosen.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    return found.to(torch.int32), counts


def listed(columns: Tensor, of: int) -> tuple[Tensor, Tensor | None]:
    """A stored set as indices ``[..., K]`` int32, and the count of each row, or None if all rows have K."""
    if columns.dtype is not torch.uint8:
        return columns, None
    found, counts = indices(unpack(columns, of))
    return found, None if bool((counts == found.shape[-1]).all()) else counts


def chosen_of(columns: Tensor, of: int) -> Tensor:
    """A stored set as a mask ``[..., of]``."""
    if columns.dtype is torch.uint8:
        return unpack(columns, of)
    chosen = torch.zeros(*columns.shape[:-1], of, dtype=torch.bool, device=columns.device)
    return chosen.scatter_(-1, columns.long(), True)


def largest(scores: Tensor, width: int) -> Tensor:
    """The ``width`` largest of ``scores`` ``[..., M]``, as a mask."""
    chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return chosen.scatter_(-1, scores.topk(width, dim=-1, sorted=False).indices, True)


def covering(scores: Tensor, share: float, multiple: int) -> Tensor:
    """The fewest columns with at least the fraction ``share`` of the mass of each row of ``scores`` ``[..., M]``, as a
    mask.

    Counts are multiples of ``multiple``.
    """
    ordered, order = scores.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    needed = (before < share * ordered.sum(-1, keepdim=True)).sum(-1, keepdim=True)
    needed = ((needed + multiple - 1) // multiple * multiple).clamp(multiple, scores.shape[-1])
    ranked = torch.arange(scores.shape[-1], device=scores.device) < needed
    return torch.zeros_like(ranked).scatter_(-1, order, ranked)


def some(shape: Any, share: float, seed: int, device: torch.device) -> Tensor:
    """A mask that contains each column with probability ``share``; deterministic in ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(tuple(shape), generator=generator) < share).to(device)
