"""A value in parts that are forecast each by itself: bands of frequency, or groups of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Bands = tuple[float, tuple[int, ...] | None]  # what share of the frequencies is low, and how tokens lie
Parts = Bands | str  # or a hexadecimal digit for each channel, the number of the part that it is in; none: the first


def joined(pieces: Sequence[Tensor], parts: Parts) -> Tensor:
    """One value of the same value made in several ways: each of ``pieces`` counts in its own part alone.

    Bands are low, then high; channels are the last dimension.
    """
    if isinstance(parts, str):
        made = pieces[0]
        if not parts:
            return made
        number_of = torch.tensor([int(digit, 16) for digit in parts], device=made.device)
        for number, piece in enumerate(pieces[1:], 1):
            made = torch.where(number_of == number, piece, made)
        return made
    low, high = pieces
    return high + low_frequencies(low - high, *parts)


def low_frequencies(x: Tensor, cutoff: float, grid: tuple[int, ...] | None) -> Tensor:
    """The part of ``x`` ``[B, N, C]`` in the lowest ``cutoff`` of the frequencies along its tokens.

    Frequencies are those of the orthonormal cosine transform (DCT-II), the mean always among them. Tokens that lie on
    ``grid`` are transformed along each of its axes, others along their order. ``[B, *axes, C]`` has axes of its own.
    """
    on_grid = grid is not None and x.dim() == 3 and x.shape[1] == math.prod(grid)
    y = x.unflatten(1, grid) if on_grid and grid is not None else x
    for axis in range(1, y.dim() - 1):
        waves = _waves(y.shape[axis], cutoff, x)
        y = (y.movedim(axis, -1) @ waves.T @ waves).movedim(-1, axis)
    return y.flatten(1, -2) if on_grid else y


def _waves(length: int, cutoff: float, like: Tensor) -> Tensor:
    """The lowest waves of an axis, ``[m, length]`` in the dtype of ``like``, orthonormal."""
    kept = torch.sym_max(1, torch.sym_int(cutoff * length))  # of a length that varies too
    waves = torch.arange(kept, device=like.device)[:, None]
    places = torch.arange(length, device=like.device)
    # The angle in whole numbers first: float32 has too few digits for the product.
    turns = (2 * places + 1) * waves % (4 * length)
    scale = torch.where(waves == 0, 1.0, 2.0) / length
    return (torch.cos(turns.to(torch.float32) * (math.pi / 2) / length) * scale.sqrt()).to(like.dtype)
