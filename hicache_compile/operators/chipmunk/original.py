"""The attention kernel of the original CUDA package, if it is installed and requested (``provider="chipmunk"``).

Requires a Hopper GPU, bfloat16, heads of 128, groups of 192 queries and sets of a multiple of 112 keys. It returns no
log-sum-exp, so the softmax is normalised over the selected keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hicache_compile.errors import HiCacheError

GROUP, MULTIPLE, DIM = 192, 112, 128


def attention_columns(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, counts: Tensor | None, group: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention to ``columns`` ``[B, H, G, K]`` int32, of which the first ``counts`` ``[B, H, G]`` are used, if given.

    Raises:
        HiCacheError: the kernel does not support the inputs.
    """
    _check(query, group, scale)
    batch, heads, tokens, _ = query.shape
    # The kernel expects one entry per token in a row and ignores entries beyond the count.
    indices = torch.nn.functional.pad(columns, (0, tokens - columns.shape[-1])).contiguous()
    if counts is None:
        counts = torch.full(columns.shape[:-1], columns.shape[-1], device=columns.device)
    counts = counts.to(torch.int32).contiguous()
    data = [given.contiguous() for given in (query, key, value)]
    out = torch.zeros_like(data[0])
    for sample in range(batch):  # the kernel supports batch size 1 only
        rows = slice(sample, sample + 1)
        own = (given[rows] for given in data)
        torch.ops.chipmunk.csp_attn(*own, out[rows], indices[rows], counts[rows], 1)
    return out, query.new_zeros(batch, heads, tokens, dtype=torch.float32)


def _check(query: Tensor, group: int, scale: float) -> None:
    import chipmunk  # noqa: F401  # registers its operators

    found = (query.device.type, str(query.dtype).removeprefix("torch."), query.shape[-1], group)
    needed = ("cuda", "bfloat16", DIM, GROUP)
    if found != needed or abs(scale * DIM**0.5 - 1) > 1e-6:
        raise HiCacheError(
            f"Chipmunk.provider = 'chipmunk': must be for {needed} (device, dtype, head dimension, group) and the "
            f"usual scale; this is {found}"
        )
