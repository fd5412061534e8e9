"""The functions of a guarded graph. They give the same results in eager mode, in a graph and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hicache_compile.operators.parts import Parts, joined

QUANTISED = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # dtypes with a scale, and their largest values
_NO_NUMBER = -128  # of int8, whose numbers end at -127


@torch.fx.has_side_effect
def remember(anchors: Tensor, position: Tensor, value: Tensor) -> None:
    """Write ``value`` ``[*S]`` into row ``position`` ``[1]`` of the ring ``anchors`` ``[K, *S]``, in place.

    Where a number is not finite the row before it stands in: a sample that overflowed in one step is left out of later
    forecasts, and of no other sample's.
    """
    row = row_to_keep(anchors, position, value)
    if anchors.dtype is torch.float8_e4m3fn:  # index_copy_ is not made for it
        anchors, row = anchors.view(torch.int8), row.view(torch.int8)
    anchors.index_copy_(0, position, row)


def row_to_keep(anchors: Tensor, position: Tensor, value: Tensor) -> Tensor:
    """``value`` as ``remember`` writes it, ``[1, *S]`` in the dtype of ``anchors``."""
    row = value.detach().unsqueeze(0).to(anchors.dtype)
    good = is_number(row)
    held = anchors
    narrow = anchors.dtype is torch.float8_e4m3fn
    if narrow:
        row, held = row.view(torch.int8), anchors.view(torch.int8)
    kept = torch.where(good, row, held.index_select(0, (position - 1) % held.shape[0]))
    return kept.view(anchors.dtype) if narrow else kept


def is_number(kept: Tensor) -> Tensor:
    """Where anchors ``kept``, in the dtype of a ring, are finite numbers."""
    return kept != _NO_NUMBER if kept.dtype is torch.int8 else is_finite(kept)


def is_finite(values: Tensor) -> Tensor:
    """As ``isfinite``, in operators that every exporter has."""
    wide = values.float() if values.dtype is torch.float8_e4m3fn else values
    return wide.abs() <= torch.finfo(values.dtype).max


def forecast(anchors: Tensor, weights: Tensor, dtype: torch.dtype | None = None, parts: Parts | None = None) -> Tensor:
    """``sum_k weights[k] * anchors[k]`` of a ring ``[K, *S]``, accumulated in float32 or wider.

    ``dtype``: the slot's, if it is not the ring's. A chain of products, so that a compiler fuses it with the gate and
    the sum around it into one pointwise kernel. Rows without an anchor hold zeros and have weight zero. ``parts``: of
    the slot, each with a row of weights ``[parts, K]``.
    """
    if parts is not None:
        wide = torch.promote_types(weights.dtype, torch.float32)
        return joined([forecast(anchors, row, wide) for row in weights], parts).to(dtype or anchors.dtype)
    quantised = anchors.dtype in QUANTISED
    wide = torch.float32 if quantised else torch.promote_types(anchors.dtype, torch.float32)
    total = anchors[0].to(wide) * weights[0]
    for k in range(1, anchors.shape[0]):
        total = total + anchors[k].to(wide) * weights[k]
    return total.to(dtype or anchors.dtype)


def scale_of(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale ``[]`` float32 at which ``value`` fits the quantised ``dtype``: ``max|value| / largest`` over what is
    finite; not a number where nothing is."""
    sizes = value.detach().abs().reshape(-1)
    largest = torch.where(is_finite(sizes), sizes, -1.0).amax(0).float()
    scale = (largest / QUANTISED[dtype]).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(largest < 0, torch.nan, scale)


def quantised(value: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``value / scale``, rounded to ``dtype``; what is not finite is marked for ``remember``."""
    scaled = value.detach().float() / scale
    good = is_finite(scaled)
    if dtype.is_floating_point:
        return torch.where(good, scaled, torch.nan).to(dtype)
    return torch.where(good, scaled.round(), float(_NO_NUMBER)).to(dtype)


def dequantised(anchors: Tensor, scales: Tensor) -> Tensor:
    """The values ``[K, *S]`` float32 of a quantised ring with ``scales`` ``[K]``."""
    return anchors.float() * scales.reshape(-1, *[1] * (anchors.dim() - 1))


def full_or_forecast(
    full: Callable[..., tuple[Tensor, ...]],
    computing: bool,
    operands: Sequence[Tensor],
    carried: Sequence[Tensor | None],
    anchors: Sequence[Tensor],
    position: Tensor,
    weights: Tensor | Sequence[Tensor],
    dtypes: Sequence[torch.dtype | None] | None = None,
    scales: Sequence[Tensor] | None = None,
    parts: Sequence[Parts] | None = None,
) -> tuple[Tensor, ...]:
    """A guarded site: if computing, run ``full`` and write its slots to the rings; else forecast the slots.

    A slot with a ``carried`` stream is cached as the residual to it. ``weights``: common to all slots, or a list with
    one tensor per slot. ``dtypes``: of the slots, if the rings have other dtypes. ``scales``: ``[K]`` float32 of each
    ring, if they are quantised. ``parts``: of each slot; weights then have a row for each.
    """
    own: Sequence[Tensor | None] = scales or [None] * len(anchors)
    if computing:
        outputs = full(*operands)
        for output, stream, ring, scale in zip(outputs, carried, anchors, own, strict=True):
            value = output if stream is None else output - stream
            if scale is not None:
                made = scale_of(value, ring.dtype)
                remember(scale, position, made)
                value = quantised(value, made, ring.dtype)
            remember(ring, position, value)
        return outputs
    rows = [weights] * len(anchors) if isinstance(weights, Tensor) else weights
    rows = [row if scale is None else row * scale for row, scale in zip(rows, own, strict=True)]
    kept = dtypes or [None] * len(anchors)
    divided: Sequence[Parts | None] = parts or [None] * len(anchors)
    forecasts = [forecast(*each) for each in zip(anchors, rows, kept, divided, strict=True)]
    return tuple(f if s is None else s + f for f, s in zip(forecasts, carried, strict=True))
