"""Partial attention: an output and the log-sum-exp of its scores, from which attention over more keys is composed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

State = tuple[Tensor, Tensor]  # out [B, H, S, D] and lse [B, H, S], float32 or wider


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> State:
    """Attention of ``query`` ``[B, H, S, D]`` to ``key`` and ``value`` ``[B, H, T, D]``, with the log-sum-exp."""
    if query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    elif query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
    else:
        scores = torch.matmul(query, key.transpose(-1, -2)).to(wide(query)) * scale
        lse = scores.logsumexp(-1)
        out = torch.matmul((scores - lse.unsqueeze(-1)).exp().to(value.dtype), value)
    return out.to(wide(query)), lse.to(wide(query))


def compose(one: State, other: State) -> State:
    """Attention over the keys of both, exactly: ``(e^l1 O1 + e^l2 O2) / (e^l1 + e^l2)`` and ``log(e^l1 + e^l2)``."""
    (out, lse), (other_out, other_lse) = one, other
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return out - share * (out - other_out), lse - logsigmoid(lse - other_lse)


def wide(like: Tensor) -> torch.dtype:
    """What states are kept in."""
    return torch.promote_types(like.dtype, torch.float32)
