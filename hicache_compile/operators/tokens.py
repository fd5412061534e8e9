"""The functions of token-wise steps: tokens ``[B, N, D]`` are chosen, their rows taken and put back.

``chosen`` are indices ``[B, T]`` int64 along dimension 1. All work on the device, and none waits for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hicache_compile.operators.anchors import is_finite

_WORD = 0xFFFFFFFF


def take(values: Tensor, chosen: Tensor) -> Tensor:
    """The rows ``chosen`` of ``values`` ``[B, N, ...]``."""
    index = chosen.reshape(*chosen.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def put(values: Tensor, chosen: Tensor, rows: Tensor) -> Tensor:
    """``values`` ``[B, N, D]`` with ``rows`` ``[B, T, D]`` in the places ``chosen``."""
    return values.scatter(1, chosen[..., None].expand(rows.shape), rows.to(values.dtype))


def spread_value(forecast: Tensor, chosen: Tensor, rows: Tensor, clusters: Tensor, blend: float) -> Tensor:
    """``f_i + blend (y_c - f_i)``: every token moves towards what was computed for its cluster ``c`` (ClusCa)."""
    return forecast + blend * (take(rows, clusters).to(forecast.dtype) - forecast)


def spread_error(forecast: Tensor, chosen: Tensor, rows: Tensor, clusters: Tensor, blend: float) -> Tensor:
    """``f_i + blend (y_c - f_c)``: every token is corrected by the error seen at the computed one of its cluster."""
    error = rows.to(forecast.dtype) - take(forecast, chosen)
    return forecast + blend * take(error, clusters)


def draws(number: Tensor, count: int) -> Tensor:
    """``count`` numbers in [0, 1) that follow from ``number``, int64 ``[1]`` or ``[B, 1]``: float32
    ``[1 or B, count]``.

    The same on every device: a hash in integers (the finaliser of a 32-bit mixing function, applied to a counter).
    """
    mixed = (torch.arange(count, device=number.device) * 0x9E3779B1 + number.reshape(-1, 1)) & _WORD
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _WORD
    return ((mixed ^ (mixed >> 15)) >> 8).float() / 2**24


def at_random(number: Tensor, like: Tensor, count: int) -> Tensor:
    """``count`` tokens of ``like`` ``[B, N, D]``, any."""
    chosen = draws(number, like.shape[1]).topk(count, dim=1).indices
    return chosen.expand(like.shape[0], -1)


def on_a_grid(number: Tensor, like: Tensor, count: int) -> Tensor:
    """``count`` tokens of ``like`` ``[B, N, D]``, evenly spaced, from a place that ``number`` tells."""
    tokens = like.shape[1]
    even = torch.arange(count, device=like.device) * tokens // count
    return ((even + number.reshape(-1, 1)) % tokens).expand(like.shape[0], -1)


def one_of_each(number: Tensor, clusters: Tensor, count: int) -> Tensor:
    """A token at random of each of ``count`` clusters; ``clusters``: of each token, ``[B, N]``.

    Where a cluster is empty another one's token stands in for its own.
    """
    order = (clusters + draws(number, clusters.shape[1])).argsort(dim=1)
    sizes = one_hot(clusters, count).sum(1)
    first = (sizes.cumsum(1) - sizes).clamp(max=clusters.shape[1] - 1)
    return order.gather(1, first)


def best(score: Tensor, count: int) -> Tensor:
    """The ``count`` tokens with the highest ``score`` ``[B, N]``."""
    return score.topk(count, dim=1).indices


def moved(centroids: Tensor, values: Tensor, iterations: int) -> Tensor:
    """The centroids ``[B, C, D]`` float32 of k-means over ``values`` ``[B, N, D]``, from ``centroids`` on.

    Lloyd's algorithm with the L1 distance, as ClusCa has it. Centroids that are all zero, as at the start of a run,
    begin at evenly spaced tokens; one without tokens stays where it is.
    """
    values, count = values.float(), centroids.shape[1]
    even = torch.arange(count, device=values.device) * values.shape[1] // count
    begun = centroids.abs().amax((1, 2), keepdim=True) > 0
    found = torch.where(begun, centroids, values[:, even])
    for _ in range(iterations):
        member = one_hot(nearest(found, values), count).float()
        size = member.sum(1)[..., None]
        mean = member.transpose(1, 2) @ values / size.clamp(min=1)
        found = torch.where(size > 0, mean, found)
    return found


def nearest(centroids: Tensor, values: Tensor) -> Tensor:
    """The cluster of each token, ``[B, N]`` int64."""
    return torch.cdist(values.float(), centroids, p=1.0).nan_to_num(torch.inf).argmin(-1)


def size_of(values: Tensor) -> Tensor:
    """The norm of each token, ``[B, N]`` float32."""
    return values.float().norm(dim=-1)


def size_of_change(values: Tensor, before: Tensor) -> Tensor:
    """The norm of the change of each token, ``[B, N]`` float32."""
    return (values.float() - before.float()).norm(dim=-1)


def score(change: Tensor, stale: Tensor, staleness: float, bonus: float) -> Tensor:
    """What ToCa chooses by, without attention maps: ``change / max change + staleness * stale``, and where tokens are a
    square picture of even size the best of each 2 x 2 cell has ``bonus`` times its score more."""
    found = change / change.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) + staleness * stale
    side = math.isqrt(found.shape[1])
    if not bonus or side * side != found.shape[1] or side % 2:
        return found
    cells = found.reshape(-1, side // 2, 2, side // 2, 2)
    top = cells == cells.amax((2, 4), keepdim=True)
    return found + bonus * (cells * top).reshape(found.shape)


def finite_or(values: Tensor, before: Tensor) -> Tensor:
    """``values``, and where they are no finite numbers what was ``before``: one bad step is not carried on."""
    return torch.where(is_finite(values), values, before)


def older(stale: Tensor, chosen: Tensor) -> Tensor:
    """The token-wise steps since each token was computed, after one that computed ``chosen``."""
    return (stale + 1).scatter(1, chosen, 0.0)
