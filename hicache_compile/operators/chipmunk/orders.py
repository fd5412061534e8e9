"""Token orders that make neighbours in an image or a video adjacent in the sequence, and the keys near a token.

``patches``   an image in 8 x 8 patches, each in four 4 x 4 patches; all row-major
``voxels``    a video in voxels of 4 x 6 x 8 tokens, row-major; incomplete voxels come last

Both support any size. A query group of 192 tokens is three patches or one voxel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PATCHES = (8, 4)
VOXEL = (4, 6, 8)


@torch.library.custom_op("hicache::token_order", mutates_args=())
def token_order(like: Tensor, grid: Sequence[int], order: str, before: int, after: int, inverse: bool) -> Tensor:
    """The old index of each token of the new sequence, ``[before + N + after]`` int64 on the device of ``like``.

    Args:
        grid: the image ``(H, W)`` or the video ``(T, H, W)`` of N tokens, row-major in the old sequence.
        order: ``"patches"`` or ``"voxels"``.
        before, after: the number of tokens before and after the grid; they are not moved.
        inverse: the inverse permutation, from the new sequence to the old one.
    """
    inside = positions(grid, order)
    if inverse:
        inside = inside.argsort()
    count = len(inside)
    parts = [torch.arange(before), inside + before, torch.arange(after) + before + count]
    return torch.cat(parts).to(like.device)


@token_order.register_fake
def _(like: Tensor, grid: Sequence[int], order: str, before: int, after: int, inverse: bool) -> Tensor:
    return like.new_empty(before + math.prod(grid) + after, dtype=torch.int64)


@torch.library.custom_op("hicache::nearby_columns", mutates_args=())
def nearby_columns(
    like: Tensor, grid: Sequence[int], order: str | None, before: int, after: int, group: int, window: int, band: float
) -> Tensor:
    """The keys each group of queries always reads, ``[G, N]`` bool.

    These are the keys within ``window`` patches (voxels) of a token of the group, and the keys within ``band`` (a
    fraction of the tokens) of its middle in the sequence. With a window, all groups also read the tokens outside the
    grid, and groups with tokens outside the grid read everything.
    """
    count = before + math.prod(grid) + after
    groups = torch.arange(count) // group
    rows = int(groups[-1]) + 1
    near = torch.zeros(rows, count, dtype=torch.bool)
    if window:
        tiles = tiles_of(grid)[positions(grid, order) if order else slice(None)]
        inside = slice(before, before + len(tiles))
        for row in range(rows):
            own = tiles[groups[inside] == row].unique(dim=0)
            distances = (tiles.unsqueeze(0) - own.unsqueeze(1)).abs().amax(-1)
            near[row, inside] = (distances <= window).any(0)
        near[:, :before] = near[:, before + len(tiles) :] = True
        near[groups[:before].unique()] = near[groups[before + len(tiles) :].unique()] = True
    if band:
        middles = (torch.arange(rows) + 0.5) * group
        near |= (torch.arange(count) + 0.5 - middles.unsqueeze(1)).abs() <= band * count / 2
    return near.to(like.device)


@nearby_columns.register_fake
def _(
    like: Tensor, grid: Sequence[int], order: str | None, before: int, after: int, group: int, window: int, band: float
) -> Tensor:
    count = before + math.prod(grid) + after
    return like.new_empty((count + group - 1) // group, count, dtype=torch.bool)


def positions(grid: Sequence[int], order: str) -> Tensor:
    """The index of each token of ``order`` in the row-major sequence of ``grid``, ``[N]``."""
    return (_patches if order == "patches" else _voxels)(*grid)


def tiles_of(grid: Sequence[int]) -> Tensor:
    """The patch (voxel) coordinates of each token in row-major order, ``[N, 2 or 3]``."""
    sizes = VOXEL if len(grid) == len(VOXEL) else (PATCHES[0], PATCHES[0])
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid))
    return places // torch.tensor(sizes)


def _patches(height: int, width: int) -> Tensor:
    outer, inner = PATCHES
    y, x = torch.cartesian_prod(torch.arange(height), torch.arange(width)).unbind(1)
    levels = [y // outer, x // outer, y % outer // inner, x % outer // inner, y % inner, x % inner]
    return _sorted_by(levels)


def _voxels(frames: int, height: int, width: int) -> Tensor:
    t, y, x = torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width)).unbind(1)
    at = [t, y, x]
    whole = [size // side * side for size, side in zip((frames, height, width), VOXEL, strict=True)]
    # Incomplete voxels come last: later frames, then lower rows of the other frames, then columns on the right.
    left = torch.where(t >= whole[0], 1, torch.where(y >= whole[1], 2, torch.where(x >= whole[2], 3, 0)))
    levels = [place // side for place, side in zip(at, VOXEL, strict=True)]
    levels += [place % side for place, side in zip(at, VOXEL, strict=True)]
    raster = torch.arange(len(t))
    inside = left == 0
    return _sorted_by([left, *(torch.where(inside, level, 0) for level in levels), raster])


def _sorted_by(levels: Sequence[Tensor]) -> Tensor:
    """The order of tokens sorted by the first of ``levels``, then by the second, and so on."""
    order = torch.arange(len(levels[0]))
    for level in reversed(levels):
        order = order[level[order].argsort(stable=True)]
    return order
