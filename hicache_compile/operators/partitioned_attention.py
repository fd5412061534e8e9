"""Attention to partitions of the keys, which computes or reuses each group as the plan of the step says.

One op is a whole attention, and the plan is data (``plan``, on the host), so all plans use the same program.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

from hicache_compile.key_partitions import Code, KeyPartitions
from hicache_compile.operators.partial_attention import MASKED, State, attend, bias_of, compose, wide

Keys = tuple[Tensor, Tensor, Tensor | None]  # keys and values, and the mask of them


@torch.library.custom_op(
    "hicache::partitioned_attention", mutates_args=("out", "lse", "reference", "anchor", "weights", "measured")
)
def partitioned_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    plan: Tensor,
    out: Tensor,
    lse: Tensor,
    reference: Tensor,
    anchor: Tensor,
    weights: Tensor,
    measured: Tensor,
    layer: int,
    scale: float,
    groups: int,
    partitions: int,
    distributed: bool,
) -> Tensor:
    """Attention of ``query`` ``[B, H, S, D]`` to ``key`` and ``value``, group by group.

    Args:
        key, value: ``[B, H, S, D]``, or with fewer heads, which those of ``query`` share.
        mask: of ``scaled_dot_product_attention``. If distributed, of this rank's keys: ``[B or 1, H or 1, 1, S]``.
        plan: a ``Code`` for each group of each attention, ``[L, G]`` int64, on the CPU.
        out, lse: the state of each group when it was last computed, ``[G, B, H, S, D]`` and ``[G, B, H, S]``.
        reference: the local output, averaged over D, at that time ``[G, B, H, S]``.
        anchor: the same at the last anchor, ``[B, H, S]``.
        weights: of each group at the last anchor, by the softmax of the norms of their ``lse``, ``[R, G]``.
        measured: row ``layer`` is written: error of each group's reuse, and drift since the anchor ``[L, G + 1]``.
    """
    split = KeyPartitions(groups, partitions, distributed)
    codes = plan[layer].tolist()
    result = torch.empty_like(query, memory_format=torch.contiguous_format)
    measured[layer].zero_()
    cuts = [slice(None)] if distributed else _cuts(query.shape[-2], partitions)
    ranks = [torch.distributed.get_rank()] if distributed else range(partitions)
    for view, (rank, rows) in enumerate(zip(ranks, cuts, strict=True)):
        mine = query[..., rows, :]
        local = _attend(mine, _own(key, value, mask, rows, rows), scale)
        current = local[0].mean(-1)
        total = local
        for group in range(groups):
            if not split.members(rank, group):
                continue
            if codes[group] == Code.REUSED:
                state = out[group, ..., rows, :].to(mine.device), lse[group, ..., rows].to(mine.device)
            else:
                state = _attend(mine, _keys(key, value, mask, split, rank, group, cuts), scale)
                if codes[group] != Code.FORCED:
                    out[group, ..., rows, :], lse[group, ..., rows] = state
                    reference[group, ..., rows] = current
            total = compose(total, state)
        result[..., rows, :] = total[0]
        if Code.FORCED not in codes:
            if Code.ANCHOR in codes:
                anchor[..., rows] = current
                states = [lse[group, ..., rows].to(mine.device) for group in range(groups)]
                weights[view] = _weights(split, states, local[1])
            then = [reference[group, ..., rows].to(mine.device) for group in range(groups)]
            drift = torch.stack([(current - before).norm() for before in then])
            at_anchor = anchor[..., rows].to(mine.device)
            moved = (current - at_anchor).norm() / (at_anchor.norm() + 1e-8)
            measured[layer] += torch.cat([weights[view].to(mine.device) * drift, moved[None]]) / len(cuts)
    return result


@partitioned_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@register_flop_formula(torch.ops.hicache.partitioned_attention)
def _flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: object, **kwargs: object) -> int:
    """FLOPs with every group computed. If distributed, a rank's queries attend to the keys of all ranks."""
    *_, partitions, distributed = args
    whole = int(sdpa_flop_count(query, *([*given[:1], query[1], *given[2:]] for given in (key, value))))
    return whole * int(partitions) if distributed else whole  # type: ignore[call-overload]  # an int


def new_states(query: Tensor, split: KeyPartitions) -> dict[str, Tensor]:
    """The memory of one attention at the start of a run: see ``partitioned_attention``."""
    rows = query.shape[:-1]
    kept = wide(query)
    ranks = 1 if split.distributed else split.partitions

    def nothing(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=kept, device=query.device)

    return {
        "out": nothing(split.groups, *query.shape),
        "lse": nothing(split.groups, *rows),
        "reference": nothing(split.groups, *rows),
        "anchor": nothing(*rows),
        "weights": nothing(ranks, split.groups),
    }


def _cuts(length: int, partitions: int) -> list[slice]:
    """Slices of ``length`` rows into ``partitions`` parts, the longer ones first."""
    size, longer = divmod(length, partitions)
    ends = [size * part + min(part, longer) for part in range(partitions + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _keys(
    key: Tensor, value: Tensor, mask: Tensor | None, split: KeyPartitions, rank: int, group: int, cuts: Sequence[slice]
) -> Keys:
    """The keys of ``group`` as seen from ``rank``, received from other ranks if distributed."""
    if split.distributed:
        found = [_exchange((key, value, mask), split, rank, *away) for away in split.displacements(group)]
    else:
        found = [_own(key, value, mask, cuts[rank], cuts[owner]) for owner in split.members(rank, group)]
    keys, values, masks = zip(*found, strict=True)
    return torch.cat(keys, dim=-2), torch.cat(values, dim=-2), None if mask is None else torch.cat(masks, dim=-1)


def _own(key: Tensor, value: Tensor, mask: Tensor | None, rows: slice, owned: slice) -> Keys:
    """The keys ``owned`` of this rank, and the mask of the queries ``rows``."""
    if mask is not None:
        mask = mask.expand(*mask.shape[:-1], key.shape[-2])
        mask = mask[..., rows if mask.dim() > 1 and mask.shape[-2] > 1 else slice(None), owned]
    return key[..., owned, :], value[..., owned, :], mask


def _attend(query: Tensor, keys: Keys, scale: float) -> State:
    key, value, mask = keys
    bias = None if mask is None else bias_of(mask[(None,) * (4 - mask.dim())]).to(query.dtype)
    return attend(query, key, value, scale, bias)


def _exchange(mine: Keys, split: KeyPartitions, rank: int, o: int, i: int) -> Keys:
    """Send what is of one's own keys to where they are displaced by ``(o, i)``, and receive what is from here.

    A permutation of the ranks' own keys: skipping one exchange does not affect the others.
    """
    dist = torch.distributed
    sent = [tensor.contiguous() for tensor in mine if tensor is not None]
    received = [torch.empty_like(tensor) for tensor in sent]
    source, target = split.source(rank, o, i), split.target(rank, o, i)
    operations = [dist.P2POp(dist.isend, tensor, target) for tensor in sent]
    operations += [dist.P2POp(dist.irecv, tensor, source) for tensor in received]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    key, value, *mask = received
    return key, value, mask[0] if mask else None


def _weights(split: KeyPartitions, states: Sequence[Tensor], local: Tensor) -> Tensor:
    """How much each group counts: the softmax of the norms of the log-sum-exps, the local one among them. Where all
    its keys are masked a group adds nothing."""
    decided = split.decided
    seen = [torch.where(state > MASKED / 2, state, 0) for state in (*(states[group] for group in decided), local)]
    scores = torch.stack([state.norm() for state in seen])
    spread = scores.std(correction=0).clamp(min=1e-6)
    shares = ((scores - scores.max()) / spread).softmax(0)
    weights = local.new_zeros(split.groups)
    weights[list(decided)] = shares[:-1]
    return weights
