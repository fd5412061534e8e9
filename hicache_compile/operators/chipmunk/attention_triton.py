"""Column-sparse attention on GPUs, in Triton: see ``attention`` for the definitions.

Supports head dimensions up to 256 and any number of tokens; tuned for 64 and 128 in float16 and bfloat16. Products are
accumulated in float32; scores are in units of log 2.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hicache_compile.operators.partial_attention import wide

LOG2_E = math.log2(math.e)
TILE = 64  # rows and columns of a tile


@triton.jit
def _columns_kernel(
    query, key, value, columns, counts, out, lse,
    heads, tokens, width, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    o_batch, o_head, o_row,
    group: tl.constexpr, dim: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    COUNTED: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of ``ROWS`` queries of one group: attention to the keys of the group, ``KEYS`` at a time."""
    tiles: tl.constexpr = (group + ROWS - 1) // ROWS
    number, at = tl.program_id(0), tl.program_id(1)
    batch, head = at // heads, at % heads
    part, tile = number // tiles, number % tiles
    parts = tl.num_programs(0) // tiles
    within = tile * ROWS + tl.arange(0, ROWS)
    rows = part * group + within
    row_mask = (within < group) & (rows < tokens)
    dims = tl.arange(0, DIM)
    dim_mask = dims < dim
    q_at = query + batch * q_batch + head * q_head + rows[:, None] * q_row + dims[None, :]
    q = tl.load(q_at, mask=row_mask[:, None] & dim_mask[None, :], other=0.0)
    if WIDE:
        q = q.to(tl.float32)
    own = columns + (at * parts + part).to(tl.int64) * width
    count = tl.load(counts + at * parts + part).to(tl.int32) if COUNTED else width
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, count, KEYS):
        places = start + tl.arange(0, KEYS)
        used = places < count
        picked = tl.load(own + places, mask=used, other=0).to(tl.int64)
        k_at = key + batch * k_batch + head * k_head + picked[None, :] * k_row + dims[:, None]
        k = tl.load(k_at, mask=used[None, :] & dim_mask[:, None], other=0.0)
        if WIDE:
            k = k.to(tl.float32)
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        scores = tl.where(used[None, :], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        v_at = value + batch * v_batch + head * v_head + picked[:, None] * v_row + dims[None, :]
        v = tl.load(v_at, mask=used[:, None] & dim_mask[None, :], other=0.0)
        if WIDE:
            v = v.to(tl.float32)
        mixed = mixed * shrink[:, None] + tl.dot(shares.to(v.dtype), v, input_precision=PRECISION)
        total = total * shrink + tl.sum(shares, 1)
        highest = higher
    o_at = out + batch * o_batch + head * o_head + rows[:, None] * o_row + dims[None, :]
    result = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(o_at, result, mask=row_mask[:, None] & dim_mask[None, :])
    tl.store(lse + at * tokens + rows, (highest + tl.log2(total)) * 0.6931471805599453, mask=row_mask)


@triton.jit
def _scores_kernel(
    query, key, lse, scores,
    heads, tokens, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    group: tl.constexpr, dim: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of ``KEYS`` keys: their attention from the queries of one group."""
    part, tile, at = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = at // heads, at % heads
    parts = tl.num_programs(0)
    dims = tl.arange(0, DIM)
    dim_mask = dims < dim
    keys = tile * KEYS + tl.arange(0, KEYS)
    key_mask = keys < tokens
    k_at = key + batch * k_batch + head * k_head + keys[None, :] * k_row + dims[:, None]
    k = tl.load(k_at, mask=key_mask[None, :] & dim_mask[:, None], other=0.0)
    if WIDE:
        k = k.to(tl.float32)
    found = tl.zeros([KEYS], tl.float32)
    for start in range(0, group, ROWS):
        within = start + tl.arange(0, ROWS)
        rows = part * group + within
        row_mask = (within < group) & (rows < tokens)
        q_at = query + batch * q_batch + head * q_head + rows[:, None] * q_row + dims[None, :]
        q = tl.load(q_at, mask=row_mask[:, None] & dim_mask[None, :], other=0.0)
        if WIDE:
            q = q.to(tl.float32)
        denominators = tl.load(lse + at * tokens + rows, mask=row_mask, other=0.0).to(tl.float32)
        logits = tl.dot(q, k, input_precision=PRECISION) * scale - denominators[:, None] * 1.4426950408889634
        found += tl.sum(tl.where(row_mask[:, None], tl.exp2(logits), 0.0), 0)
    tl.store(scores + (at * parts + part).to(tl.int64) * tokens + keys, found, mask=key_mask)


def attention_columns(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, counts: Tensor | None, group: int, scale: float
) -> tuple[Tensor, Tensor]:
    """``columns`` ``[B, H, G, K]`` int32, of which the first ``counts`` ``[B, H, G]`` are used, if given."""
    batch, heads, tokens, dim = query.shape
    query, key, value = (given if given.stride(-1) == 1 else given.contiguous() for given in (query, key, value))
    columns = columns.contiguous()
    out = query.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    lse = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    grid = (columns.shape[2] * triton.cdiv(group, TILE), batch * heads)
    _columns_kernel[grid](
        query, key, value, columns, columns if counts is None else counts.contiguous(), out, lse,
        heads, tokens, columns.shape[-1], scale * LOG2_E,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3],
        group=group, dim=dim, DIM=_padded(dim), ROWS=TILE, KEYS=TILE,
        COUNTED=counts is not None, **multiplied(query),
    )  # fmt: skip
    return out, lse.to(wide(query))


def column_scores(query: Tensor, key: Tensor, lse: Tensor, group: int, scale: float) -> Tensor:
    """``lse`` ``[B, H, N]``."""
    batch, heads, tokens, dim = query.shape
    query, key = (given if given.stride(-1) == 1 else given.contiguous() for given in (query, key))
    parts = triton.cdiv(tokens, group)
    scores = query.new_empty(batch, heads, parts, tokens, dtype=torch.float32)
    _scores_kernel[(parts, triton.cdiv(tokens, TILE), batch * heads)](
        query, key, lse.contiguous(), scores,
        heads, tokens, scale * LOG2_E,
        *query.stride()[:3], *key.stride()[:3],
        group=group, dim=dim, DIM=_padded(dim), ROWS=TILE, KEYS=TILE, **multiplied(query),
    )  # fmt: skip
    return scores.to(lse.dtype)


def _padded(dim: int) -> int:
    """The tile size for ``dim``: a power of 2, and at least 16, which a product requires."""
    return max(16, triton.next_power_of_2(dim))


def multiplied(like: Tensor) -> dict[str, Any]:
    """Matrix product settings for a kernel: float32 is not rounded to TF32; under Triton's interpreter, which cannot
    multiply bfloat16, bfloat16 is multiplied as float32.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return {
        "PRECISION": "ieee" if like.dtype == torch.float32 else "tf32",
        "WIDE": interpreted and like.dtype == torch.bfloat16,
    }
