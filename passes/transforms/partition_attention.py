"""partitioned: every attention over its own tokens becomes one call that attends to partitions of the keys.

before   y = scaled_dot_product_attention(q, k, v)
after    y = partitioned_attention(q, k, v, None, plan, out_0, lse_0, ...)

Requires   a captured graph
Ensures    with every group computed the numbers are those of the captured graph, up to rounding; new inputs ``plan``
           and ``memory:...``; nothing else is changed
Refuses    causal attention, or over fewer tokens than partitions; where keys are on several ranks, attention with a
           mask for each query; cross-attention stays
Raises     HiCacheError where keys are on several ranks and a self-attention is refused, or attends to several streams
"""

from __future__ import annotations

import logging

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.key_partitions import KeyPartitions
from hicache_compile.operators.partitioned_attention import new_states
from hicache_compile.passes.analysis.attentions import (
    arguments_of,
    attentions,
    masks_queries,
    scale_of,
    why_not_its_own,
)
from hicache_compile.passes.analysis.blocks import Run
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_graph, fake_mode_of, reachable_from
from hicache_compile.passes.graph.inputs import MEASURED, Role, StateInput, add_input, memory
from hicache_compile.passes.transforms.fuel import spend
from hicache_compile.passes.work import Work

PARTITIONED = "partitioned_attention"  # how the nodes are called

CROSS = "it attends to keys that are no tokens of a stream, which every rank has"

log = logging.getLogger(__name__)


def partition_attention(work: Work) -> int:
    """Partition the attentions of the working copy; returns how many."""
    partitions = work.layout.partitions
    assert partitions is not None
    if partitions.distributed:
        _check_streams(work.runs)
    found, refused = [], []
    tokens = reachable_from(entry for run in work.runs for block in run.blocks for entry in block.entries)
    for node in attentions(work.module.graph):
        reason = _refusal(node, partitions, tokens)
        if reason is None:
            found.append(node)
        else:
            refused.append(CannotRewrite(node.meta.get("path") or node.name, reason))
    work.refused += refused
    needed = [entry for entry in refused if partitions.distributed and entry.reason != CROSS]
    if needed:
        raise HiCacheError(f"DiTangoSchedule.distributed: must partition every self-attention; {needed[0]}")
    names = [node.meta.get("path") or node.name for node in found]
    found = found[: spend(work, names)]
    work.partitioned = names[: len(found)]
    if not partitions.distributed:
        work.programs[Choice.FULL] = copy_graph(work.module)[0]  # forced steps: nothing is partitioned
    if found:
        _write(work.module, found, partitions, len(work.sparse))
    log.info(
        "partitioned %d attentions into %d groups of %d partitions",
        len(found),
        partitions.groups,
        partitions.partitions,
    )
    return len(found)


def _check_streams(runs: list[Run]) -> None:
    """Raise where a second stream is attended to together with the one that ranks have parts of: every rank has all of
    it, so its keys would arrive once from each."""
    for run in runs:
        streams = [entry for entry in run.blocks[0].entries if ops.is_tensor(entry) and ops.value(entry).dim() == 3]
        if len(streams) > 1:
            raise HiCacheError(
                f"DiTangoSchedule.distributed: {run.blocks[0].name} attends to {len(streams)} streams of tokens at "
                "once (text and picture): must be one; use diffusers' enable_parallelism, with another policy"
            )


def _refusal(node: fx.Node, partitions: KeyPartitions, tokens: set[fx.Node]) -> str | None:
    if arguments_of(node)["key"] not in tokens:
        return CROSS
    reason = why_not_its_own(node)
    if reason is not None:
        return reason
    if partitions.distributed and masks_queries(node):
        return "its mask differs from query to query"
    count = ops.value(arguments_of(node)["query"]).shape[-2]
    if not partitions.distributed and isinstance(count, int) and count < partitions.partitions:
        return f"it has fewer tokens than {partitions.partitions} partitions"
    return None


def _write(module: fx.GraphModule, found: list[fx.Node], partitions: KeyPartitions, first: int) -> None:
    """``first``: the number of the first memory; those below are of sparse MLPs."""
    graph = module.graph
    like = ops.value(arguments_of(found[0])["query"])
    with fake_mode_of(like), torch.no_grad():
        plan = torch.empty(len(found), partitions.groups, dtype=torch.int64)
        measured = torch.empty(len(found), partitions.groups + 1, device=like.device, dtype=torch.float32)
    plan_node = add_input(graph, StateInput(Role.PLAN), plan)
    measured_node = add_input(graph, memory(MEASURED, 0), measured, "measured")
    for layer, node in enumerate(found):
        given = arguments_of(node)
        query = ops.value(given["query"])
        with fake_mode_of(query), torch.no_grad():
            states = new_states(query, partitions)
        kept = [add_input(graph, memory(name, first + layer), made) for name, made in states.items()]
        names = ("query", "key", "value", "attn_mask")
        data = (*map(given.__getitem__, names), plan_node, *kept, measured_node)
        with graph.inserting_before(node):
            call = graph.create_node(
                "call_function",
                torch.ops.hicache.partitioned_attention.default,
                (*data, layer, scale_of(node), partitions.groups, partitions.partitions, partitions.distributed),
                name=f"{PARTITIONED}_{layer}",
            )
        call.meta = {**node.meta, "side_effect": True}
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    graph.lint()
    module.recompile()
