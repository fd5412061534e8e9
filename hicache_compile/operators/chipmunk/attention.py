"""Column-sparse attention: the operators and their portable implementation.

A group of consecutive queries attends to one set of keys. All operators are pure functions. Chipmunk
(arXiv 2506.03275); the GPU kernels are in ``attention_triton``.

Shapes: query, key, value ``[B, H, N, D]`` in float16, bfloat16, float32 or float64; ``G = ceil(N / group)`` groups of
queries; a set of columns ``[B, H, G, ...]`` as in ``columns``. ``bias`` is added to the scores of every query,
``[B or 1, H or 1, 1, N]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

from hicache_compile.operators.chipmunk import columns as sets
from hicache_compile.operators.chipmunk.providers import takes_triton
from hicache_compile.operators.partial_attention import State, attend, wide

CHUNK = 1 << 25  # maximum number of gathered elements at a time


@torch.library.custom_op("hicache::attention_dense", mutates_args=())
def attention_dense(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention to all keys: ``[B, H, N, D]``, and its log-sum-exp ``[B, H, N]`` in float32 or wider."""
    out, lse = attend(query, key, value, scale, None if bias is None else bias.to(query.dtype))
    return out.to(query.dtype).contiguous(), lse.clone(memory_format=torch.contiguous_format)


@attention_dense.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return _like(query), query.new_empty(query.shape[:-1], dtype=wide(query))


@torch.library.custom_op("hicache::column_scores", mutates_args=())
def column_scores(
    query: Tensor, key: Tensor, lse: Tensor, bias: Tensor | None, group: int, scale: float, provider: str
) -> Tensor:
    """The attention of each group of queries to each key, ``[B, H, G, N]``, float32 or wider.

    These are the column sums of the softmax, whose denominators are in ``lse`` ``[B, H, N]``.
    """
    if bias is None and takes_triton(provider, query):
        from hicache_compile.operators.chipmunk import attention_triton

        return attention_triton.column_scores(query, key, lse, group, scale)
    batch, heads, count, _ = query.shape
    scores = lse.new_empty(batch, heads, groups_of(count, group), count)
    for number, rows in enumerate(_rows(count, group)):
        part = torch.matmul(query[..., rows, :], key.transpose(-1, -2)).to(lse.dtype).mul_(scale)
        part = part if bias is None else part + bias
        scores[..., number, :] = part.sub_(lse[..., rows].unsqueeze(-1)).exp_().sum(-2)
    return scores


@column_scores.register_fake
def _(query: Tensor, key: Tensor, lse: Tensor, bias: Tensor | None, group: int, scale: float, provider: str) -> Tensor:
    batch, heads, count, _ = query.shape
    return lse.new_empty(batch, heads, groups_of(count, group), count)


@torch.library.custom_op("hicache::select_columns", mutates_args=())
def select_columns(
    scores: Tensor,
    always: Tensor | None,
    fraction: float,
    multiple: int,
    coverage: float | None,
    random: float,
    seed: int,
) -> Tensor:
    """The keys each group of queries attends to: those with the largest ``scores`` ``[B, H, G, N]``.

    Args:
        always: keys that are always included, ``[G, N]`` bool.
        fraction: of the keys to select, rounded to a multiple of ``multiple``.
        coverage: replaces ``fraction``: select the fewest keys with this fraction of the attention.
        random: fraction of the other keys added at random; ``seed``: of that selection.

    Returns:
        The set as bits or indices, see ``columns``.
    """
    if coverage is not None:
        chosen = sets.covering(scores, coverage, multiple)
    else:
        chosen = sets.largest(scores, int(sets.width_of(scores.shape[-1], fraction, multiple)))
    if random:
        chosen |= sets.some(scores.shape, random, seed, scores.device)
    if always is not None:
        chosen |= always
    return sets.kept(chosen, _packed(fraction, always, coverage, random))


@select_columns.register_fake
def _(
    scores: Tensor,
    always: Tensor | None,
    fraction: float,
    multiple: int,
    coverage: float | None,
    random: float,
    seed: int,
) -> Tensor:
    *rows, count = scores.shape
    if _packed(fraction, always, coverage, random):
        return scores.new_empty((*rows, sets.packed_width(count)), dtype=torch.uint8)
    return scores.new_empty((*rows, sets.width_of(count, fraction, multiple)), dtype=torch.int32)


@torch.library.custom_op("hicache::attention_columns", mutates_args=())
def attention_columns(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    group: int,
    scale: float,
    fraction: float,
    provider: str,
) -> tuple[Tensor, Tensor]:
    """Attention of each group of queries to its own set of keys: ``[B, H, N, D]`` and the log-sum-exp ``[B, H, N]``.

    Normalised over the set. ``fraction``: of the keys in a set, for counting FLOPs.
    """
    found, counts = sets.listed(columns, key.shape[-2])
    if bias is None and provider == "chipmunk":
        from hicache_compile.operators.chipmunk import original

        return original.attention_columns(query, key, value, found, counts, group, scale)
    if bias is None and takes_triton(provider, query):
        from hicache_compile.operators.chipmunk import attention_triton

        return attention_triton.attention_columns(query, key, value, found, counts, group, scale)
    count = query.shape[-2]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:-1], dtype=wide(query))
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            at = batch, head
            own = None if bias is None else bias[batch % bias.shape[0], head % bias.shape[1], 0]
            state = _of_head(
                query[at], key[at], value[at], found[at], None if counts is None else counts[at], own, group, scale
            )
            out[at], lse[at] = state[0][:count], state[1][:count]
    return out, lse


def _of_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    counts: Tensor | None,
    bias: Tensor | None,
    group: int,
    scale: float,
) -> State:
    """One head: ``[N, D]`` each, ``columns`` ``[G, K]``; returns the rows padded to a multiple of ``group``."""
    padded = torch.nn.functional.pad(query, (0, 0, 0, -query.shape[0] % group)).view(-1, group, query.shape[1])
    out = query.new_empty(padded.shape, dtype=wide(query))
    lse = query.new_empty(padded.shape[:-1], dtype=wide(query))
    for rows, width in _alike(columns, counts, key.shape[1]):
        picked = columns[rows, :width].reshape(-1)
        keys, values = (given.index_select(0, picked).view(-1, width, given.shape[1]) for given in (key, value))
        added = None if bias is None else bias[picked.long()].view(-1, 1, 1, width).to(query.dtype)
        # As [G, 1, group, D]: every group is a separate sequence.
        state = attend(padded[rows].unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), scale, added)
        out[rows], lse[rows] = state[0].squeeze(1), state[1].squeeze(1)
    return out.flatten(0, 1), lse.flatten(0, 1)


def _alike(columns: Tensor, counts: Tensor | None, width: int) -> list[tuple[Any, int]]:
    """Batches of groups with the same number of keys, and that number; without ``counts`` at most ``CHUNK`` elements
    each."""
    if counts is None:
        most = max(1, CHUNK // max(1, columns.shape[1] * width))
        starts = range(0, columns.shape[0], most)
        return [(slice(start, start + most), columns.shape[1]) for start in starts]
    return [((counts == count).nonzero()[:, 0], int(count)) for count in counts.unique()]


@attention_columns.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    group: int,
    scale: float,
    fraction: float,
    provider: str,
) -> tuple[Tensor, Tensor]:
    return _like(query), query.new_empty(query.shape[:-1], dtype=wide(query))


def groups_of(count: Any, group: int) -> Any:
    """The number of groups of ``count`` queries."""
    return (count + group - 1) // group


def _rows(count: int, group: int) -> list[slice]:
    return [slice(start, min(start + group, count)) for start in range(0, count, group)]


def _packed(fraction: float, always: Tensor | None, coverage: float | None, random: float) -> bool:
    """Whether the set is stored as bits: indices need the same number of columns in every row."""
    return always is not None or coverage is not None or bool(random) or sets.is_packed(fraction)


def _like(query: Tensor) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


Sizes = Sequence[int]


@register_flop_formula(torch.ops.hicache.attention_dense)
def _dense_flops(query: Sizes, key: Sizes, value: Sizes, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


@register_flop_formula(torch.ops.hicache.column_scores)
def _score_flops(query: Sizes, key: Sizes, *_: object, **__: object) -> int:
    batch, heads, count, width = query
    return 2 * batch * heads * count * key[-2] * width


@register_flop_formula(torch.ops.hicache.attention_columns)
def _column_flops(query: Sizes, key: Sizes, value: Sizes, columns: Sizes, *others: Any, **_: object) -> int:
    fraction = others[-2]
    return round(sdpa_flop_count(query, key, value) * float(fraction))
