"""marked: what may be sparse in computed steps, on the captured graph, before anything is made from it.

Requires   runs of blocks
Ensures    what may be sparse has ``meta["sparse"]``, its number
Refuses    attention that is causal, over other keys than its own tokens, or with a mask for each query; attention much
           shorter than the longest; in each block, an MLP over fewer tokens than another
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes.analysis.attentions import arguments_of, attentions, masks_queries, why_not_its_own
from hicache_compile.passes.analysis.blocks import Block, Run
from hicache_compile.passes.analysis.mlps import mlp_of
from hicache_compile.passes.graph import ops
from hicache_compile.passes.transforms.fuel import spend
from hicache_compile.passes.transforms.sparse_writer import MARK
from hicache_compile.passes.work import Work

log = logging.getLogger(__name__)

SHORT = 4  # an attention over fewer tokens than a quarter of the longest stays dense


def mark_sparse(work: Work) -> int:
    """Mark what may be sparse; returns how much. Nothing is in the first ``first_dense`` blocks, nor in blocks that a
    step which is forecast runs too."""
    chipmunk = work.layout.sparsity
    assert chipmunk is not None
    graph = work.module.graph
    blocks = [set(block.nodes) for run in work.runs for block in run.blocks]
    found, refused = _attentions(graph) if chipmunk.top_keys is not None else ([], [])
    mlps = _mlps(graph, blocks) if chipmunk.mlp_keys is not None else []
    layers = [nodes for nodes in blocks if any(node in nodes for node in (*found, *mlps))]
    live = [set(block.nodes) for run in work.runs for block in _live(run, max(work.layout.starts), work.layout.last)]
    allowed = {node for nodes in layers[chipmunk.first_dense :] if nodes not in live for node in nodes}
    found, mlps = ([node for node in kind if node in allowed] for kind in (found, mlps))
    marked = [*found, *mlps]
    work.refused += refused
    marked = marked[: spend(work, [_name(node) for node in marked])]
    for number, node in enumerate(marked):
        node.meta[MARK] = number
    work.sparse = [_name(node) for node in marked]
    log.info("sparse: %d attentions, %d MLPs", len(found), len(mlps))
    if blocks and not marked:
        nearest = refused[0] if refused else "no attention or MLP outside of the dense blocks"
        log.warning("nothing is sparse: %s", nearest)
    return len(marked)


def _name(node: fx.Node) -> str:
    return node.meta.get("path") or node.name


def _live(run: Run, first: int, last: int) -> list[Block]:
    return run.blocks[:first] + run.blocks[len(run.blocks) - last :]


def _attentions(graph: fx.Graph) -> tuple[list[fx.Node], list[CannotRewrite]]:
    """The attentions that may be sparse, and why the others may not."""
    found, refused = [], []
    longest = max((_tokens(node) for node in attentions(graph) if why_not_its_own(node) is None), default=0)
    for node in attentions(graph):
        reason = why_not_its_own(node) or _unfit(node, longest)
        if reason is None:
            found.append(node)
        else:
            refused.append(CannotRewrite(_name(node), f"stays dense: {reason}"))
    return found, refused


def _tokens(node: fx.Node) -> int:
    return _hint(ops.value(arguments_of(node)["query"]).shape[-2])


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _unfit(node: fx.Node, longest: int) -> str | None:
    given = arguments_of(node)
    if masks_queries(node):
        return "its mask differs from query to query"
    if ops.value(given["query"]).shape[-1] != ops.value(given["value"]).shape[-1]:
        return "its values are wider or narrower than its keys"
    if _tokens(node) * SHORT < longest:
        return f"it is over {_tokens(node)} tokens, the longest over {longest}"
    return None


def _mlps(graph: fx.Graph, blocks: list[set[fx.Node]]) -> list[fx.Node]:
    """The last linears of the MLPs that may be sparse: in each block those over the most tokens."""
    found: set[fx.Node] = set()
    for nodes in blocks:
        ends = {node: _hint(ops.value(mlp.inner.x).shape[1]) for node in nodes if (mlp := mlp_of(node)) is not None}
        found |= {node for node, count in ends.items() if count == max(ends.values())}
    return [node for node in graph.nodes if node in found]
