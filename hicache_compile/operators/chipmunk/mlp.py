"""Sparse deltas of an MLP: the operators and their portable implementation.

``out = act(x W1' + b1) W2'``, or gated ``(act(x W1' + b1) * (x Wu' + bu)) W2'``. Between dense steps, each block of
tokens recomputes the hidden units whose inputs changed most, and adds the difference to the output. Chipmunk (arXiv
2506.03275).

Shapes: ``x`` ``[B, N, C]``, ``w1`` and ``w_up`` ``[F, C]``, ``w2`` ``[O, F]``; ``R = ceil(N / block)`` blocks of
tokens. ``activations`` ``[B, R, F, block]`` are the hidden units, contiguous per unit; ``means`` ``[B, R, F]`` (gated:
``[B, R, 2 F]``) are the inputs of the activation, averaged over each block. The caller adds a bias of ``w2``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from hicache_compile.operators.chipmunk import columns as sets
from hicache_compile.operators.chipmunk import mlp_flops
from hicache_compile.operators.chipmunk.attention import groups_of
from hicache_compile.operators.chipmunk.providers import takes_triton

TURNED = 8  # number of blocks above which w2 is transposed
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
}


@torch.library.custom_op("hicache::mlp_dense", mutates_args=())
def mlp_dense(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_up: Tensor | None,
    b_up: Tensor | None,
    w2: Tensor,
    activation: str,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The dense MLP: ``[B, N, O]``, and the initial ``activations`` and ``means``."""
    inner = functional.linear(x, w1, b1)
    hidden = ACTIVATIONS[activation](inner)
    if w_up is not None:
        up = functional.linear(x, w_up, b_up)
        hidden = hidden * up
        inner = torch.cat([inner, up], dim=-1)
    activations = _blocks(hidden, block).transpose(-1, -2).contiguous()
    return functional.linear(hidden, w2), activations, _means(inner, block)


@mlp_dense.register_fake
def _(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_up: Tensor | None,
    b_up: Tensor | None,
    w2: Tensor,
    activation: str,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, count, _ = x.shape
    blocks = groups_of(count, block)
    return (
        x.new_empty(batch, count, w2.shape[0]),
        x.new_empty(batch, blocks, w1.shape[0], block),
        x.new_empty(batch, blocks, w1.shape[0] * (1 if w_up is None else 2)),
    )


@torch.library.custom_op("hicache::mlp_select", mutates_args=())
def mlp_select(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_up: Tensor | None,
    b_up: Tensor | None,
    means: Tensor,
    fraction: float,
    multiple: int,
    random: float,
    seed: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    """The hidden units to recompute, and ``means`` with their entries updated.

    Units are selected by the change of their input averaged over a block; the average is exact, since the input is an
    affine function of ``x``. The entries of other units in ``means`` stay, so their change accumulates until they are
    selected.

    Args:
        fraction: of the units to select, rounded to a multiple of ``multiple``.
        random: fraction of the other units added at random; ``seed``: of that selection.

    Returns:
        The set as bits or indices, see ``columns``, ``[B, R, ...]``; and ``means``.
    """
    averaged = _means(x, block)
    now = functional.linear(averaged, w1, b1)
    if w_up is not None:
        now = torch.cat([now, functional.linear(averaged, w_up, b_up)], dim=-1)
    moved = (now.float() - means.float()).abs()
    if w_up is not None:
        moved = moved.unflatten(-1, (2, -1)).sum(-2)
    chosen = sets.largest(moved, int(sets.width_of(w1.shape[0], fraction, multiple)))
    if random:
        chosen |= sets.some(chosen.shape, random, seed, chosen.device)
    known = chosen if w_up is None else torch.cat([chosen, chosen], dim=-1)
    packed = bool(random) or sets.is_packed(fraction)
    return sets.kept(chosen, packed), torch.where(known, now, means)


@mlp_select.register_fake
def _(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_up: Tensor | None,
    b_up: Tensor | None,
    means: Tensor,
    fraction: float,
    multiple: int,
    random: float,
    seed: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    units = w1.shape[0]
    rows = means.shape[:-1]
    if random or sets.is_packed(fraction):
        chosen = means.new_empty((*rows, sets.packed_width(units)), dtype=torch.uint8)
    else:
        chosen = means.new_empty((*rows, sets.width_of(units, fraction, multiple)), dtype=torch.int32)
    return chosen, torch.empty_like(means)


@torch.library.custom_op("hicache::mlp_delta", mutates_args=("activations",))
def mlp_delta(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_up: Tensor | None,
    b_up: Tensor | None,
    w2: Tensor,
    activations: Tensor,
    columns: Tensor,
    activation: str,
    fraction: float,
    provider: str,
) -> Tensor:
    """The change of the output from recomputing the units in ``columns``, ``[B, N, O]``. Updates ``activations`` in
    place.

    ``fraction``: of the units in a set, for counting FLOPs.
    """
    found, counts = sets.listed(columns, w1.shape[0])
    block = activations.shape[-1]
    tokens = _blocks(x, block)
    if takes_triton(provider, x):
        from hicache_compile.operators.chipmunk import mlp_triton

        weights = (w1, b1, w_up, b_up, w2)
        added = mlp_triton.mlp_delta(tokens, *weights, activations, found, counts, activation)
        return added.flatten(1, 2)[:, : x.shape[1]].contiguous()
    added = x.new_empty(*tokens.shape[:-1], w2.shape[0])
    # Gathering rows is faster than gathering columns, which pays for the transposed copy if there are many blocks.
    by_unit = w2.t().contiguous() if tokens.shape[0] * tokens.shape[1] > TURNED else None
    for batch in range(tokens.shape[0]):
        for row in range(tokens.shape[1]):
            width = found.shape[-1] if counts is None else int(counts[batch, row])
            units = found[batch, row, :width]
            own = tokens[batch, row].t()
            now = ACTIVATIONS[activation](_inner(own, w1, b1, units))
            if w_up is not None:
                now = now * _inner(own, w_up, b_up, units)
            before = activations[batch, row].index_select(0, units)
            activations[batch, row].index_copy_(0, units.long(), now)
            out = w2.index_select(1, units).t() if by_unit is None else by_unit.index_select(0, units)
            torch.mm((now - before).t(), out, out=added[batch, row])
    return added.flatten(1, 2)[:, : x.shape[1]].contiguous()


def _inner(tokens: Tensor, weight: Tensor, bias: Tensor | None, units: Tensor) -> Tensor:
    """The inputs of ``units`` for ``tokens`` ``[C, block]``: ``[K, block]``."""
    rows = weight.index_select(0, units)
    return (
        torch.mm(rows, tokens) if bias is None else torch.addmm(bias.index_select(0, units).unsqueeze(1), rows, tokens)
    )


@mlp_delta.register_fake
def _(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w_up: Tensor | None,
    b_up: Tensor | None,
    w2: Tensor,
    activations: Tensor,
    columns: Tensor,
    activation: str,
    fraction: float,
    provider: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], w2.shape[0])


def _blocks(x: Tensor, block: int) -> Tensor:
    """``[B, N, C]`` as ``[B, R, block, C]``, the last block padded with zeros."""
    return functional.pad(x, (0, 0, 0, -x.shape[1] % block)).unflatten(1, (-1, block))


def _means(x: Tensor, block: int) -> Tensor:
    """``[B, N, C]`` averaged over each block of tokens, ``[B, R, C]``; the last block over its actual tokens."""
    count = x.shape[1]
    totals = _blocks(x, block).sum(2, dtype=torch.promote_types(x.dtype, torch.float32))
    sizes = torch.full((totals.shape[1], 1), block, device=x.device)
    sizes[-1] = count - block * (totals.shape[1] - 1)
    return (totals / sizes).to(x.dtype)


register_flop_formula(torch.ops.hicache.mlp_dense)(mlp_flops.dense_flops)
register_flop_formula(torch.ops.hicache.mlp_select)(mlp_flops.select_flops)
register_flop_formula(torch.ops.hicache.mlp_delta)(mlp_flops.delta_flops)
