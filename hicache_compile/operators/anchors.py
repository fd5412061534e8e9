"""The three functions of a guarded graph. They give the same results in eager mode, in a graph and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def remember(anchors: Tensor, position: Tensor, value: Tensor) -> None:
    """Write ``value`` ``[*S]`` into row ``position`` ``[1]`` of the ring ``anchors`` ``[K, *S]``, in place."""
    anchors.index_copy_(0, position, value.detach().unsqueeze(0).to(anchors.dtype))


def forecast(anchors: Tensor, weights: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``sum_k weights[k] * anchors[k]`` of a ring ``[K, *S]``, accumulated in float32 or wider.

    ``dtype``: the slot's, if it is not the ring's. A chain of products, so that a compiler fuses it with the gate and
    the sum around it into one pointwise kernel. Rows without an anchor hold zeros and have weight zero.
    """
    wide = torch.promote_types(anchors.dtype, torch.float32)
    total = anchors[0].to(wide) * weights[0]
    for k in range(1, anchors.shape[0]):
        total = total + anchors[k].to(wide) * weights[k]
    return total.to(dtype or anchors.dtype)


def full_or_forecast(
    full: Callable[..., tuple[Tensor, ...]],
    computing: bool,
    operands: Sequence[Tensor],
    carried: Sequence[Tensor | None],
    anchors: Sequence[Tensor],
    position: Tensor,
    weights: Tensor | Sequence[Tensor],
    dtypes: Sequence[torch.dtype | None] | None = None,
) -> tuple[Tensor, ...]:
    """A guarded site: if computing, run ``full`` and write its slots to the rings; else forecast the slots.

    A slot with a ``carried`` stream is cached as the residual to it. ``weights``: common to all slots, or a list with
    one tensor per slot. ``dtypes``: of the slots, if the rings have other dtypes.
    """
    if computing:
        outputs = full(*operands)
        for output, stream, ring in zip(outputs, carried, anchors, strict=True):
            remember(ring, position, output if stream is None else output - stream)
        return outputs
    rows = [weights] * len(anchors) if isinstance(weights, Tensor) else weights
    kept = dtypes or [None] * len(anchors)
    forecasts = [forecast(ring, row, dtype) for ring, row, dtype in zip(anchors, rows, kept, strict=True)]
    return tuple(f if s is None else s + f for f, s in zip(forecasts, carried, strict=True))
