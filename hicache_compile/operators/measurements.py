"""The functions that probes are made of. They give the same results in eager mode, in a graph and compiled.

``change(a, b) = mean|a - b| / mean|b|`` in float32, per sample (first dimension); if a call has several samples, the
largest decides for all. A sample whose value is not finite has no say, unless all are. A measured value is ``[n]``
float32; ``by_row``: ``[B, n]``, of each sample by itself. ``ranks``: each has a part of what is measured, and all get
the value of the whole, with an all-reduce of sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hicache_compile.operators.anchors import is_finite
from hicache_compile.operators.collectives import Ranks, total


def size(x: Tensor, ranks: Ranks = ()) -> Tensor:
    """``mean|x|`` per sample, ``[B]`` float32."""
    return _joined(ranks, x, x.abs().flatten(1).mean(1, dtype=torch.float32))[0]


def _joined(ranks: Ranks, of: Tensor, *means: Tensor) -> Sequence[Tensor]:
    """Means ``[B]`` over parts of the size of ``of``, as means over the parts of all ``ranks``, which may differ in
    size."""
    if not ranks:
        return means
    count = torch.full_like(means[0], of[0].numel())
    *sums, counts = total(torch.stack([*(each * count for each in means), count]), ranks).unbind()
    return [each / counts for each in sums]


def _moved(now: Tensor, before: Tensor) -> Tensor:
    """``mean|now - before|`` per sample."""
    return size(now.float() - before.float())


def ratio(now: Tensor, before: Tensor, ranks: Ranks = ()) -> Tensor:
    """``mean|now - before| / mean|before|`` per sample, ``[B]`` float32; 0 / 0 is NaN."""
    moved, was = _joined(ranks, now, _moved(now, before), size(before.float()))
    return moved / was


def largest(values: Tensor, by_row: bool = False) -> Tensor:
    """The largest of values ``[B]`` >= 0 that are finite, ``[1]``; not a number where none is."""
    if by_row:
        return values[:, None]
    found = torch.where(is_finite(values), values, -1.0).amax(0).reshape(1)
    return torch.where(found < 0, torch.nan, found)


def average(values: Tensor, over: Tensor | None = None, by_row: bool = False) -> Tensor:
    """``sum(values) / sum(over)`` of the samples ``[B]`` where both are finite, ``[1]``; ``over``: by default ones."""
    over = torch.ones_like(values) if over is None else over
    if by_row:
        return (values / over)[:, None]
    good = is_finite(values) & is_finite(over)
    whole, parts = (torch.where(good, each, 0.0).sum(0).reshape(1) for each in (values, over))
    return whole / parts


def change(now: Tensor, before: Tensor, by_row: bool = False, ranks: Ranks = ()) -> Tensor:
    """The largest change over samples, ``[1]``."""
    return largest(ratio(now, before, ranks), by_row)


def rate(
    x: Tensor, x_before: Tensor, factor: Tensor, output_size: Tensor, by_row: bool = False, ranks: Ranks = ()
) -> Tensor:
    """``factor mean|x - x_before| / output_size``, the largest over samples, ``[1]`` (EasyCache)."""
    return largest(factor * size(x.float() - x_before.float(), ranks) / output_size, by_row)


def rate_factor(y: Tensor, y_before: Tensor, x: Tensor, x_before: Tensor, ranks: Ranks = ()) -> Tensor:
    """``mean|dy| / mean|dx|`` between computed steps, ``[B]`` (EasyCache)."""
    return size(y.float() - y_before.float(), ranks) / size(x.float() - x_before.float(), ranks)


def shifted(residual: Tensor, newer: Tensor) -> Tensor:
    """``[2, *S]``: the residual of this step, then that of the previous computed step."""
    return torch.stack([residual, newer])


def newer(residuals: Tensor) -> Tensor:
    """The residual of the last computed step."""
    return residuals[0]


def older(residuals: Tensor) -> Tensor:
    """The residual of the computed step before the last."""
    return residuals[1]


def end(
    now: Tensor,
    before: Tensor,
    residual: Tensor,
    newer: Tensor,
    older: Tensor,
    by_row: bool = False,
    ranks: Ranks = (),
) -> Tensor:
    """The change of the probe's output and the progress of its residual, ``mean|residual - older| / mean|newer -
    older|`` over all samples, ``[2]`` (DiCache)."""
    return _with_progress([(now, before)], residual, newer, older, by_row, ranks)


def excess(
    now: Tensor,
    before: Tensor,
    start: Tensor,
    start_before: Tensor,
    residual: Tensor,
    newer: Tensor,
    older: Tensor,
    by_row: bool = False,
    ranks: Ranks = (),
) -> Tensor:
    """The difference of the changes of the probe's output and of its input, and the progress as in ``end``, ``[2]``
    (DiCache)."""
    return _with_progress([(now, before), (start, start_before)], residual, newer, older, by_row, ranks)


def _with_progress(
    pairs: Sequence[tuple[Tensor, Tensor]],
    residual: Tensor,
    newer: Tensor,
    older: Tensor,
    by_row: bool,
    ranks: Ranks,
) -> Tensor:
    """The change of the first pair, or how far it is from that of the second, and the progress."""
    means = [mean for now, before in pairs for mean in (_moved(now, before), size(before.float()))]
    *changes, far, whole = _joined(ranks, residual, *means, _moved(residual, older), _moved(newer, older))
    first, *second = [moved / was for moved, was in zip(changes[::2], changes[1::2], strict=True)]
    found = (first - second[0]).abs() if second else first
    return together(largest(found, by_row), average(far, whole, by_row))


def magnitude(now: Tensor, before: Tensor, by_row: bool = False, ranks: Ranks = ()) -> Tensor:
    """``|now| / |before|`` (2-norm over the last dimension), averaged over all tokens, ``[1]`` (MagCache)."""
    grown = now.float().norm(dim=-1) / before.float().norm(dim=-1)
    return average(_joined(ranks, grown, grown.flatten(1).mean(1))[0], by_row=by_row)


BY_ROW = (change, rate, end, excess, magnitude)  # those that take ``by_row``
OVER_RANKS = (*BY_ROW, size, rate_factor)  # those that take ``ranks``


def low_passed(
    x: Tensor, time: Tensor, exponent: float | None, grid: tuple[int, ...] | None, rising: bool = False
) -> Tensor:
    """``x`` through the Wiener filter of its noise level, float32 (SeaCache 2602.18993, eq. 7).

    Along an axis of ``n`` bins at ``f = min(k, n - k) / n`` cycles a sample the gain is ``1 / (1 + r^2 f^exponent)``,
    ``r = sigma / (1 - sigma)``, divided by its mean. The filter is a product over axes, and along each a circulant
    matrix: no FFT, so that it compiles and exports.

    Args:
        x: ``[B, C, *grid]``, or ``[B, N, C]`` with a ``grid`` of ``N`` tokens; then ``[B, *grid, C]`` is returned.
        time: sigma (a float up to 1) or 1000 sigma, of all or of each sample.
        exponent: ``None``: the number of axes.
        rising: ``time`` is 1 - sigma, or 1000 times that.
    """
    first = 2
    if grid is not None:
        x, first = x.unflatten(1, grid), 1
    axes = range(first, x.dim() - 2 + first)
    share = time.to(x.device, torch.float32).reshape(time.shape[0] if time.dim() else 1, -1).amax(1)
    share = torch.where(share > 1, share / 1000, share) if time.is_floating_point() else share / 1000
    sigma = (1 - share if rising else share).clamp(1e-6, 1 - 1e-6)
    odds = (sigma / (1 - sigma)).square()[:, None]  # [B] or [1]
    y = x.float()
    for axis in axes:
        n = x.shape[axis]
        k = torch.arange(n, device=x.device)
        frequency = torch.minimum(k, n - k) / n
        gain = 1 / (1 + odds * frequency ** float(exponent or len(axes)))
        gain = gain / gain.mean(1, keepdim=True)
        kernel = gain @ torch.cos(2 * torch.pi / n * (k[:, None] * k % n)) / n
        matrix = kernel[:, (k[:, None] - k) % n]  # [B, n, n], symmetric
        moved = y.movedim(axis, -1)
        y = (moved @ matrix.reshape(-1, *[1] * (moved.dim() - 3), n, n)).movedim(-1, axis)
    return y


def together(*values: Tensor) -> Tensor:
    """Several measurements ``[n]``, or ``[B, n]``, concatenated."""
    return torch.cat(values, dim=-1)


@torch.fx.has_side_effect
def keep(memory: Tensor, value: Tensor) -> None:
    """Copy ``value`` into ``memory``, in place."""
    memory.copy_(value.detach())
