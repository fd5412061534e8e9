"""Attention to a subset of the keys with its log-sum-exp, and the composition of two such states.

Used by DiTango (groups of keys computed separately) and by Chipmunk (selected and unselected keys).
"""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -1e4  # what a score gets where it is masked: nothing, in every dtype, and no infinity to subtract

State = tuple[Tensor, Tensor]  # out [B, H, S, D] and lse [B, H, S], float32 or wider


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None) -> State:
    """Attention of ``query`` ``[B, H, S, D]`` to ``key`` and ``value`` ``[B, H, T, D]``, with the log-sum-exp.

    Keys and values may have fewer heads, each of which several of the queries share.
    ``bias`` is added to the scores, ``[B, H, S, T]`` or broadcastable to it.
    """
    key, value = (shared_by_heads(given, query.shape[1]) for given in (key, value))
    flash = query.is_cuda and bias is None and query.dtype in (torch.float16, torch.bfloat16)
    if query.device.type == "cpu":
        query, key, value = (given if given.stride(-1) == 1 else given.contiguous() for given in (query, key, value))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(query, key, value, attn_mask=bias, scale=scale)
    elif flash:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
    else:
        scores = torch.matmul(query, key.transpose(-1, -2)).to(wide(query)) * scale
        scores = scores if bias is None else scores + bias
        lse = scores.logsumexp(-1)
        out = torch.matmul((scores - lse.unsqueeze(-1)).exp().to(value.dtype), value)
    return out.to(wide(query)), lse.to(wide(query))


def shared_by_heads(given: Tensor, heads: int) -> Tensor:
    """Keys or values ``[B, H, T, D]`` for ``heads`` heads of queries, as ``enable_gqa`` shares them."""
    return given if given.shape[1] == heads else given.repeat_interleave(heads // given.shape[1], dim=1)


def bias_of(mask: Tensor) -> Tensor:
    """A mask of scores (true: attended to; or numbers) as what is added to them, finite."""
    if mask.dtype != torch.bool:
        return mask.clamp(min=MASKED)
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, MASKED)


def compose(one: State, other: State) -> State:
    """Exact attention over the keys of both: ``(e^l1 O1 + e^l2 O2) / (e^l1 + e^l2)`` and ``log(e^l1 + e^l2)``."""
    (out, lse), (other_out, other_lse) = one, other
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return out - share * (out - other_out), torch.logaddexp(lse, other_lse)


def without(whole: State, part: State) -> State:
    """The inverse of ``compose``: attention over the keys of ``whole`` that are not in ``part``.

    Where ``part`` has all the mass up to rounding, the result is empty: zero, with a log-sum-exp of minus infinity.
    """
    (out, lse), (part_out, part_lse) = whole, part
    rest = -torch.expm1((part_lse - lse).clamp(max=0))  # the fraction of the mass that is not in `part`
    some = rest > 4 * torch.finfo(rest.dtype).eps
    safe = torch.where(some, rest, 1).unsqueeze(-1)
    left = torch.where(some.unsqueeze(-1), part_out + (out - part_out) / safe, 0)
    return left, torch.where(some, lse + safe.squeeze(-1).log(), -torch.inf)


def wide(like: Tensor) -> torch.dtype:
    """The dtype of states: float32 or wider."""
    return torch.promote_types(like.dtype, torch.float32)
