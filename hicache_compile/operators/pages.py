"""The functions of a program whose rows are of several runs: rings and memory are read and written by page.

A pool ``[P, *S]`` holds ``P`` pages; a page ``[*S]`` is what one row keeps, with 1 in place of its batch dimension.
``rows`` ``[B]`` int64 are the pages of a batch. ``batch`` is the batch dimension of the value that a page is of;
``None``: it has none, and what is written or read has the rows in front.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hicache_compile.operators.anchors import QUANTISED, is_number
from hicache_compile.operators.parts import Parts, joined


def read(pool: Tensor, rows: Tensor, batch: int | None) -> Tensor:
    """What the pages ``rows`` hold, as one value with ``B`` at ``batch``."""
    bits = _as_bits(pool)
    return _as_value(bits.index_select(0, rows).view(pool.dtype), batch)


def write(pool: Tensor, rows: Tensor, value: Tensor, batch: int | None) -> None:
    """Write ``value`` into the pages ``rows``, in place; a value without rows goes into each."""
    pages = _as_pages(value.detach(), batch).to(pool.dtype).expand(rows.shape[0], *pool.shape[1:])
    pool.index_put_((rows,), pages)


def forecast_rows(
    pool: Tensor,
    rows: Tensor,
    weights: Tensor,
    batch: int | None,
    dtype: torch.dtype | None = None,
    parts: Parts | None = None,
) -> Tensor:
    """``forecast`` of rings ``[P, K, *S]`` with weights ``[B, K]`` (of ``parts``: ``[B, parts, K]``): gathered and
    weighed in one kernel."""
    if parts is not None:
        whole = torch.promote_types(weights.dtype, torch.float32)
        pieces = [forecast_rows(pool, rows, row, batch, whole) for row in weights.unbind(1)]
        return joined(pieces, parts).to(dtype or pool.dtype)
    quantised = pool.dtype in QUANTISED
    wide = torch.float32 if quantised else torch.promote_types(pool.dtype, torch.float32)
    total = None
    for k in range(pool.shape[1]):
        anchor = read(pool[:, k], rows, batch).to(wide)
        term = anchor * _along(weights[:, k], batch, anchor.dim())
        total = term if total is None else total + term
    assert total is not None
    return total.to(dtype or pool.dtype)


def remember_rows(pool: Tensor, rows: Tensor, position: Tensor, value: Tensor, batch: int | None) -> None:
    """``remember`` into rings ``[P, K, *S]``: row ``position`` ``[B]`` of each page."""
    pages = _as_pages(value.detach(), batch).to(pool.dtype)
    good = is_number(pages)
    bits, kept = _as_bits(pool), _as_bits(pages)
    before = bits[rows, (position - 1) % pool.shape[1]]
    bits.index_put_((rows, position), torch.where(good, kept, before))


def scale_of_rows(value: Tensor, dtype: torch.dtype, batch: int) -> Tensor:
    """``scale_of`` by row, ``[B]`` float32."""
    sizes = value.detach().abs().movedim(batch, 0).flatten(1)
    largest = torch.where(is_number(sizes), sizes, -1.0).amax(1).float()
    scale = (largest / QUANTISED[dtype]).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(largest < 0, torch.nan, scale)


def along(scales: Tensor, like: Tensor, batch: int) -> Tensor:
    """``scales`` ``[B]`` as a factor of ``like``, whose rows are at ``batch``."""
    return _along(scales, batch, like.dim())


def _along(rows: Tensor, batch: int | None, dimensions: int) -> Tensor:
    return rows.reshape(-1, *[1] * (dimensions - 1)).movedim(0, batch or 0)


def _as_value(pages: Tensor, batch: int | None) -> Tensor:
    return pages if batch is None else pages.squeeze(batch + 1).movedim(0, batch)


def _as_pages(value: Tensor, batch: int | None) -> Tensor:
    return value if batch is None else value.movedim(batch, 0).unsqueeze(batch + 1)


def _as_bits(values: Tensor) -> Tensor:
    """float8 is copied as bytes: few operators are made for it."""
    return values.view(torch.int8) if values.dtype is torch.float8_e4m3fn else values
