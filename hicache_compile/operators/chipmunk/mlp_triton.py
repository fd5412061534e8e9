"""Sparse MLP deltas on GPUs, in Triton: see ``mlp`` for the definition.

Two products: the selected hidden units, stored contiguously, and the resulting change of the output.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hicache_compile.operators.chipmunk.attention_triton import multiplied

UNITS = 64
TOKENS = 64
DEEP = 32  # tile size of the summed dimension
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "silu": 2, "relu": 3}


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == 0:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ACTIVATION == 1:  # tanh(y) = 2 sigmoid(2 y) - 1
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if ACTIVATION == 2:
        return x * tl.sigmoid(x)
    return tl.maximum(x, 0.0)


@triton.jit
def _taken_in(
    x, weight, bias, rows, units, row_mask, unit_mask, channels, w_row,
    UNITS: tl.constexpr, TOKENS: tl.constexpr, DEEP: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The inputs of ``units`` for the tokens at ``rows``: ``[UNITS, TOKENS]``."""
    total = tl.zeros([UNITS, TOKENS], tl.float32)
    for start in range(0, channels, DEEP):
        deep = start + tl.arange(0, DEEP)
        inside = deep < channels
        w = tl.load(
            weight + units[:, None] * w_row + deep[None, :], mask=unit_mask[:, None] & inside[None, :], other=0.0
        )
        token = tl.load(
            x + rows[None, :] * channels + deep[:, None], mask=row_mask[None, :] & inside[:, None], other=0.0
        )
        if WIDE:
            w, token = w.to(tl.float32), token.to(tl.float32)
        total += tl.dot(w, token, input_precision=PRECISION)
    if BIASED:
        total += tl.load(bias + units, mask=unit_mask, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit
def _units_kernel(
    x, w1, b1, w_up, b_up, columns, counts, activations, deltas,
    channels, hidden, width, w1_row, up_row,
    block: tl.constexpr, UNITS: tl.constexpr, TOKENS: tl.constexpr, DEEP: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr, BIASED: tl.constexpr, UP_BIASED: tl.constexpr, COUNTED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Recompute selected units of one block of tokens, store them, and write their change."""
    at, tile, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    places = tile * UNITS + tl.arange(0, UNITS)
    count = tl.load(counts + at).to(tl.int32) if COUNTED else width
    unit_mask = places < count
    units = tl.load(columns + at * width + places, mask=unit_mask, other=0).to(tl.int64)
    within = part * TOKENS + tl.arange(0, TOKENS)
    row_mask = within < block
    rows = at * block + within
    inner = _taken_in(
        x, w1, b1, rows, units, row_mask, unit_mask, channels, w1_row, UNITS, TOKENS, DEEP, BIASED, PRECISION, WIDE
    )
    dtype = activations.dtype.element_ty
    now = _activated(inner.to(dtype).to(tl.float32), ACTIVATION)
    if GATED:
        now = now.to(dtype).to(tl.float32) * _taken_in(
            x,
            w_up,
            b_up,
            rows,
            units,
            row_mask,
            unit_mask,
            channels,
            up_row,
            UNITS,
            TOKENS,
            DEEP,
            UP_BIASED,
            PRECISION,
            WIDE,
        ).to(dtype).to(tl.float32)
    mask = unit_mask[:, None] & row_mask[None, :]
    kept = activations + (at * hidden + units[:, None]) * block + within[None, :]
    before = tl.load(kept, mask=mask, other=0.0)
    kept_now = now.to(dtype)
    tl.store(kept, kept_now, mask=mask)
    changed = tl.where(mask, kept_now.to(tl.float32) - before.to(tl.float32), 0.0)
    room = deltas + (at * width + places[:, None]) * block + within[None, :]
    tl.store(room, changed.to(dtype), mask=(places < width)[:, None] & row_mask[None, :])


@triton.jit
def _outputs_kernel(
    deltas, w2, columns, counts, added,
    outputs, width, w2_row, w2_column,
    block: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, DEEP: tl.constexpr, COUNTED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The change of a tile of a block's output that results from the changed units."""
    at, tile, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    out = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    out_mask = out < outputs
    within = part * TOKENS + tl.arange(0, TOKENS)
    row_mask = within < block
    count = tl.load(counts + at).to(tl.int32) if COUNTED else width
    total = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in range(0, count, DEEP):
        places = start + tl.arange(0, DEEP)
        used = places < count
        units = tl.load(columns + at * width + places, mask=used, other=0).to(tl.int64)
        change_at = deltas + (at * width + places[None, :]) * block + within[:, None]
        change = tl.load(change_at, mask=row_mask[:, None] & used[None, :], other=0.0)
        w_at = w2 + out[None, :] * w2_row + units[:, None] * w2_column
        w = tl.load(w_at, mask=used[:, None] & out_mask[None, :], other=0.0)
        if WIDE:
            change, w = change.to(tl.float32), w.to(tl.float32)
        total += tl.dot(change, w, input_precision=PRECISION)
    room = added + (at * block + within[:, None]) * outputs + out[None, :]
    tl.store(room, total.to(added.dtype.element_ty), mask=row_mask[:, None] & out_mask[None, :])


def mlp_delta(
    tokens: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_up: Tensor | None,
    b_up: Tensor | None,
    w2: Tensor,
    activations: Tensor,
    columns: Tensor,
    counts: Tensor | None,
    activation: str,
) -> Tensor:
    """``tokens`` ``[B, R, block, C]``, ``columns`` ``[B, R, K]`` int32; returns ``[B, R, block, O]``."""
    batch, rows, block, channels = tokens.shape
    hidden, outputs, width = w1.shape[0], w2.shape[0], columns.shape[-1]
    tokens, columns = tokens.contiguous(), columns.contiguous()
    w1 = w1 if w1.stride(1) == 1 else w1.contiguous()
    w_up = w_up if w_up is None or w_up.stride(1) == 1 else w_up.contiguous()
    deltas = tokens.new_empty(batch, rows, width, block)
    added = tokens.new_empty(batch, rows, block, outputs)
    given = columns if counts is None else counts.contiguous()
    parts = triton.cdiv(block, TOKENS)
    _units_kernel[(batch * rows, triton.cdiv(width, UNITS), parts)](
        tokens, w1, w1 if b1 is None else b1, w1 if w_up is None else w_up, w1 if b_up is None else b_up,
        columns, given, activations, deltas,
        channels, hidden, width, w1.stride(0), 0 if w_up is None else w_up.stride(0),
        block=block, UNITS=UNITS, TOKENS=TOKENS, DEEP=DEEP, ACTIVATION=ACTIVATIONS[activation],
        GATED=w_up is not None, BIASED=b1 is not None, UP_BIASED=b_up is not None, COUNTED=counts is not None,
        **multiplied(tokens),
    )  # fmt: skip
    _outputs_kernel[(batch * rows, triton.cdiv(outputs, UNITS), parts)](
        deltas, w2, columns, given, added,
        outputs, width, w2.stride(0), w2.stride(1),
        block=block, TOKENS=TOKENS, OUTPUTS=UNITS, DEEP=DEEP, COUNTED=counts is not None, **multiplied(tokens),
    )  # fmt: skip
    return added
